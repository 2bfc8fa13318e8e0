"""INPUT as rows: its files, a survey of them, and segments of rows that are ready to be queried.

INPUT is read twice as a stream: once to count its rows and columns, once to query the rows. The readers of data
preparation read it, with the recipe's options of data.source and its input columns. data.where is not applied: every
row gets an answer or a reason.
"""

import fnmatch
import glob
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.readers import dotted_paths, limits, read, sources
from data_prep.readers.source_row import FileInfo, SourceFile, SourceRow
from data_prep.rows import input_text
from data_prep.rows.columns import check_input_columns, input_columns
from deploy.answers.request_errors import RequestError
from deploy.answers.task import Task
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.source import Source
from insource.tasks.pii import redaction
from insource.tasks.pii.inputs import CleanedInput
from insource.tasks.source_record import UnusableRowError, to_text
from predict.rows.column_types import ColumnTypes

SEGMENT_ROWS = 5000
"""Maximum rows of a segment, which has one journal and one part of the output."""
TYPE_CHUNK_ROWS = 1000
"""Rows of a file after which every input column must have occurred: JSON objects may omit empty columns."""
LOCATION_KEYS = ("path", "paths", "hub", "revision", "config", "train", "validation", "calibration", "test", "labelled")
"""Keys of data.source that say where the recipe's own rows are. INPUT replaces them."""


@dataclass(frozen=True)
class InputRow:
    """A row of INPUT: its columns in the output, and its input for the model."""

    columns: Mapping[str, Any]
    """The row's own columns, redacted by privacy.redact; {} if the row cannot be read."""
    raw_input: str = ""
    """Its input as the file contains it."""
    task_input: CleanedInput | None = None
    """Its input after preparation; None if the row cannot be queried."""
    refusal: str | None = None
    """The reason if the row cannot be queried."""


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of INPUT."""

    number: int
    rows: list[InputRow]


@dataclass(frozen=True)
class InputSurvey:
    """Files, rows and columns of INPUT."""

    files: list[dict[str, Any]]
    """{"file", "sha256", "rows"} of each file."""
    rows: int
    types: ColumnTypes
    """The columns of all files, in the order of first appearance."""


def make_source(recipe: Recipe, pattern: str) -> Source:
    """Return INPUT as a source with the recipe's own options (encoding, delimiter, header, sheet, limits)."""
    options = recipe.data.source.model_dump(exclude=set(LOCATION_KEYS))
    return Source.model_validate({**options, "paths": [pattern]})


def find_input_files(source: Source, pattern: str) -> list[SourceFile]:
    """Return the files that INPUT matches. Raise RecipeError if none of them can be read."""
    try:
        return sources.find_files(source)
    except RecipeError as error:
        raise error.with_message(str(error).replace("data.source.paths[0]", "INPUT")) from None


def check_output(output: Path, pattern: str, files: list[SourceFile]) -> None:
    """Raise RecipeError if the output would be a part of the input: the next call would read it."""
    folder = Path(pattern)
    is_inside = folder.is_dir() and folder.resolve() in output.resolve().parents
    would_match = not folder.exists() and _would_match(output, pattern)
    if is_inside or would_match or output.resolve() in {file.path.resolve() for file in files}:
        raise RecipeError(f"OUTPUT: {output} is a part of INPUT={pattern}; give another folder", code="INS-P002")


def _would_match(output: Path, pattern: str) -> bool:
    """Return whether a pattern would match a file that may not exist yet. After `**` any folder matches."""
    parts = Path(pattern).absolute().parts
    n_fixed = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    path, root = output.absolute(), Path(*parts[:n_fixed])
    name_fits = fnmatch.fnmatchcase(path.name, parts[-1]) or parts[-1] == "**"
    if not name_fits or root.resolve() not in path.resolve().parents:
        return False
    relative_parts = path.resolve().relative_to(root.resolve()).parts
    return "**" in parts or (
        len(relative_parts) == len(parts) - n_fixed and all(map(fnmatch.fnmatchcase, relative_parts, parts[n_fixed:]))
    )


def survey_input(files: list[SourceFile], source: Source, recipe: Recipe, with_types: bool) -> InputSurvey:
    """Return the files, rows and columns of INPUT; infer column types if `with_types`.

    Raise RecipeError if a file cannot be read, lacks an input column or has no rows.
    """
    types, file_infos, total = ColumnTypes(), list[dict[str, Any]](), 0
    for file in files:
        sha256 = sources.sha256(file, source)
        rows, seen_columns = 0, dict[str, Any]()
        file_info, chunks = _open_chunks(file, source, recipe)
        for chunk in chunks:
            for row in chunk:
                if not _has_input_columns(seen_columns, recipe):
                    seen_columns |= _with_nested_columns(row.values, recipe)
                    if rows >= TYPE_CHUNK_ROWS:
                        check_input_columns(file.name, seen_columns, recipe)
                rows += 1
            # Only names are needed without types; to redact all values took half of the survey's time.
            columns = [row.values for row in chunk] if with_types else _list_column_sets(chunk)
            types.add([output_columns(values, recipe) for values in columns], with_types)
        if not rows:
            raise RecipeError(f"INPUT: {file.name}: the file has no rows", code="INS-D007")
        if seen_columns:
            check_input_columns(file.name, seen_columns, recipe)
        total += rows
        unread = {"columns_not_read": names} if (names := file_info.get("columns_not_read")) else {}
        file_infos.append({"file": file.name, "sha256": sha256, "rows": rows, **unread})
    return InputSurvey(file_infos, total, types)


