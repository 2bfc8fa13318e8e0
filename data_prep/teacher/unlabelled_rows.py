"""The unlabelled rows of `data.teacher.source` that may be sent to a provider: cleaned, redacted, and not held out.

    unlabelled.csv:3  {"message": " Where is\\r\\nmy parcel", "customer": "C7"}
    Candidate("teacher/unlabelled.csv:3", "Where is\\nmy parcel", group="C7", ...)

A row is left out if it has no usable input, if its group is in a held-out split, or if it is not older than test in a
split by time. Duplicates of labelled rows, held-out ones included, are left out by the ranking
(`data_prep/selection/row_ranking.py`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.readers import dotted_paths, read, sources
from data_prep.readers.source_row import SourceFile, SourceRow
from data_prep.rows import input_text
from data_prep.rows.columns import check_input_columns, input_columns, slice_columns
from data_prep.rows.data_row import parse_row_time
from data_prep.rows.timestamps import parse_iso_seconds
from data_prep.split import HELD_OUT_SPLITS
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tasks.pii import inputs, redaction
from insource.tasks.source_record import UnusableRowError, check_characters, to_text
from insource.text.split_hash import hash_texts
from insource.tracking.data_report import DataReport

MAX_POOL_ROWS = 100_000
"""Unlabelled rows that are ranked; of more rows, those with the smallest keyed hashes of their texts."""
ID_PREFIX = "teacher/"


@dataclass(frozen=True)
class Candidate:
    """An unlabelled row that may be sent."""

    id: str
    text: str
    """Its input, cleaned and redacted."""
    group: str | None
    time: float | None
    """Seconds since 1970; None without data.split.time."""
    slices: Mapping[str, str]
    """{column: value} of the columns of data.slices."""
    pii_kinds: frozenset[str]
    file: str
    line: int


@dataclass
class Pool:
    """The candidates, and the numbers of all other rows."""

    candidates: list[Candidate] = field(default_factory=list)
    n_read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """{reason: rows}."""


@dataclass(frozen=True)
class Exclusions:
    """Rows that must not be sent, because they would link train with a held-out split."""

    groups: frozenset[str]
    """Groups of held-out rows."""
    test_from: float | None
    """The time at which test begins, in seconds since 1970; None without a split by time."""


def find_unlabelled_files(recipe: Recipe) -> list[SourceFile]:
    """Return the files of data.teacher.source. Raise RecipeError if there are none that can be read."""
    assert recipe.data.teacher is not None
    try:
        return sources.find_files(recipe.data.teacher.source)
    except RecipeError as error:
        raise RecipeError(str(error).replace("data.source", "data.teacher.source"), code=error.code) from None


def find_exclusions(recipe: Recipe, folder: Path) -> Exclusions:
    """Return the exclusions by the prepared rows of people in `folder`.

    Raise RecipeError if a split by time has given test rows: then no unlabelled row is known to be older than test.
    """
    groups: set[str] = set()
    if recipe.data.split.group is not None:
        for name in HELD_OUT_SPLITS:
            rows = atomic_files.read_jsonl(folder / f"{name}.jsonl")
            groups.update(row["group"] for row in rows if row["group"] is not None)
    if recipe.data.split.time is None:
        return Exclusions(frozenset(groups), None)
    cut = DataReport.read(folder).split.cut
    if cut is None or (seconds := parse_iso_seconds(cut)) is None:
        raise RecipeError(
            "data.teacher: with data.split.time and given test rows it is not known which unlabelled rows are older "
            "than test; leave data.split.time out",
            code="INS-D030",
        )
    return Exclusions(frozenset(groups), seconds)


def read_candidates(recipe: Recipe, files: list[SourceFile], exclusions: Exclusions) -> Pool:
    """Return the rows of the files that may be sent, at most MAX_POOL_ROWS.

    Raise RecipeError if a file cannot be read, lacks a column of the input, or has no rows.
    """
    assert recipe.data.teacher is not None
    pool, columns = Pool(), _columns_to_read(recipe)
    nested_columns = [column for column in columns if "." in column]
    names = dotted_paths.add_roots(columns)
    for file in files:
        n_before, missing, first_values = pool.n_read, {*input_columns(recipe).values()}, dict[str, Any]()
        for row in read.read(file, recipe.data.teacher.source, names)[1]:
            pool.n_read += 1
            if nested_columns and not row.problem:
                row.values.update(dotted_paths.resolve_columns(row.values, nested_columns))
            if missing and not row.problem:
                first_values = first_values or row.values
                missing.difference_update(row.values)
            try:
                pool.candidates.append(_make_candidate(row, recipe, exclusions))
            except UnusableRowError as error:
                pool.left_out[error.reason] += 1
            if len(pool.candidates) >= 2 * MAX_POOL_ROWS:
                _shrink(pool, recipe.data.split.seed)
        if pool.n_read == n_before:
            raise RecipeError(f"data.teacher.source: {file.name}: there are no rows in it", code="INS-D007")
        if missing and first_values:
            present = [name for name in input_columns(recipe).values() if name not in missing]
            check_input_columns(file.name, {**first_values, **dict.fromkeys(present)}, recipe)
    _shrink(pool, recipe.data.split.seed)
    return pool


def _columns_to_read(recipe: Recipe) -> list[str]:
    split, id_column = recipe.data.split, recipe.data.columns.id
    optional = [id_column, split.group, split.time, *slice_columns(recipe).values()]
    return [*dict.fromkeys([*input_columns(recipe).values(), *(column for column in optional if column)])]


def _make_candidate(row: SourceRow, recipe: Recipe, exclusions: Exclusions) -> Candidate:
    """Return a source row as a candidate. Raise UnusableRowError with the reason if it must not be sent."""
    if row.problem:
        raise UnusableRowError("unreadable", row.problem)
    kinds, split, id_column = recipe.privacy.redact, recipe.data.split, recipe.data.columns.id
    prepared = inputs.prepare_input(input_text.extract_input(row.values, recipe), kinds)
    own_id = to_text(row.values.get(id_column)).strip() if id_column else ""
    group = to_text(row.values.get(split.group)).strip() if split.group else ""
    group = redaction.pseudonymize(group, kinds)
    time = parse_row_time(row.values, recipe)
    values = {column: to_text(row.values.get(column)) for column in slice_columns(recipe).values()}
    check_characters("row", [own_id, group, *values.values()])
    if group in exclusions.groups:
        raise UnusableRowError("group_held_out", "its group is in a held-out split")
    if exclusions.test_from is not None and (time is None or time >= exclusions.test_from):
        raise UnusableRowError("not_before_test", "it is not older than test")
    return Candidate(
        id=ID_PREFIX + redaction.pseudonymize(own_id or f"{row.file}:{row.line}", kinds),
        text=prepared.text,
        group=group or None,
        time=time,
        slices=values,
        pii_kinds=prepared.pii_kinds,
        file=row.file,
        line=row.line,
    )


def _shrink(pool: Pool, seed: int) -> None:
    """Keep the MAX_POOL_ROWS candidates with the smallest hashes, and count the others."""
    if (n_over := len(pool.candidates) - MAX_POOL_ROWS) <= 0:
        return
    hashes = hash_texts((candidate.text for candidate in pool.candidates), seed)
    kept = sorted(hashes.argsort(kind="stable")[:MAX_POOL_ROWS].tolist())
    pool.candidates = [pool.candidates[index] for index in kept]
    pool.left_out["not_ranked"] += n_over


def iter_texts(folder: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (split, text, target) of every prepared row in `folder`."""
    for name in ("train", *HELD_OUT_SPLITS):
        for row in atomic_files.read_jsonl(folder / f"{name}.jsonl"):
            yield name, row["input"]["text"], row["target"]
