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

from data_prep.importer import download_check, import_rows, recipe_text, report_text, task_inference
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
MAX_SYSTEMS_SHOWN = 5
# Below this fraction of usable rows the file is probably of another format.
MIN_USABLE_FRACTION = 0.5
MIN_ROWS = 10
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
    for path in paths:
        download_check.check_download(path)
    survey = import_rows.survey_files(paths)
    _check_usable(survey, survey.n_examples, survey.n_examples + survey.problems.total())
    system = _choose_system(survey, arguments.system)
    task = task_inference.infer_task(survey.answers[system], survey.preference_pairs)
    source = _choose_source(train, test, recipe_path, survey, system, task)
    model = _choose_model(arguments, survey)
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
        report = report_text.format_report(survey, task, final_source, outcome, model, converted, dry_run)
        text = recipe_text.render_recipe(
            recipe_path.parent,
            report_text.format_header(survey, outcome, final_source, model, paths),
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
    print(*report, *report_text.format_next_commands(recipe_path, model, task), sep="\n", file=sys.stderr)
    print(recipe_path)
    return cli.OK


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
            f"{report_text.display_path(existing[0])} exists already and may have your changes; give another name with "
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
    """Return the system message of the rows to import, without white space around it.

    Raise RecipeError if it is ambiguous.
    """
    frequent = survey.systems.most_common()
    if number is not None:
        if not 1 <= number <= len(frequent):
            raise RecipeError(f"SYSTEM: given {number}, allowed: 1 to {len(frequent)}", code="INS-R011")
        return frequent[number - 1][0]
    system, n_rows = frequent[0]
    if n_rows >= MIN_SYSTEM_FRACTION * survey.n_examples:
        return system
    lines = [
        f"  SYSTEM={rank}  {count:,} rows  {report_text.abbreviate(message) or '(no system message)'}"
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
    is_log = survey.format in report_text.LOG_FORMATS
    has_several_systems = len(survey.systems) > 1
    preamble = find_preamble(survey.sample_texts[system])
    if INPUT_PLACEHOLDER in preamble.prefix + preamble.suffix:
        preamble = Preamble()  # {input} in the preamble would be ambiguous
    if preamble:
        survey.require_conversion("the common beginning or end of all texts moves into the instruction")
    spellings = survey.system_spellings[system].most_common()
    is_filterable = survey.has_plain_system and len(spellings) == 1 and system != ""
    if has_several_systems and (task.kind == "preference" or not is_filterable):
        survey.require_conversion("rows with another system message are left out")
    in_place = not survey.conversion_reasons
    source = RecipeSource(train, test, {}, spellings[0][0], preamble, has_several_systems and in_place, None, 0.0, ())
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


def _choose_model(arguments: argparse.Namespace, survey: Survey) -> IncumbentModel | None:
    """Return the model to compare with: the given one, or the most frequent chat model of a log; None without one."""
    if arguments.model:
        reason = "gets the messages of its training; `make record` saves its answers before its shutdown"
        return IncumbentModel(
            arguments.model, arguments.base_url, reason, is_fine_tuned=survey.format not in report_text.LOG_FORMATS
        )
    if arguments.base_url:
        raise RecipeError(
            "BASE_URL goes with MODEL, the name of the model (on Azure: of the deployment) at that address",
            code="INS-R012",
        )
    names = survey.models.most_common(1)
    if not names or not names[0][0].startswith(CHAT_MODEL_PREFIXES):
        return None
    reason = "answered the requests of this log, and gets their messages"
    return IncumbentModel(names[0][0], None, reason, is_fine_tuned=False)
