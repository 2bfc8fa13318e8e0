"""The printed report of an import, and the comments at the top of its recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.importer import import_rows
from data_prep.importer.import_rows import ImportCounts
from data_prep.importer.recipe_text import IncumbentModel, RecipeSource
from data_prep.importer.survey import Survey
from data_prep.importer.task_inference import InferredTask
from insource.system.number_format import format_count

LOG_FORMATS = ("a log of API calls", "OpenTelemetry spans (OTLP)", "OpenTelemetry spans")
MAX_ABBREVIATED_CHARACTERS = 70


def format_header(
    survey: Survey, outcome: ImportCounts, source: RecipeSource, model: IncumbentModel | None, paths: Sequence[Path]
) -> list[str]:
    """Return the comments at the top of the recipe. `paths` are the imported files."""
    files = " and ".join(path.name for path in paths)
    comments = [
        f"Made from {files} ({survey.format}, {format_count(outcome.selected, 'row')}) by `make import`: read it, and "
        "change it."
    ]
    if survey.format in LOG_FORMATS:
        top_models = survey.models.most_common(1)
        author = f" of {top_models[0][0]}" if top_models else ""
        comments.append(
            f"The targets are unverified answers{author}: a score against them says how often a model repeats them, "
            "and not how often it is right."
        )
    if not source.redact and outcome.pii_rows:
        comments.append(
            f"Personal data: {_list_rows(outcome.pii_rows)}. `privacy: {{redact: "
            f"[{', '.join(sorted(outcome.pii_rows))}]}}` replaces them."
        )
    if model and model.is_fine_tuned and source.test is None:
        comments.append(
            f"{model.name} was trained on these rows, so its score on a test split of them is too high. For a fair "
            "comparison give rows that it was not trained on: make import TEST=..."
        )
    if model and source.preamble:
        comments.append("The common beginning or end of all texts was cut off and is part of the instruction.")
    return comments


def format_report(
    survey: Survey,
    task: InferredTask,
    source: RecipeSource,
    outcome: ImportCounts,
    model: IncumbentModel | None,
    converted: Sequence[Path],
    dry_run: bool,
) -> list[str]:
    """Return the lines to print: what was read, the task and its reason, unusable rows, and the files written."""
    lines = [f"read      {format_count(survey.lines_read, 'line')}: {survey.format}"]
    lines.append(f"task      {task.kind}: {task.reason}")
    if survey.problems:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in survey.problems.most_common())
        lines.append(f"unusable  {counts}; {outcome.usable:,} of {outcome.selected:,} rows can be used")
        lines += [f"          {line}" for line in survey.shown_problems]
    lines += _format_row_notes(survey, task, source, outcome)
    if len(survey.models) > 1:
        lines.append(
            f"note      answers of {', '.join(f'{name} ({count:,})' for name, count in survey.models.most_common())}"
        )
    if model and task.kind == "preference":
        lines.append(
            f"note      {model.name} is no baseline: preferences are compared by the probability of given answers, "
            "which its API does not return"
        )
    if model and model.is_fine_tuned and source.test is None and task.kind != "preference":
        lines.append(
            f"note      {model.name} was trained on these rows: give rows that it was not trained on as TEST=..."
        )
    verb = "would write" if dry_run else "wrote    "
    lines += [
        f"{verb} {display_path(path)}: the rows, converted: {'; '.join(survey.conversion_reasons)}"
        for path in converted
    ]
    return lines


def format_next_commands(recipe_path: Path, model: IncumbentModel | None, task: InferredTask) -> list[str]:
    """Return the lines with the commands that follow an import."""
    recipe = display_path(recipe_path)
    lines = [f"next      make data RECIPE={recipe}    then read data.html and the recipe"]
    if model and model.is_fine_tuned and task.kind != "preference":
        lines.append(f"          make record RECIPE={recipe}    before the shutdown of {model.name}")
    return [*lines, f"          make train RECIPE={recipe}    docs/leaving-openai.md has all steps"]


def abbreviate(text: str) -> str:
    """Return the text on one line, cut to MAX_ABBREVIATED_CHARACTERS."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_ABBREVIATED_CHARACTERS else flat[: MAX_ABBREVIATED_CHARACTERS - 3] + "..."


def display_path(path: Path) -> str:
    """Return the path relative to the working directory if it is inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _format_row_notes(survey: Survey, task: InferredTask, source: RecipeSource, outcome: ImportCounts) -> list[str]:
    """Return the lines on rows that are left out, changed, or similar to others."""
    lines = []
    if outcome.other_system:
        others = format_count(len(survey.systems) - 1, "other system message")
        lines.append(f"left out  {format_count(outcome.other_system, 'row')} with {others}")
    elif len(survey.systems) > 1:
        lines.append(f"note      {len(survey.systems):,} system messages; the recipe has the most frequent one")
    if task.n_rare_labels:
        lines.append(
            f"left out  {format_count(task.n_rare_labels, 'answer')} of fewer than {task.min_rows} rows, which are no "
            "labels"
        )
    if survey.multi_turn_rows:
        lines.append(
            f"note      {format_count(survey.multi_turn_rows, 'row')} with several turns: the text has the role of each"
        )
    if survey.untrained_answer_rows:
        lines.append(
            f"note      {format_count(survey.untrained_answer_rows, 'row')} with an answer of weight 0, which is part "
            "of the text and not trained on"
        )
    if survey.joined_system_rows:
        lines.append(
            f"note      {format_count(survey.joined_system_rows, 'row')} with several system messages, joined to one"
        )
    if outcome.pii_rows:
        lines.append(
            f"personal  {_list_rows(outcome.pii_rows)}"
            + (", replaced by placeholders" if source.redact else "; the recipe says how to replace them")
        )
    if outcome.duplicates or outcome.near_duplicates:
        is_partial = len(outcome.keys) == import_rows.COMPARED_ROWS
        scope = f", of the first {import_rows.COMPARED_ROWS:,}" if is_partial else ""
        lines.append(
            f"same      {format_count(outcome.duplicates, 'duplicate')} and "
            f"{format_count(outcome.near_duplicates, 'near-duplicate')} of another row{scope}"
        )
    return lines


def _list_rows(counts: Mapping[str, int]) -> str:
    """Return "email in 39 rows, phone in 1 row"."""
    return ", ".join(f"{name} in {format_count(count, 'row')}" for name, count in sorted(counts.items()))
