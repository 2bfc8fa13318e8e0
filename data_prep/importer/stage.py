"""An import from top to bottom: look at the rows, decide what task they are, write the recipe, say why.

Called again it changes nothing: a recipe that is there is written over only where that is asked for.
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
# Below this share of usable rows a file is something else than it looks like.
MIN_USABLE_FRACTION = 0.5
MIN_ROWS = 10
LOG_FORMATS = ("a log of API calls", "OpenTelemetry spans (OTLP)", "OpenTelemetry spans")
CHAT_MODEL_PREFIXES = ("gpt-", "chatgpt-", "o1", "o3", "o4", "ft:", "claude", "anthropic.claude")


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises RecipeError where the rows make no recipe: then nothing is written."""
    if not arguments.source:
        raise RecipeError("FROM: give the file of the fine-tune, or of the log: make import FROM=train.jsonl")
    train, test = _absolute_path(arguments.source), _absolute_path(arguments.test) if arguments.test else None
    to = _choose_recipe_path(train, arguments.to)
    paths = [train] if test is None else [train, test]
    survey = import_rows.survey_files(paths)
    _check_usable(survey, survey.examples, survey.examples + survey.problems.total())
    system = _choose_system(survey, arguments.system)
    task = task_inference.infer_task(survey.answers[system], survey.preferences)
    chosen = _choose_source(train, test, to, survey, system, task)
    model = _choose_model(arguments, survey, chosen)
    answers = survey.answers[system]
    draft = recipe_text.render_recipe(to.parent, [], task, chosen, model, answers)
    recipe = _parse_recipe(draft)
    outcome = ImportCounts()
    converted = [chosen.train, chosen.test] if chosen.train != train else []
    dry = arguments.dry_run
    if not dry:
        _check_no_overwrite([to, *(one for one in converted if one)], arguments.force)
        to.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        writers = [opened.enter_context(ConvertedFile(Path(os.devnull) if dry else one)) for one in converted if one]
        for at, path in enumerate(paths):
            import_rows.check_rows(path, recipe, chosen, survey, outcome, writers[at] if writers else None)
        import_rows.count_near_duplicates(outcome)
        _check_usable(survey, outcome.usable, outcome.meant)
        unusable = 0.0 if writers else outcome.unusable_share
        final = replace(chosen, unusable_share=unusable)
        told = _format_report(survey, task, final, outcome, model, [one for one in converted if one], dry)
        text = recipe_text.render_recipe(
            to.parent, _format_header(survey, outcome, final, model, train), task, final, model, answers
        )
        if dry:
            print(*told, sep="\n", file=sys.stderr)
            print(text, end="")
            return cli.OK
        try:
            for writer in writers:
                writer.keep()
            atomic_files.write_text(to, text)
        except OSError:
            for writer in writers:
                writer.path.unlink(missing_ok=True)
            raise
    load(str(to), (), "gpu")
    print(*told, sep="\n", file=sys.stderr)
    print(
        f"next      make data RECIPE={_display_path(to)}    then look at data.html, and at the recipe", file=sys.stderr
    )
    if model and model.taught and task.kind != "preference":
        print(f"          make record RECIPE={_display_path(to)}    while {model.name} lives", file=sys.stderr)
    print(to)
    return cli.OK


def _parse_recipe(draft: str) -> Recipe:
    """The recipe of a text. Raises RecipeError where the rows, or the model asked for, make none that is valid."""
    try:
        return Recipe.model_validate(YAML(typ="safe").load(draft))
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise RecipeError(f"no recipe can be made of these rows: {told}") from None


def _absolute_path(given: str) -> Path:
    return Path(given).expanduser().absolute()


def _choose_recipe_path(train: Path, given: str | None) -> Path:
    """Where the recipe goes: as asked, else into recipes/ by the name of the file."""
    if given:
        path = _absolute_path(given)
        if path.suffix not in (".yaml", ".yml"):
            raise RecipeError(f"TO: given {given}; a recipe is a .yaml file, such as recipes/tickets.yaml")
        return path
    name = train.name.split(".")[0].strip("*?[]-_ ") or "imported"
    return RECIPES / f"{name}.yaml"


