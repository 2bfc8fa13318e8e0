"""Scores after training in float32 and in bfloat16: `python -m bench.precision --scores --banking77 FOLDER`.

For each seed a recipe is trained in both precisions with `python -m train`, on the same rows in the same order. The
trained weights answer held-out rows of these trainings in float32, as validation does. It writes
bench/results/precision_scores.json.

    | base, recipe | rows | seeds | float32 | bfloat16 | difference over rows (95%) | over seeds (95%) |
    | pocket, classifier | 1,480 | 3 | 86.4% | 86.2% | -0.2 points (-0.9 to +0.6) | -0.2 points (-1.1 to +0.8) |

The difference is bfloat16 minus float32. The interval over rows is about these adapters on other rows; a row counts
with its mean over the seeds. The interval over seeds is about other trainings on the same rows (t distribution; with
three seeds it is wide).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from bench import machine
from bench.labelling_choice import paired_interval
from insource.config.errors import StageError
from insource.stats.metric_stats import mean_metric
from insource.stats.paired import PairedDifference, compute_paired_difference
from insource.system import atomic_files, environment
from insource.tasks import TASKS
from insource.tasks.rendering import chat_template
from insource.tracking.data_report import DataReport
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run
from train.evaluate.validation import GenerationEvaluator
from train.model import base

RESULTS = Path(__file__).parent / "results" / "precision_scores.json"
MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16"}
FIRST_SEED, SEEDS = 17, 3
SPLITS = ("validation", "calibration", "test")
MARGIN = 0.01
"""The interval over rows should be within this distance of 0."""


@dataclass(frozen=True)
class ScoreCase:
    """A recipe to be trained."""

    base: str
    recipe: str
    """Name or path of the recipe."""
    hardware: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredRow:
    """Whether a trained model answers a held-out row right."""

    id: str
    group: str | None
    right: bool


def select_cases(bases: Sequence[str], banking77: Path) -> list[ScoreCase]:
    """Return the cases of these bases."""
    data = [f"data.source.{split}={(banking77 / f'{split}.csv').resolve()}" for split in ("train", "test")]
    cases = (
        ScoreCase("pocket", "classifier", "cpu"),
        ScoreCase("smollm2", "banking77", "cpu-smollm2", (*data, "train.num_train_epochs=1")),
    )
    return [case for case in cases if case.base in bases]


def small_case(folder: Path) -> ScoreCase:
    """Return two updates of the pocket model on the tickets of `bench.kills`."""
    from bench import kills

    folder.mkdir(parents=True, exist_ok=True)
    settings = ("train.max_steps=2", "train.save_steps=2", "train.logging_steps=1")
    return ScoreCase("pocket", str(kills.write_recipe(folder)), "cpu", settings)


def main(arguments: argparse.Namespace) -> list[str]:
    """Measure all cases, write the results after each seed, and return the lines of the table."""
    seeds = range(FIRST_SEED, FIRST_SEED + (1 if arguments.small else arguments.seeds))
    splits = arguments.splits
    cases: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        selected = [small_case(folder)] if arguments.small else select_cases(arguments.bases, arguments.banking77)
        for case in selected:
            runs: list[dict[str, Any]] = []
            scored: dict[str, list[list[ScoredRow]]] = {precision: [] for precision in MIXED_PRECISION}
            for seed in seeds:
                for precision, by_seed in scored.items():
                    run = train_case(case, seed, precision, folder / "runs")
                    by_seed.append(score_run(run, splits))
                    runs.append(describe_run(run, seed, precision, by_seed[-1]))
                    machine.log(f"{case.base}: {runs[-1]}")
            cases.append(summarize_case(case, splits, runs, scored))
            if path := arguments.results or (None if arguments.small else RESULTS):
                atomic_files.write_json(path, build_result(arguments, cases))
    return format_table(cases)


def train_case(case: ScoreCase, seed: int, precision: str, runs_folder: Path) -> Run:
    """Return the finished run of a recipe with this seed and precision. Raise StageError if training fails.

    The command continues an unfinished run, and leaves a finished one unchanged.
    """
    settings = [*case.settings, f"train.seed={seed}", f"accelerate.mixed_precision={MIXED_PRECISION[precision]}"]
    settings += [f"model.base={case.base}", "model.quantization=none", "tracking.wandb.mode=off"]
    argv = [sys.executable, "-m", "train", case.recipe, "--hardware", case.hardware, *settings]
    env = {**os.environ, **machine.OFFLINE_ENV, "RUNS": str(runs_folder)}
    if subprocess.run(argv, cwd=machine.ROOT, env=env, stdout=sys.stderr, check=False).returncode:
        raise StageError(f"training {case.recipe} in {precision} with seed {seed} failed", code="INS-X010")
    for path in sorted((runs_folder / Path(case.recipe).stem).glob("*/manifest.json")):
        run = Run(path.parent)
        if path.parent.is_symlink() or run.stage("train").state != "done":
            continue
        recipe = run.recipe()
        if (recipe.train.seed, recipe.accelerate.mixed_precision) == (seed, MIXED_PRECISION[precision]):
            return run
    raise StageError(f"there is no finished run of {case.recipe} with seed {seed} in {precision}", code="INS-X010")


def score_run(run: Run, splits: Sequence[str]) -> list[ScoredRow]:
    """Return for each row of these splits whether the trained weights answer it right, in float32."""
    from peft import PeftModel

    recipe = run.recipe()
    model = PeftModel.from_pretrained(base.load_base_model(recipe), str(run.folder / "adapter")).eval()
    task, tokenizer = TASKS[recipe.task.task_name], chat_template.load_tokenizer(recipe.model)
    spec = task.make_spec(recipe.task, DataReport.read(run.folder / "data").label_descriptions)
    rows = [row for split in splits for row in atomic_files.read_jsonl(run.folder / "data" / f"{split}.jsonl")]
    prompts = chat_template.encode_prompts(tokenizer, [task.messages(spec, row["input"]) for row in rows])
    max_answer_tokens = PromptSpec.read(run.folder / "adapter").max_answer_tokens
    evaluator = GenerationEvaluator(task, spec, rows, prompts, tokenizer, max_answer_tokens)
    parsed = evaluator.parse(evaluator.predict(model, "held out"))
    return [
        ScoredRow(row["id"], row.get("group"), answer.problem is None and answer.value == row["target"])
        for row, answer in zip(rows, parsed, strict=True)
    ]


def describe_run(run: Run, seed: int, precision: str, rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Return the figures of one training."""
    record = run.stage("train")
    validation = record.metrics["validation"]["tuned"].items()
    return {
        "seed": seed,
        "precision": precision,
        "accuracy": compute_accuracy(rows),
        "validation": {name: value for name, value in validation if isinstance(value, int | float)},
        "final_loss": record.metrics["final_loss"],
        "training_seconds": record.metrics["training_seconds"],
        "adapter_sha256": atomic_files.sha256(run.folder / "adapter" / "adapter_model.safetensors")[:16],
    }


