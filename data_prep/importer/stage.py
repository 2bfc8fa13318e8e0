"""An import from top to bottom: survey the rows, infer their task, write the recipe, report the reasons.

A repeated call changes nothing: an existing recipe is overwritten only with FORCE=1.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML

from data_prep.importer import import_rows, recipe_text, task_inference
from data_prep.importer.import_rows import ConvertedFile, ImportCounts
from data_prep.importer.recipe_text import IncumbentModel, RecipeSource
from data_prep.importer.survey import Preamble, Survey, find_preamble
from data_prep.importer.task_inference import InferredTask
from insource.config import cli
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, load
from insource.config.recipe import Recipe
from insource.config.schema.compare import INPUT_PLACEHOLDER
from insource.system import atomic_files
from insource.tasks.pii import redaction

# A recipe has one instruction: rows with another system message are another task, unless they are few.
MIN_SYSTEM_FRACTION = 0.8
MAX_SYSTEMS_SHOWN, MAX_SYSTEM_CHARACTERS = 5, 70
# Below this fraction of usable rows the file is probably of another format.
MIN_USABLE_FRACTION = 0.5
MIN_ROWS = 10
LOG_FORMATS = ("a log of API calls", "OpenTelemetry spans (OTLP)", "OpenTelemetry spans")
CHAT_MODEL_PREFIXES = ("gpt-", "chatgpt-", "o1", "o3", "o4", "ft:", "claude", "anthropic.claude")


def main(arguments: argparse.Namespace) -> int:
    """Run the import and return the exit code.

    Raise RecipeError if no recipe can be made of the rows; nothing is written then.
    """
    if not arguments.source:
        raise RecipeError(
            "FROM: give the file of the fine-tune, or of the log: make import FROM=train.jsonl", code="INS-R012"
        )
    train, test = _absolute_path(arguments.source), _absolute_path(arguments.test) if arguments.test else None
    recipe_path = _choose_recipe_path(train, arguments.to)
    paths = [train] if test is None else [train, test]
    survey = import_rows.survey_files(paths)
    _check_usable(survey, survey.n_examples, survey.n_examples + survey.problems.total())
    system = _choose_system(survey, arguments.system)
    task = task_inference.infer_task(survey.answers[system], survey.preference_pairs)
    source = _choose_source(train, test, recipe_path, survey, system, task)
    model = _choose_model(arguments, survey, source)
    answers = survey.answers[system]
    draft = recipe_text.render_recipe(recipe_path.parent, [], task, source, model, answers)
    recipe = _parse_recipe(draft)
    outcome = ImportCounts()
    converted = [path for path in (source.train, source.test) if path] if source.train != train else []
    dry_run = arguments.dry_run
    if not dry_run:
        _check_no_overwrite([recipe_path, *converted], arguments.force)
        recipe_path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(ConvertedFile(Path(os.devnull) if dry_run else target_path))
            for target_path in converted
        ]
        for index, path in enumerate(paths):
            import_rows.check_rows(path, recipe, source, survey, outcome, writers[index] if writers else None)
        import_rows.count_near_duplicates(outcome)
        _check_usable(survey, outcome.usable, outcome.selected)
        unusable_fraction = 0.0 if writers else outcome.unusable_fraction
        final_source = replace(source, unusable_fraction=unusable_fraction)
        report = _format_report(survey, task, final_source, outcome, model, converted, dry_run)
        text = recipe_text.render_recipe(
            recipe_path.parent,
            _format_header(survey, outcome, final_source, model, train),
            task,
            final_source,
            model,
            answers,
        )
        if dry_run:
            print(*report, sep="\n", file=sys.stderr)
            print(text, end="")
            return cli.OK
        _commit_files(writers, recipe_path, text)
    load(str(recipe_path), (), "gpu")
    print(*report, *_format_next_steps(recipe_path, model, task), sep="\n", file=sys.stderr)
    print(recipe_path)
    return cli.OK


def _format_next_steps(recipe_path: Path, model: IncumbentModel | None, task: InferredTask) -> list[str]:
    """Return the lines with the commands to run next."""
    name = _display_path(recipe_path)
    lines = [f"next      make data RECIPE={name}    then look at data.html, and at the recipe"]
    if model and model.is_fine_tuned and task.kind != "preference":
        lines.append(f"          make record RECIPE={name}    while {model.name} lives")
    return lines


def _commit_files(writers: Sequence[ConvertedFile], recipe_path: Path, text: str) -> None:
    """Put the converted files and the recipe in place. If one cannot be written, no converted file is left."""
    try:
        for writer in writers:
            writer.commit()
        atomic_files.write_text(recipe_path, text)
    except OSError:
        for writer in writers:
            writer.path.unlink(missing_ok=True)
        raise


def _parse_recipe(draft: str) -> Recipe:
    """Return the recipe of a YAML text. Raise RecipeError if the rows or the given model make it invalid."""
    try:
        return Recipe.model_validate(YAML(typ="safe").load(draft))
    except ValidationError as error:
        message = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:3])
        raise RecipeError(f"no recipe can be made of these rows: {message}", code="INS-D038") from None


def _absolute_path(path: str) -> Path:
    """Return the absolute path, with ~ expanded."""
    return Path(path).expanduser().absolute()


def _choose_recipe_path(train: Path, raw_path: str | None) -> Path:
    """Return the given recipe path, or else recipes/<name of the file>.yaml."""
    if raw_path:
        path = _absolute_path(raw_path)
        if path.suffix not in (".yaml", ".yml"):
            raise RecipeError(
                f"TO: given {raw_path}, allowed: a .yaml file, such as recipes/tickets.yaml", code="INS-R011"
            )
        return path
    name = train.name.split(".")[0].strip("*?[]-_ ") or "imported"
    return RECIPES / f"{name}.yaml"


def _check_no_overwrite(paths: Sequence[Path], forced: bool) -> None:
    """Raise RecipeError if a file exists and `forced` is false."""
    if not forced and (existing := [path for path in paths if path.exists()]):
        raise RecipeError(
            f"{_display_path(existing[0])} exists already and may have your changes; give another name with "
            "TO=recipes/NAME.yaml, or replace it with FORCE=1",
            code="INS-R015",
        )


def _check_usable(survey: Survey, usable: int, n_read: int) -> None:
    """Raise RecipeError if fewer than MIN_ROWS or MIN_USABLE_FRACTION of the rows are usable."""
    if usable >= MIN_ROWS and usable >= MIN_USABLE_FRACTION * n_read:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in survey.problems.most_common()) or "none were read"
    problem_lines = "\n".join(f"  {line}" for line in survey.shown_problems)
    raise RecipeError(
        f"{usable:,} of {n_read:,} rows can be used ({reasons}); a recipe needs at least {MIN_ROWS}, and most of the "
        f"rows:\n{problem_lines}"
        if problem_lines
        else f"{usable:,} rows can be used; a recipe needs at least {MIN_ROWS}",
        code="INS-D036",
    )


def _choose_system(survey: Survey, number: int | None) -> str:
    """Return the system message of the rows to import. Raise RecipeError if it is ambiguous."""
    frequent = survey.systems.most_common()
    if number is not None:
        if not 1 <= number <= len(frequent):
            raise RecipeError(f"SYSTEM: given {number}, allowed: 1 to {len(frequent)}", code="INS-R011")
        return frequent[number - 1][0]
    system, n_rows = frequent[0]
    if n_rows >= MIN_SYSTEM_FRACTION * survey.n_examples:
        return system
    lines = [
        f"  SYSTEM={rank}  {count:,} rows  {_abbreviate(message) or '(no system message)'}"
        for rank, (message, count) in enumerate(frequent[:MAX_SYSTEMS_SHOWN], start=1)
    ]
    remainder = [f"  and {len(frequent) - MAX_SYSTEMS_SHOWN:,} more"] if len(frequent) > MAX_SYSTEMS_SHOWN else []
    count_text = f"{'more than ' if survey.n_uncounted_systems else ''}{len(frequent):,}"
    raise RecipeError(
        f"{survey.n_examples:,} rows have {count_text} different system messages, and a recipe has one instruction: "
        "these are several tasks, or the message has text that varies (a date, a name). Choose one:\n"
        + "\n".join(lines + remainder),
        code="INS-D037",
    )


def _choose_source(
    train: Path, test: Path | None, recipe_path: Path, survey: Survey, system: str, task: InferredTask
) -> RecipeSource:
    """Return the source of the recipe.

    It is the given file if data preparation reads the same rows from it, else a converted file.
    """
    is_log = survey.format in LOG_FORMATS
    has_several_systems = len(survey.systems) > 1
    preamble = find_preamble(survey.sample_texts[system])
    if INPUT_PLACEHOLDER in preamble.prefix + preamble.suffix:
        preamble = Preamble()  # {input} in the preamble would be ambiguous
    in_place = survey.readable_in_place and not is_log and not preamble
    if has_several_systems and (task.kind == "preference" or not survey.has_single_system or not system.strip()):
        in_place = False
    source = RecipeSource(train, test, {}, system, preamble, has_several_systems and in_place, None, 0.0, ())
    if in_place:
        pair = {"text": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
        return replace(source, columns=pair if task.kind == "preference" else {"messages": "messages"})
    answer = {"label": "answer"} if task.kind == "classification" else {"target": "answer"}
    columns = {"id": "id", "text": "text", **({} if task.kind == "preference" else answer)}
    name = recipe_path.stem
    return replace(
        source,
        train=recipe_path.with_name(f"{name}.train.jsonl" if test else f"{name}.rows.jsonl"),
        test=recipe_path.with_name(f"{name}.test.jsonl") if test else None,
        columns=columns,
        group="conversation" if survey.expanded else None,
        redact=redaction.PII_KINDS if is_log else (),
    )


def _choose_model(arguments: argparse.Namespace, survey: Survey, source: RecipeSource) -> IncumbentModel | None:
    """Return the model to compare with: the given one, or the most frequent chat model of a log; None without one."""
    if arguments.model:
        reason = "asked as it was taught; `make record` keeps its answers while it lives"
        return IncumbentModel(
            arguments.model, arguments.base_url, reason, is_fine_tuned=survey.format not in LOG_FORMATS
        )
    if arguments.base_url:
        raise RecipeError(
            "BASE_URL goes with MODEL, the name of the model (on Azure: of the deployment) at that address",
            code="INS-R012",
        )
    names = survey.models.most_common(1)
    if not names or not names[0][0].startswith(CHAT_MODEL_PREFIXES):
        return None
    return IncumbentModel(names[0][0], None, "who answered this log, asked as it was asked there", is_fine_tuned=False)


def _format_header(
    survey: Survey, outcome: ImportCounts, source: RecipeSource, model: IncumbentModel | None, train: Path
) -> list[str]:
    """Return the comments at the top of the recipe."""
    comments = [
        f"Made from {train.name} ({survey.format}, {outcome.selected:,} rows) by `make import`: read it, and change it."
    ]
    if survey.format in LOG_FORMATS:
        top_models = survey.models.most_common(1)
        author = f" of {top_models[0][0]}" if top_models else ""
        comments.append(
            f"The targets are answers{author} that nobody checked: a score against them says how often a model repeats "
            "them, and not how often it is right."
        )
    if not source.redact and outcome.pii_rows:
        kinds = ", ".join(sorted(outcome.pii_rows))
        counts = ", ".join(f"{kind} in {count:,} rows" for kind, count in sorted(outcome.pii_rows.items()))
        comments.append(f"Personal data: {counts}. `privacy: {{redact: [{kinds}]}}` replaces them.")
    if model and model.is_fine_tuned and source.test is None:
        comments.append(
            f"{model.name} was taught with these rows, so that a test split of them flatters it. Rows that it never "
            "saw would judge it: make import TEST=..."
        )
    if model and source.preamble:
        comments.append("What every text begins or ends with was cut off it, and stands in the instruction.")
    return comments


def _format_report(
    survey: Survey,
    task: InferredTask,
    source: RecipeSource,
    outcome: ImportCounts,
    model: IncumbentModel | None,
    converted: Sequence[Path],
    dry_run: bool,
) -> list[str]:
    """Return the lines to print: what was read, the task and its reason, unusable rows, and the files written."""
    lines = [f"read      {survey.lines_read:,} lines: {survey.format}", f"task      {task.kind}: {task.reason}"]
    if survey.problems:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in survey.problems.most_common())
        lines.append(f"unusable  {counts}; {outcome.usable:,} of {outcome.selected:,} rows can be used")
        lines += [f"          {line}" for line in survey.shown_problems]
    if outcome.other_system:
        n_other_systems = len(survey.systems) - 1
        lines.append(f"left out  {outcome.other_system:,} rows with {n_other_systems:,} other system messages")
    elif len(survey.systems) > 1:
        lines.append(f"note      {len(survey.systems):,} system messages; the recipe has the most frequent one")
    if task.n_rare_labels:
        lines.append(
            f"left out  {task.n_rare_labels:,} answers of fewer than {task.min_rows} rows, which are no labels"
        )
    if survey.multi_turn_rows:
        turns_note = "several turns: their text bears the role of each, for the tuned model and for others"
        lines.append(f"note      {survey.multi_turn_rows:,} rows have {turns_note}")
    if outcome.pii_rows:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(outcome.pii_rows.items()))
        lines.append(
            f"personal  {counts} rows" + (", replaced by placeholders" if source.redact else "; see the recipe")
        )
    if outcome.duplicates or outcome.near_duplicates:
        scope = (
            f", of the first {import_rows.COMPARED_ROWS:,}" if len(outcome.keys) == import_rows.COMPARED_ROWS else ""
        )
        similar_note = (
            f"{outcome.duplicates:,} rows say what another one says, and {outcome.near_duplicates:,} nearly that"
        )
        lines.append(f"same      {similar_note}{scope}")
    if len(survey.models) > 1:
        lines.append(
            f"note      answers of {', '.join(f'{name} ({count:,})' for name, count in survey.models.most_common())}"
        )
    if model and task.kind == "preference":
        lines.append(f"note      {model.name} is no baseline: an API tells no probability of a given answer")
    if model and model.is_fine_tuned and source.test is None and task.kind != "preference":
        lines.append(f"note      {model.name} was taught with these rows: give rows that it never saw as TEST=...")
    for path in converted:
        verb = "would write" if dry_run else "wrote    "
        lines.append(f"{verb} {_display_path(path)}: the rows, converted: {_conversion_reason(survey, source)}")
    return lines


def _conversion_reason(survey: Survey, source: RecipeSource) -> str:
    """Return the reason why the rows are converted."""
    if survey.format in LOG_FORMATS:
        return "a log is no table of rows; personal data are replaced"
    if source.preamble:
        return "all texts have a beginning or an end in common"
    if survey.expanded:
        return "each answer of a conversation that is learnt is a row of its own"
    return (
        "an answer of weight 0 is not learnt"
        if not survey.readable_in_place
        else "rows of another system message are left out"
    )


def _abbreviate(text: str) -> str:
    """Return the text on one line, cut to MAX_SYSTEM_CHARACTERS."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_SYSTEM_CHARACTERS else flat[: MAX_SYSTEM_CHARACTERS - 3] + "..."


def _display_path(path: Path) -> str:
    """Return the path relative to the working directory if it is inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
