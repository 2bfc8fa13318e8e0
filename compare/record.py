"""The answers of an API model to the held-out rows, kept while it lives: `make record RECIPE=tickets`.

    recorded  openai:ft:gpt-4o-mini-2024-07-18:acme::Bx1: 3,080 test rows, $0.4213
    wrote     recipes/tickets.openai-ft-gpt-4o-mini-2024-07-18-acme-Bx1-74e2f0.jsonl

It needs no trained model. The rows are asked as the comparison asks them, first request, budget and journal alike, so
that a comparison asks for nothing that is recorded. Of the test set the texts are read and no target: nothing is scored
here, and the ledger says when whose answers were recorded, with the plan of then.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from compare import first_request, preflight
from compare.decision import preregistration
from compare.eval_dataset import EvalDataset, Rows
from compare.scoring.predictions import SystemAnswer, slug
from compare.systems import api_models, catalog
from compare.systems.catalog import System
from compare.systems.responses import ComparisonContext, SystemResponses
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe, load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tracking import folder_ownership, run
from insource.tracking.run import Run

# The folder of a run that there is not yet: answers lie beside runs.
PLACEHOLDER_RUN = "record"
NUMERIC_FIELDS = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens", "latency_seconds", "cost_usd")


def main(recipe: str, overrides: Sequence[str], hardware: str | None, runs: str | None, name: str | None) -> int:
    """Returns the exit code. Raises RecipeError where nobody can be asked, StageError where not all rows were."""
    loaded = load(recipe, overrides, hardware)
    system = select_system(loaded.recipe, name)
    if missing := catalog.skipped_systems([system], loaded.recipe):
        raise RecipeError(f"{system.title} cannot be asked: {missing[0].why}")
    parent = run.runs_folder(runs)
    data = _prepare_data(recipe, overrides, hardware, runs)
    loaded = folder_ownership.claim_folder(loaded, parent)
    place = build_context(parent / loaded.name, loaded, data)
    preflight.check(place, [system])
    asked, refused = first_request.send_first_requests(place, [system])
    if refused:
        raise StageError(f"{refused[0].title} {refused[0].why}")
    sha256 = atomic_files.sha256(data / "test.jsonl")
    preregistration.register_recording(parent / loaded.name, loaded.recipe.compare.primary, sha256, system.name)
    found = api_models.collect_from_apis(place, asked)[system.name]
    path = loaded.path.with_name(f"{loaded.path.stem}.{slug(system.name)}.jsonl")
    return write_answers(found, path)


def select_system(recipe: Recipe, name: str | None) -> System:
    """Returns the system to record: the one of that name, else the planned baseline.

    Raises RecipeError where its answers cannot be recorded, naming those that can.
    """
    closed = catalog.api_systems(recipe)
    names = [one.name for one in closed if one.baseline and not one.baseline.decides]
    wanted = name or (recipe.compare.primary.baseline if recipe.compare.primary else None)
    there = f"there are {', '.join(names)}" if names else "there is none"
    system = next((one for one in closed if one.name == wanted), None)
    if system is None or system.baseline is None:
        raise RecipeError(f"SYSTEM: {wanted} is no API model of compare.baselines; {there}")
    if system.baseline.decides:
        raise RecipeError(
            f"SYSTEM: {wanted} gives probabilities of labels, which a file of answers has no place for; {there}"
        )
    if isinstance(system.baseline.instruction, list):
        raise RecipeError(f"compare.baselines: {wanted}: several instructions are tried in a comparison; keep one")
    return system


def build_context(folder: Path, loaded: LoadedRecipe, data: Path) -> ComparisonContext:
    """Returns a comparison of the prepared data without a trained model, and without the targets of the test rows."""
    told = atomic_files.read_json(data / "data.json")
    task = TASKS[loaded.recipe.task.variant]
    labels = {label: one["description"] for label, one in told["labels"].items()}
    may_be_empty = bool(told["labels_per_row"] and told["labels_per_row"]["may_be_empty"])
    spec = task.make_spec(loaded.recipe.task, labels, may_be_empty)
    # As training will write it into prompt.json, so that a comparison finds these answers again.
    prompt = {
        "grammar": None,
        "output_schema": task.output_schema(spec),
        "max_answer_tokens": told["tokens"]["served"]["for_the_answer"],
    }
    train = list(atomic_files.read_jsonl(data / "train.jsonl"))
    mine = EvalDataset(task, spec, prompt, train, [], read_inputs(data / "test.jsonl"))
    return ComparisonContext(Run(folder / PLACEHOLDER_RUN), loaded.name, loaded.recipe, mine)


def read_inputs(path: Path) -> Rows:
    """Returns ids and texts of the rows of a split; their targets are not kept."""
    rows = [{"id": row["id"], "input": row["input"]} for row in atomic_files.read_jsonl(path)]
    if not rows:
        raise StageError(f"{path} has no rows: nothing can be recorded; give data.split.test a share")
    return rows


def write_answers(found: SystemResponses, path: Path) -> int:
    """Writes the answers, and says how the recipe takes them. Raises StageError where rows were not asked: what was
    paid for is kept."""
    if not found.complete:
        raise StageError(f"{found.system.title}: {found.why_incomplete}; nothing is lost: again asks for the rest")
    lines = [json.dumps(_answer_json(one), ensure_ascii=False) + "\n" for one in found.test]
    atomic_files.write_text(path, "".join(lines))
    spent = f", ${found.spent_usd:.4f}" if found.spent_usd is not None else ""
    print(f"recorded  {found.system.title}: {len(lines):,} test rows{spent}", file=sys.stderr)
    if found.shutdown_date:
        print(f"          its provider shuts it down on {found.shutdown_date}", file=sys.stderr)
    price = found.price
    paid = (
        f", price: {{input_usd_per_million: {price.input_usd_per_million:g}, "
        f"output_usd_per_million: {price.output_usd_per_million:g}}}"
        if price
        else ""
    )
    print("          when it is gone, this takes its place in compare.baselines:", file=sys.stderr)
    print(f'          - {{provider: file, path: "{path.name}", name: "{found.system.name}"{paid}}}', file=sys.stderr)
    print(path)
    return cli.OK


def _answer_json(answer: SystemAnswer) -> dict[str, object]:
    """An answer as `provider: file` reads it; a refusal, or a row that the provider would not answer, has none."""
    refused = answer.output is None or answer.finish_reason == "refusal"
    told: dict[str, object] = {"id": answer.id, "output": None if refused else answer.output}
    figures = {name: getattr(answer, name) for name in NUMERIC_FIELDS}
    if answer.model_id:
        told["model_id"] = answer.model_id
    return told | {name: value for name, value in figures.items() if value is not None}


def _prepare_data(recipe: str, overrides: Sequence[str], hardware: str | None, runs: str | None) -> Path:
    """Runs the data stage as a process of its own: stages meet on disk. Exits as it exits where it fails."""
    asked = [sys.executable, "-m", "data_prep", recipe, *overrides, "--no-heading"]
    asked += ["--hardware", hardware] if hardware else []
    asked += ["--runs", runs] if runs else []
    answer = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        sys.exit(answer.returncode)
    return Path(answer.stdout.strip())


def _command() -> int:
    parser = cli.build_parser("compare.record", "Keep the answers of an API model to the test rows, while it lives.")
    parser.add_argument("--system", help="its name in compare.baselines (default: the planned baseline)")
    given = parser.parse_intermixed_args()
    if given.dry_run:
        system = select_system(load(given.recipe, given.set, given.hardware).recipe, given.system)
        print(f"would ask {system.title} the test rows, and keep its answers")
        return cli.OK
    return main(given.recipe, given.set, given.hardware, given.runs, given.system)


if __name__ == "__main__":
    cli.run_cli(_command)
