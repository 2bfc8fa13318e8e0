"""Training in float32 and in bfloat16 on this processor, in turns: `python -m bench.precision`.

SmolLM2-135M-Instruct (real weights) trains on Banking77, the pocket model on the demo's tickets, with the modules of
`make train`. Both precisions get the same rows in the same order. Each run has a process of its own, and its first
update is left out. The bench writes bench/results/precision.json. Nothing else may run on the machine.

    | model | batch | float32 | bfloat16 | times | share of the bfloat16 peak | loss, last update |
    | smollm2 | 16 | 4.1 examples/s | 7.4 | 1.79 | 44% | 3.7123, 3.7098 |

`--scores` compares the scores after complete trainings instead (`bench/precision_scores.py`). `--small` shows that it
runs, on a few updates of the pocket model. It writes a file only if `--results` names one.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, precision_scores
from bench.peers.spec import ADAPTER_DIR, PeerSpec
from bench.training import fixtures, table
from bench.training.workloads import Workload, add_banking77_option, load_workload
from insource.config import cli, hardware
from insource.config.errors import StageError
from insource.config.load import load
from insource.system import atomic_files, environment
from insource.system.console_log import log_line
from insource.tasks.rendering import chat_template

RESULTS = Path(__file__).parent / "results" / "precision.json"
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """A training to be timed."""

    base: str
    shape: str
    batch_size: int
    updates: int
    """Timed updates, after one that warms up."""


CASES = (
    Case("smollm2", "banking77", 16, 4),
    Case("smollm2", "banking77", 64, 2),
    Case("pocket", "classifier", 16, 24),
)
SMALL_CASES = (Case("pocket", "classifier", 4, 2),)
BASES = tuple(dict.fromkeys(case.base for case in CASES))


def main() -> int:
    arguments = build_parser().parse_args()
    if not hardware.cpu_has_bfloat16() and not arguments.small:
        raise StageError(
            "this processor does not multiply bfloat16 itself (AVX512_BF16 or AMX): training is float32",
            code="INS-X010",
        )
    if arguments.scores:
        print(*precision_scores.main(arguments), sep="\n")
        return cli.OK
    peaks = {precision: machine.measure_matmul_flops(False, precision) for precision in PRECISIONS}
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in SMALL_CASES if arguments.small else CASES:
            if case.base not in arguments.bases:
                continue
            cases.append(measure(case, Path(folder) / f"{case.base}-{case.batch_size}", arguments, peaks))
            log_line(table_row(cases[-1]))
            result = {
                "command": build_command(arguments),
                "machine": machine.describe_hardware(on_gpu=False),
                "date": machine.utc_date(),
                "versions": environment.read_package_versions(),
                "matmul_flops": peaks,
                "cases": cases,
            }
            if path := arguments.results or (None if arguments.small else RESULTS):
                atomic_files.write_json(path, result)
    print("| model | batch | float32 | bfloat16 | times | share of the bfloat16 peak | loss, last update |")
    print("|---|---|---|---|---|---|---|", *map(table_row, cases), sep="\n")
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.precision", description="Training in float32 and in bfloat16."
    )
    add_banking77_option(parser)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=[*BASES], help="leave out the others")
    parser.add_argument("--runs", type=int, default=3, help="of each, of which the median counts")
    parser.add_argument("--small", action="store_true", help="a few updates of the pocket model")
    parser.add_argument("--results", type=Path, help="where the JSON goes (results/; --small: nowhere)")
    scores = parser.add_argument_group("with --scores")
    scores.add_argument("--scores", action="store_true", help="compare scores after training instead of speed")
    scores.add_argument("--seeds", type=int, default=precision_scores.SEEDS, help="trainings in each precision")
    scores.add_argument(
        "--splits",
        nargs="+",
        choices=precision_scores.SPLITS,
        default=["validation", "calibration"],
        help="rows that are scored",
    )
    scores.add_argument("--folder", type=Path, help="keeps the trainings here: the same command continues them")
    return parser


def build_command(arguments: argparse.Namespace) -> str:
    """Return the command for the file of results."""
    selection = "--small" if arguments.small else f"--banking77 FOLDER --bases {' '.join(arguments.bases)}"
    return f"python -m bench.precision {selection} --runs {arguments.runs}"


def measure(case: Case, folder: Path, arguments: argparse.Namespace, peaks: Mapping[str, float]) -> dict[str, Any]:
    """Return examples a second, fraction of the peak and losses of a case in both precisions."""
    recipe = load("classifier", [f"model.base={case.base}", "model.quantization=none"], "cpu").recipe
    tokenizer = chat_template.load_tokenizer(recipe.model)
    data = load_workload(case.shape, tokenizer, case.batch_size * (1 + case.updates), 0, arguments.banking77)
    folder.mkdir()
    fixtures.save_rows(folder / "rows.jsonl", data.examples)
    linear_parameters = save_initial_adapter(recipe.model.base, folder / ADAPTER_DIR)
    results: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    for number in range(arguments.runs):
        for precision in PRECISIONS:
            spec = PeerSpec(
                system="insource",
                folder=str(folder / f"{precision}-{number}"),
                model=recipe.model.base,
                adapter=str(folder / ADAPTER_DIR),
                rows=str(folder / "rows.jsonl"),
                quantization="none",
                batch_size=case.batch_size,
                updates=1 + case.updates,
                learning_rate=3e-4,
                bfloat16=precision == "bfloat16",
            )
            results[precision].append(machine.run_peer(Path(sys.executable), "bench.peers.insource_sft", spec))
    summary = {
        precision: summarize_runs(runs, data, linear_parameters, peaks[precision])
        for precision, runs in results.items()
    }
    times = summary["bfloat16"]["examples_per_second"] / summary["float32"]["examples_per_second"]
    return {"base": case.base, "shape": case.shape, "batch_size": case.batch_size, "times": round(times, 2), **summary}


def save_initial_adapter(base: str, adapter: Path) -> int:
    """Save the initial adapter of all runs; return the number of weights in the layers that every token passes."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    linear_parameters = fixtures.count_linear_parameters(model)
    torch.manual_seed(fixtures.SEED)
    fixtures.save_adapter(model, base, adapter)
    return linear_parameters


def summarize_runs(
    runs: Sequence[Mapping[str, Any]], data: Workload, linear_parameters: int, peak: float
) -> dict[str, Any]:
    """Return the medians of the runs in one precision."""
    flops = [4 * linear_parameters * sum(run["computed_tokens"][1:]) / sum(run["raw_seconds"][1:]) for run in runs]
    return {
        "examples_per_second": round(
            statistics.median(table.examples_per_second(run, data.row_tokens) for run in runs), 3
        ),
        "matmul_share": round(statistics.median(flops) / peak, 3),
        "peak_memory_bytes": statistics.median(run["peak_memory_bytes"] for run in runs),
        "losses": runs[0]["losses"],
        "raw_seconds": [run["raw_seconds"] for run in runs],
        "product_dtype": runs[0]["product_dtype"],
        "token_ids_sha256": runs[0]["token_ids_sha256"],
    }


def table_row(case: Mapping[str, Any]) -> str:
    """Return a line of the table."""
    rates = [case[precision]["examples_per_second"] for precision in PRECISIONS]
    losses = ", ".join(f"{case[precision]['losses'][-1]:.4f}" for precision in PRECISIONS)
    cells = [case["base"], str(case["batch_size"]), f"{rates[0]:.2f} examples/s", f"{rates[1]:.2f}"]
    cells += [f"{case['times']:.2f}", f"{case['bfloat16']['matmul_share']:.0%}", losses]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cli.run_cli(main)
