"""`make record RECIPE=tickets`: save the answers of an API model to the test rows before its provider shuts it down.

    recorded  openai:ft:gpt-4o-mini-2024-07-18:acme::Bx1: 3,080 test rows, $0.4213
    wrote     recipes/tickets.openai-ft-gpt-4o-mini-2024-07-18-acme-Bx1-74e2f0.jsonl

No trained model is needed. First request, budget, cache and requests are those of a comparison, so that a comparison
reuses the recorded answers. Only the texts of the test set are read, not the targets: nothing is scored. The ledger
records date, system and plan.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import cast

from compare import first_request, preflight
from compare.decision import preregistration
from compare.eval_dataset import EvalDataset
from compare.records import System, SystemAnswer, SystemResponses
from compare.scoring.predictions import slug
from compare.systems import api_models, catalog
from compare.systems.responses import ComparisonContext
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe, load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tasks.data_row import InputRow, Rows
from insource.tracking import folder_ownership, run
from insource.tracking.data_report import DataReport
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run

# Name of a run folder that does not exist: the answer cache is beside the run folders.
PLACEHOLDER_RUN = "record"
NUMERIC_FIELDS = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens", "latency_seconds", "cost_usd")


def main(arguments: argparse.Namespace) -> int:
    """Record the answers of the system `arguments.system` and return the exit code.

    Raise RecipeError if the system cannot be queried, StageError if not all rows were answered.
    """
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    system = select_system(loaded.recipe, arguments.system)
    if arguments.dry_run:
        print(f"would send the test rows to {system.title}, and keep its answers")
        return cli.OK
    if skipped := catalog.skipped_systems([system], loaded.recipe):
        raise RecipeError(f"{system.title} cannot be evaluated: {skipped[0].reason}", code="INS-A001")
    parent = run.runs_folder(arguments.runs)
    data = cli.prepare_data(arguments)
    loaded = folder_ownership.claim_folder(loaded, parent)
    context = build_context(parent / loaded.name, loaded, data)
    preflight.check(context, [system])
    systems, refused = first_request.send_first_requests(context, [system])
    if refused:
        raise StageError(f"{refused[0].title} {refused[0].reason}", code="INS-A001")
    sha256 = atomic_files.sha256(data / "test.jsonl")
    preregistration.register_recording(parent / loaded.name, loaded.recipe.compare.primary, sha256, system.name)
    responses = api_models.collect_from_apis(context, systems)[system.name]
    path = loaded.path.with_name(f"{loaded.path.stem}.{slug(system.name)}.jsonl")
    return write_answers(responses, path)


def select_system(recipe: Recipe, name: str | None) -> System:
    """Return the system to record: the one with that name, else the planned baseline.

    Raise RecipeError with the available names if its answers cannot be recorded.
    """
    api_systems = catalog.api_systems(recipe)
    names = [
        candidate.name for candidate in api_systems if candidate.baseline and not candidate.baseline.uses_decision_api
    ]
    selected_name = name or (recipe.compare.primary.baseline if recipe.compare.primary else None)
    available = f"there are {', '.join(names)}" if names else "there is none"
    system = next((candidate for candidate in api_systems if candidate.name == selected_name), None)
    if system is None or system.baseline is None:
        raise RecipeError(
            f"SYSTEM: {selected_name} is not an API model of compare.baselines; {available}", code="INS-C010"
        )
    if system.baseline.uses_decision_api:
        raise RecipeError(
            f"SYSTEM: {selected_name} returns label probabilities, which a file of answers cannot contain; {available}",
            code="INS-C010",
        )
    if isinstance(system.baseline.instruction, list):
        raise RecipeError(
            f"compare.baselines: {selected_name}: given several instructions, allowed: one", code="INS-C010"
        )
    return system


def build_context(folder: Path, loaded: LoadedRecipe, data: Path) -> ComparisonContext:
    """Return a context of the prepared data without a trained model and without the targets of the test rows."""
    report, task = DataReport.read(data), TASKS[loaded.recipe.task.task_name]
    spec = task.make_spec(loaded.recipe.task, report.label_descriptions, report.may_be_empty)
    # Same values as training writes into prompt.json, so that a comparison finds these answers in the cache.
    prompt = PromptSpec(output_schema=task.output_schema(spec), max_answer_tokens=report.max_answer_tokens)
    train = list(atomic_files.read_jsonl(data / "train.jsonl"))
    dataset = EvalDataset(task, spec, prompt, train, [], read_inputs(data / "test.jsonl"))
    return ComparisonContext(Run(folder / PLACEHOLDER_RUN), loaded.name, loaded.recipe, dataset)


def read_inputs(path: Path) -> Rows:
    """Return ids and input texts of the rows of a split, without targets. Raise StageError if it has no rows."""
    rows: list[InputRow] = [{"id": row["id"], "input": row["input"]} for row in atomic_files.read_jsonl(path)]
    if not rows:
        raise StageError(f"{path} has no rows to record; set data.split.test above 0", code="INS-D027")
    return cast("Rows", rows)


def write_answers(responses: SystemResponses, path: Path) -> int:
    """Write the answers, print the baseline entry for the recipe and return the exit code.

    Raise StageError if rows are missing. Answers that were paid for stay in the cache.
    """
    if not responses.complete:
        raise StageError(
            f"{responses.system.title}: {responses.incomplete_reason}; finished answers are kept: run the same "
            "command for the rest",
            code="INS-A009",
        )
    lines = [json.dumps(_answer_json(answer), ensure_ascii=False) + "\n" for answer in responses.test_answers]
    atomic_files.write_text(path, "".join(lines))
    cost_text = f", ${responses.spent_usd:.4f}" if responses.spent_usd is not None else ""
    print(f"recorded  {responses.system.title}: {len(lines):,} test rows{cost_text}", file=sys.stderr)
    if responses.shutdown_date:
        print(f"          its provider shuts it down on {responses.shutdown_date}", file=sys.stderr)
    price = responses.price
    price_text = (
        f", price: {{input_usd_per_million: {price.input_usd_per_million:g}, "
        f"output_usd_per_million: {price.output_usd_per_million:g}}}"
        if price
        else ""
    )
    print("          after its shutdown, replace it in compare.baselines by:", file=sys.stderr)
    print(
        f'          - {{provider: file, path: "{path.name}", name: "{responses.system.name}"{price_text}}}',
        file=sys.stderr,
    )
    print(path)
    return cli.OK


def _answer_json(answer: SystemAnswer) -> dict[str, object]:
    """Return an answer as `provider: file` reads it.

    A refusal, or a row that the provider rejected, has output null.
    """
    refused = answer.output is None or answer.finish_reason == "refusal"
    payload: dict[str, object] = {"id": answer.id, "output": None if refused else answer.output}
    numbers = {name: getattr(answer, name) for name in NUMERIC_FIELDS}
    if answer.model_id:
        payload["model_id"] = answer.model_id
    return payload | {name: value for name, value in numbers.items() if value is not None}


def _command() -> int:
    parser = cli.build_parser(
        "compare.record", "Save the answers of an API model to the test rows before its shutdown."
    )
    parser.add_argument("--system", help="its name in compare.baselines (default: the planned baseline)")
    return main(parser.parse_intermixed_args())


if __name__ == "__main__":
    cli.run_cli(_command)