def _check_no_overwrite(paths: Sequence[Path], forced: bool) -> None:
    """Raises RecipeError where a file would be written over that nobody asked to replace."""
    if not forced and (there := [one for one in paths if one.exists()]):
        raise RecipeError(
            f"{_display_path(there[0])} is there already, and may hold your changes; give another name with "
            "TO=recipes/NAME.yaml, or replace it with FORCE=1"
        )


def _check_usable(survey: Survey, usable: int, read: int) -> None:
    if usable >= MIN_ROWS and usable >= MIN_USABLE_FRACTION * read:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in survey.problems.most_common()) or "none were read"
    shown = "\n".join(f"  {line}" for line in survey.shown)
    raise RecipeError(
        f"{usable:,} of {read:,} rows can be used ({reasons}); a recipe needs at least {MIN_ROWS}, and most of the "
        f"rows:\n{shown}"
        if shown
        else f"{usable:,} rows can be used; a recipe needs at least {MIN_ROWS}"
    )


def _choose_system(survey: Survey, number: int | None) -> str:
    """The system message of the rows that are meant. Raises RecipeError where it is not plain which."""
    frequent = survey.systems.most_common()
    if number is not None:
        if not 1 <= number <= len(frequent):
            raise RecipeError(f"SYSTEM: given {number}; there are {len(frequent):,} system messages")
        return frequent[number - 1][0]
    system, rows_of_it = frequent[0]
    if rows_of_it >= MIN_SYSTEM_FRACTION * survey.examples:
        return system
    shown = [
        f"  SYSTEM={at}  {count:,} rows  {_abbreviate(one) or '(no system message)'}"
        for at, (one, count) in enumerate(frequent[:MAX_SYSTEMS_SHOWN], start=1)
    ]
    more = [f"  and {len(frequent) - MAX_SYSTEMS_SHOWN:,} more"] if len(frequent) > MAX_SYSTEMS_SHOWN else []
    many = f"{'more than ' if survey.uncounted else ''}{len(frequent):,}"
    raise RecipeError(
        f"{survey.examples:,} rows have {many} different system messages, and a recipe has one instruction: "
        "these are several tasks, or the message holds what varies (a date, a name). Choose one:\n"
        + "\n".join(shown + more)
    )