def _list_column_sets(chunk: list[SourceRow]) -> list[Mapping[str, Any]]:
    """Return the different sets of columns of rows, in the order of their first row, without values."""
    return [dict.fromkeys(names) for names in dict.fromkeys(tuple(row.values) for row in chunk)]


def is_unchanged(survey: InputSurvey, files: list[SourceFile], source: Source) -> bool:
    """Return whether the files have the same hashes as during the survey."""
    return [info["sha256"] for info in survey.files] == [sources.sha256(file, source) for file in files]


def iter_segments(
    files: list[SourceFile], source: Source, task: Task, recipe: Recipe, is_done: Callable[[int], bool]
) -> Iterator[Segment | None]:
    """Yield the rows of the files in segments; None for a segment that is done, whose rows are not prepared."""
    number = 0
    for file in files:
        for chunk in iter_chunks(file, source, recipe):
            yield None if is_done(number) else Segment(number, [make_row(row, task, recipe) for row in chunk])
            number += 1


def make_row(source: SourceRow, task: Task, recipe: Recipe) -> InputRow:
    """Return a source row as an InputRow, with the reason if it cannot be queried."""
    columns = output_columns(source.values, recipe)
    if source.problem:
        problem = _redact_text(source.problem, recipe)
        return InputRow(columns, refusal=f"unreadable: {source.file}:{source.line}: {problem}")
    try:
        raw_input = input_text.extract_input(source.values, recipe)
        return InputRow(columns, raw_input, task.prepare(raw_input))
    except UnusableRowError as error:
        return InputRow(columns, refusal=f"{error.reason}: {_redact_text(error.detail, recipe)}")
    except RequestError as error:
        return InputRow(columns, refusal=f"unusable_input: {_redact_text(str(error), recipe)}")


def output_columns(values: Mapping[str, object], recipe: Recipe) -> Mapping[str, object]:
    """Return a row's columns as the output contains them, redacted by privacy.redact.

    Input columns get the placeholders that the model reads. All other columns get pseudonyms, so that ids still join.
    Names of columns and keys get pseudonyms too.
    """
    kinds = recipe.privacy.redact
    if not kinds:
        return values
    text_columns = {name.partition(".")[0] for name in input_columns(recipe).values()}
    return {
        redaction.pseudonymize(name, kinds): _redact_value(value, kinds, name in text_columns)
        for name, value in values.items()
    }


def _redact_value(value: object, kinds: Collection[str], is_text: bool) -> object:
    if isinstance(value, dict):
        return {
            redaction.pseudonymize(name, kinds) if isinstance(name, str) else name: _redact_value(item, kinds, is_text)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redact_value(item, kinds, is_text) for item in value]
    if value is None or isinstance(value, bool):
        return value
    text = to_text(value)
    redacted = redaction.redact(text, kinds).text if is_text else redaction.pseudonymize(text, kinds)
    return value if redacted == text else redacted


def _redact_text(text: str, recipe: Recipe) -> str:
    kinds = recipe.privacy.redact
    redacted = redaction.redact(text, kinds).text if kinds else text
    return redacted.encode(errors="backslashreplace").decode()


def iter_chunks(file: SourceFile, source: Source, recipe: Recipe) -> Iterator[list[SourceRow]]:
    """Yield the rows of a file in chunks of SEGMENT_ROWS, fewer if rows are large.

    Chunks are the same at each reading.
    """
    return _open_chunks(file, source, recipe)[1]


def _open_chunks(file: SourceFile, source: Source, recipe: Recipe) -> tuple[FileInfo, Iterator[list[SourceRow]]]:
    """Return what the reader detected in a file, and its rows in chunks."""
    columns = dotted_paths.add_roots(input_columns(recipe).values())
    info, rows = read.read(file, source, columns)
    return info, limits.split_into_chunks(rows, SEGMENT_ROWS, lambda row: limits.estimate_bytes(row.values))


def _with_nested_columns(values: Mapping[str, object], recipe: Recipe) -> dict[str, object]:
    return {**values, **dotted_paths.resolve_columns(values, [*input_columns(recipe).values()])}


def _has_input_columns(columns: Mapping[str, object], recipe: Recipe) -> bool:
    return all(column in columns for column in input_columns(recipe).values())