def summarize_case(
    case: ScoreCase,
    splits: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
    scored: Mapping[str, Sequence[Sequence[ScoredRow]]],
) -> dict[str, Any]:
    """Return the scores of a case in both precisions and their difference. `scored` has the rows of each seed."""
    over_rows = compare_rows(scored["bfloat16"], scored["float32"])
    accuracies = {name: [compute_accuracy(rows) for rows in by_seed] for name, by_seed in scored.items()}
    seeds = len(accuracies["float32"])
    over_seeds = paired_interval(accuracies["bfloat16"], accuracies["float32"])
    return {
        "base": case.base,
        "recipe": Path(case.recipe).stem,
        "splits": list(splits),
        "rows": over_rows.n,
        "groups": over_rows.clusters,
        "seeds": seeds,
        "accuracy": {name: mean(values) for name, values in accuracies.items()},
        "over_rows": {"delta": over_rows.delta, "low": over_rows.low, "high": over_rows.high},
        "over_seeds": dict(zip(("delta", "low", "high"), over_seeds, strict=True)) if seeds > 1 else None,
        "within_one_point": over_rows.low >= -MARGIN and over_rows.high <= MARGIN,
        "runs": list(runs),
    }


def compute_accuracy(rows: Sequence[ScoredRow]) -> float:
    """Return the share of rows that are answered right."""
    return sum(row.right for row in rows) / len(rows)


def compare_rows(a: Sequence[Sequence[ScoredRow]], b: Sequence[Sequence[ScoredRow]]) -> PairedDifference:
    """Return the accuracy of a minus that of b, paired by row, from the mean of each row over the seeds.

    Raise ValueError if the seeds were not scored on the same rows.
    """
    if any([row.id for row in rows] != [row.id for row in a[0]] for rows in (*a, *b)):
        raise ValueError("the seeds were scored on different rows")
    means = [[compute_accuracy(rows) for rows in zip(*by_seed, strict=True)] for by_seed in (a, b)]
    groups = [row.group for row in a[0]]
    clusters = groups if any(groups) else None
    return compute_paired_difference(mean_metric(means[0]), mean_metric(means[1]), clusters)


def build_result(arguments: argparse.Namespace, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of precision_scores.json."""
    selection = (
        "--small"
        if arguments.small
        else f"--bases {' '.join(arguments.bases)} --seeds {arguments.seeds} --splits {' '.join(arguments.splits)}"
    )
    return {
        "command": f"python -m bench.precision --scores {selection}",
        "machine": machine.describe_hardware(on_gpu=False),
        "date": machine.utc_date(),
        "versions": environment.read_package_versions(),
        "cases": list(cases),
    }


def format_table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| base, recipe | rows | seeds | float32 | bfloat16 | difference over rows (95%) | over seeds (95%) |",
        "|---" * 7 + "|",
    ]
    for case in cases:
        accuracies = [f"{case['accuracy'][name]:.1%}" for name in MIXED_PRECISION]
        differences = [format_difference(case[name]) for name in ("over_rows", "over_seeds")]
        cells = [
            f"{case['base']}, {case['recipe']}",
            f"{case['rows']:,}",
            str(case["seeds"]),
            *accuracies,
            *differences,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def format_difference(difference: Mapping[str, float] | None) -> str:
    """Return a difference in points with its interval."""
    if difference is None:
        return "one seed"
    delta, low, high = (100 * difference[name] for name in ("delta", "low", "high"))
    return f"{delta:+.1f} points ({low:+.1f} to {high:+.1f})"
