"""The rows of INPUT that may be labelled, and which of them come first.

A row is left out, and counted, for one of these reasons:

    unreadable, no_text, no_answer, ...    the row cannot be read or predicted
    labelled, filtered                     it has a label already; data.where does not select it
    long_cell                              a cell is longer than a cell of Excel
    in_test, near_test, in_train, ...      it repeats a row of the prepared data, exactly or nearly
    group_in_test, ...                     its group (data.split.group) is in a held-out split
    duplicate, near_duplicate              it repeats a row of INPUT that is more uncertain
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.readers import dotted_paths
from data_prep.rows.labelled_rows import ends_in_answer, find_messages, list_answer_columns
from data_prep.rows.row_filter import RowFilter
from data_prep.selection import row_ranking
from data_prep.selection.repeated_rows import find_repeats
from insource.config.recipe import Recipe
from insource.config.schema.data import Deduplicate
from insource.config.schema.source import SPLITS
from insource.tasks.pii import redaction
from insource.tasks.source_record import to_text
from insource.text.split_hash import hash_texts
from predict.labelling.prepared_rows import PreparedRows, hash_key
from predict.labelling.scored_rows import ScoredRow
from predict.rows.output import csv_cell

MAX_CELL_CHARACTERS = 32_767
"""Maximum length of a cell of Excel, which cuts longer ones when it saves the file."""
POOL_FACTOR = 2
"""Size of the pool in candidates of the ranking: room for rows that turn out to be near-duplicates."""


@dataclass
class CandidatePool:
    """The most uncertain distinct rows, at most twice `capacity` of them at any time."""

    capacity: int
    seed: int
    rows: list[ScoredRow] = field(default_factory=list)
    rows_read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    less_uncertain: int = 0
    """Rows that were in the pool, until more uncertain ones replaced them."""
    _keys: dict[int, int] = field(default_factory=dict)
    """{hash of the duplicate key: index in `rows`}."""

    def add(self, row: ScoredRow) -> None:
        """Add a row; of two rows with one duplicate key, the more uncertain one stays."""
        key = hash_key(row.text)
        index = self._keys.get(key)
        if index is not None:
            self.left_out["duplicate"] += 1
            if row.uncertainty > self.rows[index].uncertainty:
                self.rows[index] = row
            return
        self._keys[key] = len(self.rows)
        self.rows.append(row)
        if len(self.rows) >= 2 * self.capacity:
            self.prune()

    def prune(self) -> None:
        """Sort the rows by uncertainty and keep `capacity` of them. A keyed hash of the text breaks ties."""
        ranks = hash_texts((row.text for row in self.rows), self.seed).tolist()
        order = sorted(range(len(self.rows)), key=lambda index: (-self.rows[index].uncertainty, ranks[index]))
        self.less_uncertain += max(len(order) - self.capacity, 0)
        self.rows = [self.rows[index] for index in order[: self.capacity]]
        self._keys = {hash_key(row.text): index for index, row in enumerate(self.rows)}


def collect_candidates(rows: Iterable[ScoredRow], prepared: PreparedRows, recipe: Recipe, count: int) -> CandidatePool:
    """Return the pool of rows that may be labelled, sorted by uncertainty."""
    capacity = POOL_FACTOR * max(row_ranking.MAX_CANDIDATES, count)
    pool = CandidatePool(capacity, recipe.data.split.seed)
    row_filter = RowFilter(recipe.data.where)
    answers = list_answer_columns(recipe)
    for row in rows:
        pool.rows_read += 1
        reason = _find_reason(row, prepared, recipe, answers, row_filter)
        if reason is not None:
            pool.left_out[reason] += 1
        else:
            pool.add(row)
    pool.prune()
    return pool


def choose_rows(pool: CandidatePool, prepared: PreparedRows, recipe: Recipe, count: int) -> list[ScoredRow]:
    """Return up to `count` rows of the pool to label first, best first. Count near-duplicates in `pool.left_out`."""
    deduplicate = _search_settings(recipe.data.deduplicate)
    references = [(split, text) for split in SPLITS for text in prepared.texts[split]]
    repeats = find_repeats([row.text for row in pool.rows], [text for _, text in references], deduplicate)
    for repeat in repeats.values():
        reason = "near_duplicate" if repeat.reference is None else f"near_{references[repeat.reference][0]}"
        pool.left_out[reason] += 1
    rows = [row for index, row in enumerate(pool.rows) if index not in repeats]
    uncertainty = [row.uncertainty for row in rows] if any(row.confidence is not None for row in rows) else None
    ranked = row_ranking.rank_rows(
        [row.text for row in rows],
        uncertainty=uncertainty,
        labelled_texts=prepared.texts["train"],
        count=count,
        seed=recipe.data.split.seed,
        deduplicate=deduplicate,
    )
    return [rows[index] for index in ranked]


def _search_settings(settings: Deduplicate) -> Deduplicate:
    """Return data.deduplicate, with the default threshold if the recipe searches exact duplicates only.

    A row near a test row is never proposed.
    """
    return settings if settings.near < 1 else settings.model_copy(update={"near": Deduplicate().near})


def _find_reason(
    row: ScoredRow, prepared: PreparedRows, recipe: Recipe, answers: Sequence[str], row_filter: RowFilter
) -> str | None:
    """Return why a row is left out; None if it may be labelled."""
    if row.problem is not None:
        return row.problem
    names = [*recipe.data.where, *answers, *([recipe.data.split.group] if recipe.data.split.group else [])]
    values = {**row.columns, **dotted_paths.resolve_columns(row.columns, [name for name in names if "." in name])}
    if any(to_text(values.get(name)).strip() for name in answers) or ends_in_answer(find_messages(values, recipe)):
        return "labelled"
    if recipe.data.where and not row_filter.accepts(values):
        return "filtered"
    if any(len(csv_cell(value)) >= MAX_CELL_CHARACTERS for value in row.columns.values()):
        return "long_cell"
    if (split := prepared.find_split(row.text)) is not None:
        return f"in_{split}"
    return _find_group_reason(values, prepared, recipe)


def _find_group_reason(values: Mapping[str, Any], prepared: PreparedRows, recipe: Recipe) -> str | None:
    column = recipe.data.split.group
    if column is None:
        return None
    group = redaction.pseudonymize(to_text(values.get(column)).strip(), recipe.privacy.redact)
    split = prepared.held_out_groups.get(group)
    return None if split is None else f"group_in_{split}"
