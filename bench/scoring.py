"""`python -m bench.scoring`: how long scoring 100,000 rows takes, with every interval, test, slice and confusion.

    rows      systems   clusters   seconds   peak memory
    100,000         5   no            21.4       0.9 GiB

The answers are SYNTHETIC: labels drawn so that systems are right in 80 to 92% of the rows. It writes
bench/results/scoring.json.
"""

import argparse
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine
from compare.analysis import comparisons, system_scores
from compare.eval_dataset import EvalDataset
from compare.records import System, SystemAnswer, SystemResponses
from insource.config.schema.compare import Primary
from insource.system import atomic_files
from insource.tasks import classification
from insource.tasks.data_row import DataRow
from insource.tracking.prompt_spec import PromptSpec

RESULTS = Path(__file__).parent / "results" / "scoring.json"
ACCURACIES = {"tuned": 0.90, "openai:large": 0.92, "int8": 0.89, "tfidf": 0.88, "base": 0.80}
PRIMARY = Primary(system="tuned", baseline="openai:large")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=77)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = [measure(arguments.rows, arguments.labels, clusters) for clusters in (False, True)]
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(arguments.results, results)
    for result in results:
        print(
            f"{result['rows']:,} rows, {result['systems']} systems, {result['labels']} labels, "
            f"{'clusters of 4' if result['clusters'] else 'no clusters'}: {result['seconds']:.1f} s, "
            f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"
        )
    return 0


def measure(rows: int, labels: int, clusters: bool) -> dict[str, Any]:
    """Return the time and peak memory of all quality figures of scores.json."""
    dataset, responses = make_dataset_and_responses(rows, labels, clusters)
    started_at = time.perf_counter()
    scores = [system_scores.score_system(response, dataset, None) for response in responses]
    payloads = [system_scores.summarize_system(score, dataset, PRIMARY, calibrated=False) for score in scores]
    compared = comparisons.paired_differences(scores, PRIMARY)
    comparisons.agreement(scores)
    comparisons.confusion(scores, dataset)
    comparisons.disagreements(scores[0], scores[1], dataset)
    seconds = time.perf_counter() - started_at
    assert len(payloads) == len(ACCURACIES) and compared
    return {
        "rows": rows,
        "systems": len(ACCURACIES),
        "labels": labels,
        "clusters": clusters,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **machine.describe_call("python -m bench.scoring"),
    }


def make_dataset_and_responses(rows: int, labels: int, clusters: bool) -> tuple[EvalDataset, list[SystemResponses]]:
    """Return rows with targets, and answers of systems with different accuracies."""
    rng = random.Random(3)
    names = [f"label_{number}" for number in range(labels)]
    test: list[DataRow] = [
        {
            "id": f"T{index:06d}",
            "input": {"text": f"message {index}"},
            "target": rng.choice(names),
            "group": f"G{index // 4}" if clusters else None,
            "slices": {"channel": rng.choice(("chat", "email", "phone"))},
        }
        for index in range(rows)
    ]
    spec = classification.Spec("Choose one of these labels.", dict.fromkeys(names, ""))
    responses = []
    for name, accuracy in ACCURACIES.items():
        answers = [
            SystemAnswer(
                row["id"], row["target"] if rng.random() < accuracy else rng.choice(names), latency_seconds=0.1
            )
            for row in test
        ]
        responses.append(SystemResponses(System(name, "tuned" if name == "tuned" else "closed", name), answers))
    prompt = PromptSpec(task={"kind": "classification"}, max_answer_tokens=16)
    return EvalDataset(classification, spec, prompt, train=[], calibration=[], test=test), responses


if __name__ == "__main__":
    sys.exit(main())
