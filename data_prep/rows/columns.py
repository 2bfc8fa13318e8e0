"""The columns of a file that a recipe needs, and the errors for missing ones.

recipe    columns: {text: mail.body, label: queue}, where: {language: en}
needed    {"data.columns.text": "mail.body", "data.columns.label": "queue", "data.where.language": "language"}
"""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.readers import dotted_paths
from data_prep.readers.csv_format import NO_HEADER_HINT, looks_like_names
from data_prep.readers.source_row import LABELLED
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema import json_schema_subset
from insource.config.schema.data import By
from insource.tasks import TASKS

# Limits of the columns in a message, and of the characters of a name.
MAX_COLUMNS_SHOWN, MAX_NAME_CHARACTERS = 20, 40
MAX_MISSING_SHOWN = 6


def needed_columns(recipe: Recipe, split: str) -> dict[str, str]:
    """Return {recipe key: column} of all columns that a file of this split ("all" or its name) must have.

    A labelled file has the columns of the unlabelled rows, which may lack those for groups, times and slices.
    """
    columns = recipe.data.columns
    answer = TASKS[recipe.task.task_name].answer_columns(recipe)
    needed: dict[str, str | None] = {"data.columns.id": columns.id, **input_columns(recipe)}
    if columns.messages is None:
        needed |= answer
    if split in ("all", "train"):
        needed |= {"data.split.group": recipe.data.split.group, "data.split.time": recipe.data.split.time}
    needed |= {f"data.where.{column}": column for column in recipe.data.where}
    fields = field_names(recipe)
    if split != LABELLED:
        slices = slice_columns(recipe).items()
        needed |= {f"data.slices.{name}": column for name, column in slices if column not in fields}
    return {key: column for key, column in needed.items() if column is not None}


def input_columns(recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of the columns of the input."""
    columns = recipe.data.columns
    if columns.messages is not None:
        return {"data.columns.messages": columns.messages}
    numbered = len(columns.texts) > 1
    return {f"data.columns.text{f'[{index}]' if numbered else ''}": name for index, name in enumerate(columns.texts)}


def check_input_columns(file: str, values: Mapping[str, object], recipe: Recipe) -> None:
    """Raise RecipeError with every missing input column and the most similar existing one.

    Columns of answers may be missing.
    """
    missing = {key: name for key, name in input_columns(recipe).items() if name not in values}
    _check_missing(file, missing, values)


def columns_to_read(recipe: Recipe, split: str) -> list[str]:
    """Return the columns that a reader of a file of this split should look for.

    These are the needed columns, the columns of record fields, and the roots of dotted names.
    """
    columns = [*needed_columns(recipe, split).values()]
    columns += (
        field_names(recipe) if recipe.data.columns.target is None and not recipe.data.columns.slot_columns else []
    )
    return dotted_paths.add_roots(columns)


def find_missing_columns(split: str, present: Collection[str], recipe: Recipe) -> dict[str, str]:
    """Return {recipe key: column} of the needed columns that are not in `present`.

    One column of data.columns.targets is sufficient: test files often have more of them than train files.
    """
    needed, answers = needed_columns(recipe, split), recipe.data.columns.target_columns
    optional = answers if any(column in present for column in answers.values()) else {}
    return {key: column for key, column in needed.items() if column not in present and key not in optional}


def check_columns(file: str, split: str, values: Mapping[str, object], recipe: Recipe) -> None:
    """Raise RecipeError with every needed column that a row lacks and the most similar existing one."""
    _check_missing(file, find_missing_columns(split, values, recipe), values)


def _check_missing(file: str, missing_columns: Mapping[str, str], values: Mapping[str, object]) -> None:
    """Raise RecipeError if a column is missing, with hints."""
    missing, present = [], list(values)
    for key, column in missing_columns.items():
        matches = get_close_matches(column, [*present, *(dotted_paths.list_paths(values) if "." in column else ())], 1)
        hint = f"; did you mean {matches[0]!r}?" if matches else ""
        if key == "data.columns.target" and (
            numbered := [candidate for candidate in present if _is_numbered(candidate, column)]
        ):
            hint = f"; data.columns.targets: [{', '.join([column, *numbered])}] takes whichever are there"
        missing.append(f"  {key}: there is no column {column!r}{hint}")
    if missing:
        display_names = [
            name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}..." for name in present
        ]
        remainder = (
            f" and {len(display_names) - MAX_COLUMNS_SHOWN} more" if len(display_names) > MAX_COLUMNS_SHOWN else ""
        )
        overflow = [f"  and {len(missing) - MAX_MISSING_SHOWN} more"] if len(missing) > MAX_MISSING_SHOWN else []
        lines = [f"{file} lacks columns that the recipe names:", *missing[:MAX_MISSING_SHOWN], *overflow]
        lines.append(f"  It has: {', '.join(display_names[:MAX_COLUMNS_SHOWN])}{remainder}")
        if Path(file).suffix.lower() not in (".json", ".jsonl", ".ndjson", ".parquet") and not looks_like_names(
            present
        ):
            lines.append(f"  Its first line does not look like names of columns: {NO_HEADER_HINT}.")
        raise RecipeError("\n".join(lines), code="INS-D021")


def check_answer_columns(
    missing_by_file: Collection[Collection[str]], present: Collection[str], recipe: Recipe
) -> None:
    """Raise RecipeError if no file has some column of data.columns.targets.

    `missing_by_file` has the columns that each file lacks.
    """
    for key, column in recipe.data.columns.target_columns.items():
        if present and all(column in missing for missing in missing_by_file):
            matches = get_close_matches(column, list(present), 1)
            hint = f"; did you mean {matches[0]!r}?" if matches else "; leave it out"
            raise RecipeError(
                f"{key}: there is no column {column!r}{hint} (of {len(missing_by_file)} files none has it)",
                code="INS-D021",
            )


def _is_numbered(name: str, column: str) -> bool:
    """Return whether a name is a column name with a number: summary2 for summary."""
    return re.fullmatch(rf"{re.escape(column)}[-_ ]?[0-9]+", name) is not None


def slice_columns(recipe: Recipe) -> dict[str, str]:
    """Return {slice: its column, or its field of the record}."""
    return {name: spec.by if isinstance(spec, By) else spec.not_in_train for name, spec in recipe.data.slices.items()}


def field_names(recipe: Recipe) -> list[str]:
    """Return the fields of an extraction task, in schema order; [] for other tasks."""
    schema: Any = recipe.task.json_schema
    return list(schema["properties"]) if schema else []


def field_paths(recipe: Recipe) -> list[str]:
    """Return the fields of an extraction task in schema order, each followed by the paths of the values inside it.

    The data report has a row for each.
    """
    values = json_schema_subset.list_paths(recipe.task.json_schema) if recipe.task.json_schema else []
    paths = [[field, *(path for path in values if path.startswith(f"{field}."))] for field in field_names(recipe)]
    return list(dict.fromkeys(chain.from_iterable(paths)))
