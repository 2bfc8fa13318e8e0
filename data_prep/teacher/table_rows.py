"""The rows of a teacher beside the rows of people: they are added to train, and change nothing else.

A row of a teacher is dropped if a person labelled its text, or if it is longer than the rows that training takes. Of
near-duplicates in train the row of a person is kept. Held-out splits are the same with and without a teacher.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.drops import TRAIN, DropDecisions
from data_prep.row_table import Table
from data_prep.split import HELD_OUT_SPLITS
from insource.config.recipe import Recipe
from insource.system import atomic_files

LAST_RANK = np.iinfo(np.uint64).max
"""Of near-duplicates in train, the row of the lower rank is kept."""


def yield_to_people(table: Table, drops: DropDecisions) -> None:
    """Drop the rows of a teacher whose text a person labelled, and rank the others behind all rows of people."""
    by_teacher, keys = table.by_teacher, table.columns["key"]
    table.columns["rank"][by_teacher] = LAST_RANK
    people = np.flatnonzero(~by_teacher)
    people = people[np.argsort(keys[people], kind="stable")]
    duplicates = np.flatnonzero(by_teacher & np.isin(keys, keys[people]))
    if len(duplicates):
        drops.drop(duplicates, "duplicate", people[np.searchsorted(keys[people], keys[duplicates])])


def drop_long_rows(table: Table, splits: object, recipe: Recipe, drops: DropDecisions) -> None:
    """Drop the rows of a teacher that are longer than train.max_length, or whose answer is longer than any of people.

    A longer answer would raise the limit of answers, and with it drop held-out rows.
    """
    tokens, answer_tokens, by_teacher = table.columns["tokens"], table.columns["answer_tokens"], table.by_teacher
    fits = tokens <= recipe.train.max_length
    people = (splits == TRAIN) & drops.kept & ~by_teacher & fits
    longest_answer = int(answer_tokens[people].max(initial=0))
    drops.drop(by_teacher & drops.kept & (~fits | (answer_tokens > longest_answer)), "too_long")


def check_held_out_unchanged(people_folder: Path, folder: Path) -> None:
    """Raise AssertionError if a held-out split in `folder` differs from that of the rows of people.

    A slice of values that do not occur in train may differ: rows of a teacher are a part of train.
    """
    for name in HELD_OUT_SPLITS:
        paths = [parent / f"{name}.jsonl" for parent in (people_folder, folder)]
        if atomic_files.sha256(paths[0]) == atomic_files.sha256(paths[1]):
            continue
        if any(a != b for a, b in zip(*map(_rows_without_slices, paths), strict=True)):
            raise AssertionError(f"data.teacher changed {name}.jsonl, which has rows of people only")


def _rows_without_slices(path: Path) -> Iterator[dict[str, Any]]:
    for row in atomic_files.read_jsonl(path):
        yield {key: value for key, value in row.items() if key != "slices"}