def _choose_source(
    train: Path, test: Path | None, to: Path, survey: Survey, system: str, task: InferredTask
) -> RecipeSource:
    """What the recipe reads: the file as it is, wherever data preparation reads the same from it."""
    log = survey.format in LOG_FORMATS
    mixed = len(survey.systems) > 1
    preamble = find_preamble(survey.sample[system])
    if INPUT_PLACEHOLDER in preamble.before + preamble.after:
        preamble = Preamble()  # {input} could not be told from the place of the text
    in_place = survey.plain and not log and not preamble
    if mixed and (task.kind == "preference" or not survey.one_system or not system.strip()):
        in_place = False
    found = RecipeSource(train, test, {}, system, preamble, mixed and in_place, None, 0.0, ())
    if in_place:
        pair = {"text": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
        return replace(found, columns=pair if task.kind == "preference" else {"messages": "messages"})
    answer = {"label": "answer"} if task.kind == "classification" else {"target": "answer"}
    columns = {"id": "id", "text": "text", **({} if task.kind == "preference" else answer)}
    name = to.stem
    return replace(
        found,
        train=to.with_name(f"{name}.train.jsonl" if test else f"{name}.rows.jsonl"),
        test=to.with_name(f"{name}.test.jsonl") if test else None,
        columns=columns,
        group="conversation" if survey.expanded else None,
        redact=redaction.PII_KINDS if log else (),
    )


def _choose_model(arguments: argparse.Namespace, survey: Survey, chosen: RecipeSource) -> IncumbentModel | None:
    if arguments.model:
        why = "asked as it was taught; `make record` keeps its answers while it lives"
        return IncumbentModel(arguments.model, arguments.base_url, why, taught=survey.format not in LOG_FORMATS)
    if arguments.base_url:
        raise RecipeError(
            "BASE_URL goes with MODEL, the name of the model (on Azure: of the deployment) at that address"
        )
    names = survey.models.most_common(1)
    if not names or not names[0][0].startswith(CHAT_MODEL_PREFIXES):
        return None
    return IncumbentModel(names[0][0], None, "who answered this log, asked as it was asked there", taught=False)


def _format_header(
    survey: Survey, outcome: ImportCounts, chosen: RecipeSource, model: IncumbentModel | None, train: Path
) -> list[str]:
    """The first comments of the recipe."""
    head = [
        f"Made from {train.name} ({survey.format}, {outcome.meant:,} rows) by `make import`: read it, and change it."
    ]
    if survey.format in LOG_FORMATS:
        who = survey.models.most_common(1)
        by = f" of {who[0][0]}" if who else ""
        head.append(
            f"The targets are answers{by} that nobody checked: a score against them says how often a model repeats "
            "them, and not how often it is right."
        )
    if not chosen.redact and outcome.personal:
        kinds = ", ".join(sorted(outcome.personal))
        counts = ", ".join(f"{kind} in {count:,} rows" for kind, count in sorted(outcome.personal.items()))
        head.append(f"Personal data: {counts}. `privacy: {{redact: [{kinds}]}}` replaces them.")
    if model and model.taught and chosen.test is None:
        head.append(
            f"{model.name} was taught with these rows, so that a test split of them flatters it. Rows that it never "
            "saw would judge it: make import TEST=..."
        )
    if model and chosen.preamble:
        head.append("What every text begins or ends with was cut off it, and stands in the instruction.")
    return head


def _format_report(
    survey: Survey,
    task: InferredTask,
    chosen: RecipeSource,
    outcome: ImportCounts,
    model: IncumbentModel | None,
    converted: Sequence[Path],
    dry: bool,
) -> list[str]:
    """What is printed: what was read, what it is and why, what does not fit, what was written or would be."""
    lines = [f"read      {survey.read:,} lines: {survey.format}", f"task      {task.kind}: {task.why}"]
    if survey.problems:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in survey.problems.most_common())
        lines.append(f"unusable  {counts}; {outcome.usable:,} of {outcome.meant:,} rows can be used")
        lines += [f"          {line}" for line in survey.shown]
    if outcome.other_system:
        others = len(survey.systems) - 1
        lines.append(f"left out  {outcome.other_system:,} rows with {others:,} other system messages")
    elif len(survey.systems) > 1:
        lines.append(f"note      {len(survey.systems):,} system messages; the recipe has the most frequent one")
    if task.rare:
        lines.append(f"left out  {task.rare:,} answers of fewer than {task.least_rows} rows, which are no labels")
    if survey.several_turns:
        told = "several turns: their text bears the role of each, for the tuned model and for others"
        lines.append(f"note      {survey.several_turns:,} rows have {told}")
    if outcome.personal:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(outcome.personal.items()))
        lines.append(
            f"personal  {counts} rows" + (", replaced by placeholders" if chosen.redact else "; see the recipe")
        )
    if outcome.duplicates or outcome.near:
        among = (
            f", of the first {import_rows.COMPARED_ROWS:,}" if len(outcome.keys) == import_rows.COMPARED_ROWS else ""
        )
        said = f"{outcome.duplicates:,} rows say what another one says, and {outcome.near:,} nearly that"
        lines.append(f"same      {said}{among}")
    if len(survey.models) > 1:
        lines.append(
            f"note      answers of {', '.join(f'{name} ({count:,})' for name, count in survey.models.most_common())}"
        )
    if model and task.kind == "preference":
        lines.append(f"note      {model.name} is no baseline: an API tells no probability of a given answer")
    if model and model.taught and chosen.test is None and task.kind != "preference":
        lines.append(f"note      {model.name} was taught with these rows: give rows that it never saw as TEST=...")
    for path in converted:
        wrote = "would write" if dry else "wrote    "
        lines.append(f"{wrote} {_display_path(path)}: the rows, converted: {_conversion_reason(survey, chosen)}")
    return lines


def _conversion_reason(survey: Survey, chosen: RecipeSource) -> str:
    if survey.format in LOG_FORMATS:
        return "a log is no table of rows; personal data are replaced"
    if chosen.preamble:
        return "all texts have a beginning or an end in common"
    if survey.expanded:
        return "each answer of a conversation that is learnt is a row of its own"
    return "an answer of weight 0 is not learnt" if not survey.plain else "rows of another system message are left out"


def _abbreviate(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_SYSTEM_CHARACTERS else flat[: MAX_SYSTEM_CHARACTERS - 3] + "..."


def _display_path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
