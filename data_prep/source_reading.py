"""All source files into one table of rows, with what was detected in each file."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import data_checks, parallel
from data_prep.readers import dotted_paths, read
from data_prep.readers.source_row import LABELLED, FileInfo, SourceFile, SourceRow
from data_prep.row_table import Table, TableWriter
from data_prep.rows import labelled_rows
from data_prep.rows.columns import check_answer_columns, check_columns, columns_to_read, find_missing_columns
from data_prep.rows.data_row import Rejected, Row
from data_prep.rows.row_filter import RowFilter
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS
from insource.tracking.data_report import SourceReport

# JSON objects may omit keys without a value: all columns must occur within this many rows.
COLUMN_CHECK_ROWS = 1000


@dataclass(frozen=True)
class ReadRows:
    """The rows of all files, and the findings of reading them."""

    table: Table
    rejected: list[Rejected]
    sources: list[SourceReport]
    """One per file."""
    filtered: int
    """Number of rows that data.where filters out."""
    unlabelled: int
    """Number of rows of labelled files that nobody has labelled."""
    unmatched: list[str]
    """One line per value in data.where that no row has."""


def read_sources(
    files: list[SourceFile],
    hashes: list[str],
    recipe: Recipe,
    work_folder: Path,
    pool: parallel.WorkerPool,
    teacher_rows: Sequence[Row],
) -> ReadRows:
    """Read all files into a table. Raise RecipeError if a file has no rows, or if too many rows cannot be used."""
    rejected: list[Rejected] = []
    filtered, unlabelled, row_filter, columns = 0, 0, RowFilter(recipe.data.where), set[str]()
    source_info: list[SourceReport] = []
    with TableWriter(work_folder, recipe) as writer:
        for file, sha256 in zip(files, hashes, strict=True):
            is_labelled_file = file.split == LABELLED
            source = labelled_rows.make_labelled_source(recipe.data.source) if is_labelled_file else recipe.data.source
            info, rows = read.read(file, source, columns_to_read(recipe, file.split))
            counter = _CountingReader(rows, file, recipe, row_filter)
            given_split = -1 if file.split == "all" else SPLITS.index("train" if is_labelled_file else file.split)
            rejected += writer.add(given_split, counter, pool)
            if not counter.rows_read:
                location = " below the header" if file.kind in ("csv", "tsv", "xlsx") else " in it"
                raise RecipeError(f"{file.name}: the file has no rows{location}", code="INS-D007")
            filtered += counter.rows_filtered
            unlabelled += counter.rows_unlabelled
            columns |= counter.columns
            source_info.append(_describe_source(file, sha256, info, counter))
            _print_notes(file, info)
        writer.add_teacher_rows(teacher_rows)
        table = writer.table()
    check_answer_columns([source.lacks_answers for source in source_info], columns, recipe)
    data_checks.check_rejected(rejected, len(table), filtered, row_filter.list_unmatched(), recipe)
    return ReadRows(table, rejected, source_info, filtered, unlabelled, row_filter.list_unmatched())


def _describe_source(file: SourceFile, sha256: str, info: FileInfo, counter: "_CountingReader") -> SourceReport:
    """Return the entry of data.json of a file that was read."""
    optional = {"bytes": file.path.stat().st_size} if file.path.is_file() else {}
    optional |= {"rows_unlabelled": counter.rows_unlabelled} if file.split == LABELLED else {}
    return SourceReport(
        split=file.split,
        file=file.name,
        sha256=sha256,
        rows_read=counter.rows_read,
        detected=info,
        lacks=sorted(counter.missing),
        lacks_answers=sorted(counter.missing_answers),
        **optional,
    )


def _print_notes(file: SourceFile, info: FileInfo) -> None:
    """Print a line if the encoding of a file is a guess, and a line if it has arrays that are not read."""
    if info.get("encoding_guessed"):
        note = f"{file.name} is not UTF-8: read as {info['encoding']}, a guess; set data.source.encoding if it is wrong"
        print(f"data      {note}", file=sys.stderr)
    if unread_arrays := info.get("arrays_not_read"):
        note = f"{file.name}: the rows are those of {info['array']!r}; not read: {', '.join(unread_arrays[:10])}"
        print(f"data      {note}", file=sys.stderr)


class _CountingReader:
    """Iterator over the rows of a file that counts them, checks their columns and applies data.where.

    `missing` has the columns for groups and times that no row of the file has; held-out files do not need them.
    `missing_answers` has the target columns that no row has. `columns` has the columns of the first rows.
    """

    def __init__(self, rows: Iterator[SourceRow], file: SourceFile, recipe: Recipe, row_filter: RowFilter) -> None:
        self.rows_read = self.rows_filtered = self.rows_unlabelled = 0
        self._source_rows, self._file, self._recipe, self._row_filter = rows, file, recipe, row_filter
        settings = recipe.data.split
        self.columns = set[str]()
        self.missing = {column for column in (settings.group, settings.time) if column is not None}
        self.missing_answers = {*recipe.data.columns.target_columns.values()}

    def __iter__(self) -> Iterator[SourceRow]:
        is_filtered, seen = bool(self._recipe.data.where), dict[str, Any]()
        nested_columns = [column for column in columns_to_read(self._recipe, "all") if "." in column]
        complete = False
        for row in self._restored_rows():
            if nested_columns and not row.problem:
                row.values.update(dotted_paths.resolve_columns(row.values, nested_columns))
            if not complete and not row.problem:
                seen |= row.values
                complete = self._has_all_columns(seen)
                self.columns.update(seen)
            self.rows_read += 1
            if self.missing:
                self.missing.difference_update(row.values)
            if self.missing_answers:
                self.missing_answers.difference_update(row.values)
            if is_filtered and not row.problem and not self._row_filter.accepts(row.values):
                self.rows_filtered += 1
            else:
                yield row
        if seen and not complete:
            check_columns(str(self._file.path), self._file.split, seen, self._recipe)

    def _restored_rows(self) -> Iterator[SourceRow]:
        """Yield the rows of the file; of a labelled file, those that a person has labelled."""
        if self._file.split != LABELLED:
            yield from self._source_rows
            return
        for row in labelled_rows.iter_labelled(self._source_rows, self._file, self._recipe):
            if row is None:
                self.rows_read += 1
                self.rows_unlabelled += 1
            else:
                yield row

    def _has_all_columns(self, seen: Mapping[str, object]) -> bool:
        """Return whether the rows so far have every column that the recipe names.

        Raise RecipeError if a column is missing and no later row can have it.
        """
        complete = not find_missing_columns(self._file.split, seen, self._recipe)
        if not complete and (self._file.kind not in ("json", "jsonl") or self.rows_read >= COLUMN_CHECK_ROWS):
            check_columns(str(self._file.path), self._file.split, seen, self._recipe)
        return complete
