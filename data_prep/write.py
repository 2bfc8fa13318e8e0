"""The prepared files, written batch by batch in the order of the source.

train.jsonl    {"id": "T000017", "input": {"text": "My parcel\\nis late"}, "target": "delivery_delay",
                "group": "C01294", "slices": {"channel": "chat", "unseen_vendor": false},
                "original_target": "Delivery-Delay"}
rejected.jsonl {"id": "T000018", "file": "tickets.csv", "line": 20, "kind": "dropped", "reason": "near_duplicate",
                "detail": "0.91 like T000005 in train"}
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.exact import DROP_REASONS, TRAIN, DropDecisions
from data_prep.row_table import Array, Table
from data_prep.rows.columns import slice_columns
from data_prep.rows.data_row import Rejected
from insource.config.recipe import Recipe
from insource.config.schema.data import SPLITS, NotInTrain
from insource.tasks import TASKS, slice_name
from insource.tasks.records import normalizers as values
from insource.tasks.text_keys import clean

SliceCounts = dict[str, dict[str, Any]]


def write_splits(
    folder: Path, table: Table, splits: Array, left: DropDecisions, recipe: Recipe, respelt: Callable[[str], str] | None
) -> SliceCounts:
    """Writes train.jsonl and its sisters. Returns {slice: {value: {split: rows}}} of what was written.

    `respelt` gives a target in the spelling that its labels have (`respelling` of the task); None without labels.
    """
    seen = _collect_train_values(table, splits, left, recipe)
    counted: dict[str, dict[str, Counter[str]]] = {name: {} for name in recipe.data.slices}
    with ExitStack() as opened:
        files = [
            opened.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n"))
            for name in SPLITS
        ]
        for first, batch in table.texts.batches():
            stays = left.stays[first : first + batch.num_rows]
            for at, row in enumerate(batch.to_pylist()):
                if not stays[at]:
                    continue
                split = int(splits[first + at])
                written = _make_output_row(row, recipe, respelt)
                if recipe.data.slices:
                    written["slices"] = _row_slices(row, seen, recipe)
                    for name, value in written["slices"].items():
                        counted[name].setdefault(slice_name(value), Counter())[SPLITS[split]] += 1
                files[split].write(json.dumps(written, ensure_ascii=False) + "\n")
    return {name: {value: dict(counts) for value, counts in sorted(one.items())} for name, one in counted.items()}


def write_rejected(path: Path, unusable: Iterable[Rejected], table: Table, splits: Array, left: DropDecisions) -> None:
    """Writes rejected.jsonl: rows that could not be used, then rows that had to leave, in the order of the source."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for one in unusable:
            file.write(json.dumps(one.json(), ensure_ascii=False) + "\n")
        for row in np.flatnonzero(~left.stays):
            file.write(json.dumps(_make_dropped(int(row), table, splits, left).json(), ensure_ascii=False) + "\n")


def _make_dropped(row: int, table: Table, splits: Array, left: DropDecisions) -> Rejected:
    reason, other = DROP_REASONS[left.reason[row]], int(left.other[row])
    prompt = table.columns["tokens"][row] - table.columns["answer_tokens"][row]
    who = f"{table.texts.value('id', other)} in {SPLITS[splits[other]]}" if other >= 0 else ""
    detail = {
        "conflict": f"says the same as {who}, with another answer",
        "duplicate": f"says the same as {who}, with the same answer",
        "too_long": f"{table.columns['tokens'][row]} tokens, more than train.max_length",
        "too_long_for_base": f"{table.columns['tokens'][row]} tokens, more than model.base can look at",
        "too_long_to_serve": f"{prompt} tokens, and with the longest answer more than a served model takes",
        "rare_label": "its label has fewer rows than data.rare_labels.min_rows",
        "not_before_test": f"not before {who}, the oldest test row with a time",
    }.get(reason, f"says the same as {who}")
    if reason.startswith("group_in_"):
        detail = f"of one group with {who}"
    if reason.startswith("near_"):
        detail = f"{left.similarity[row]:.2f} like {who}"
    file, row_id = (table.texts.value(column, row) for column in ("file", "id"))
    return Rejected(file, int(table.columns["line"][row]), row_id, reason, detail, kind="dropped")


def _make_output_row(row: Mapping[str, Any], recipe: Recipe, respelt: Callable[[str], str] | None) -> dict[str, Any]:
    text, task = respelt(row["target"]) if respelt else row["target"], TASKS[recipe.task.variant]
    target = task.parse_target(text)
    written = {"id": row["id"], "input": {"text": row["text"]}, "target": target, "group": row["group"]}
    if row["references"] is not None:
        written["references"] = [task.parse_target(one) for one in json.loads(row["references"])]
    return written if text == row["target"] else {**written, "original_target": task.parse_target(row["target"])}


def _row_slices(row: Mapping[str, Any], seen: Mapping[str, set[str]], recipe: Recipe) -> dict[str, str | bool]:
    own = dict(zip(recipe.data.slices, row["slices"].split("\n"), strict=True))
    return {
        name: _equality_key(name, value, recipe) not in seen[name] if name in seen else value
        for name, value in own.items()
    }


def _collect_train_values(table: Table, splits: Array, left: DropDecisions, recipe: Recipe) -> dict[str, set[str]]:
    """Returns for each not_in_train slice the values that train has."""
    names = list(recipe.data.slices)
    asked = [name for name, one in recipe.data.slices.items() if isinstance(one, NotInTrain)]
    seen: dict[str, set[str]] = {name: set() for name in asked}
    if not asked:
        return seen
    for first, batch in table.texts.batches():
        mine = (left.stays & (splits == TRAIN))[first : first + batch.num_rows]
        for lines in batch.column("slices").filter(mine).to_pylist():
            own = dict(zip(names, lines.split("\n"), strict=True))
            for name in asked:
                seen[name].add(_equality_key(name, own[name], recipe))
    return seen


def _equality_key(name: str, value: str, recipe: Recipe) -> str:
    """A value as its field is compared when it is scored; a column's value but for case."""
    normalizers = recipe.task.normalizers.get(slice_columns(recipe)[name])
    return str(values.normalize(value, normalizers)) if normalizers else clean(value).casefold()
