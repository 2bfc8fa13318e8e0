"""Write the prepared files, batch by batch in source order.

train.jsonl    {"id": "T000017", "input": {"text": "My parcel\\nis late"}, "target": "delivery_delay",
                "group": "C01294", "slices": {"channel": "chat", "unseen_vendor": false},
                 "original_target": "Delivery-Delay", "provenance": "human"}
                a row of a teacher also has "labelled_by": "openai:gpt-6-luna:decisions" and, if the provider returns
                them, "probabilities": {"delivery_delay": 0.93, ...}
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

from data_prep.arrays import Array
from data_prep.dedup.drops import DROP_REASONS, TRAIN, DropDecisions
from data_prep.readers.source_row import PROVENANCES
from data_prep.row_table import Table
from data_prep.rows.columns import slice_columns
from data_prep.rows.data_row import Rejected
from insource.config.recipe import Recipe
from insource.config.schema.data import NotInTrain
from insource.config.schema.source import SPLITS
from insource.tasks import TASKS, slice_name
from insource.tasks.records.normalizers import normalize
from insource.text.text_keys import clean

SliceCounts = dict[str, dict[str, dict[str, int]]]


def write_splits(
    folder: Path,
    table: Table,
    splits: Array,
    drops: DropDecisions,
    recipe: Recipe,
    map_label: Callable[[str], str] | None,
    extra_columns: Mapping[str, Mapping[str, object]],
) -> SliceCounts:
    """Write one JSONL file per split. Return {slice: {value: {split: rows}}} of the rows written.

    `map_label` replaces the labels of a target by their canonical labels (the task's `make_label_mapper`); None without
    labels. `extra_columns` has by row id the keys that some rows have in addition.
    """
    train_values = _collect_train_values(table, splits, drops, recipe)
    provenances = table.columns["provenance"]
    slice_counts: dict[str, dict[str, Counter[str]]] = {name: {} for name in recipe.data.slices}
    with ExitStack() as stack:
        files = [
            stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n")) for name in SPLITS
        ]
        for start, batch in table.texts.batches():
            kept = drops.kept[start : start + batch.num_rows]
            for index, row in enumerate(batch.to_pylist()):
                if not kept[index]:
                    continue
                split = int(splits[start + index])
                output_row = _make_output_row(row, recipe, map_label) | dict(extra_columns.get(row["id"], {}))
                if provenance := int(provenances[start + index]):
                    output_row["provenance"] = PROVENANCES[provenance]
                if recipe.data.slices:
                    output_row["slices"] = _row_slices(row, train_values, recipe)
                    for name, value in output_row["slices"].items():
                        slice_counts[name].setdefault(slice_name(value), Counter())[SPLITS[split]] += 1
                files[split].write(json.dumps(output_row, ensure_ascii=False) + "\n")
    return {
        name: {value: dict(counts) for value, counts in sorted(by_value.items())}
        for name, by_value in slice_counts.items()
    }


def write_rejected(path: Path, rejected: Iterable[Rejected], table: Table, splits: Array, drops: DropDecisions) -> None:
    """Write rejected.jsonl: unusable rows, then dropped rows, each in source order."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for entry in rejected:
            file.write(json.dumps(entry.json(), ensure_ascii=False) + "\n")
        for row in np.flatnonzero(~drops.kept):
            file.write(json.dumps(_make_dropped(int(row), table, splits, drops).json(), ensure_ascii=False) + "\n")


def _make_dropped(row: int, table: Table, splits: Array, drops: DropDecisions) -> Rejected:
    """Return the entry of rejected.jsonl for a dropped row."""
    reason, reason_row = DROP_REASONS[drops.reason[row]], int(drops.reason_row[row])
    prompt = table.columns["tokens"][row] - table.columns["answer_tokens"][row]
    reference = f"{table.texts.value('id', reason_row)} in {SPLITS[splits[reason_row]]}" if reason_row >= 0 else ""
    detail = {
        "conflict": f"duplicate of {reference}, with another answer",
        "duplicate": f"duplicate of {reference}, with the same answer",
        "too_long": f"{table.columns['tokens'][row]} tokens, more than train.max_length",
        "too_long_for_base": f"{table.columns['tokens'][row]} tokens, more than model.base can process",
        "too_long_to_serve": f"{prompt} tokens, and with the longest answer more than a served model takes",
        "rare_label": "its label has fewer rows than data.rare_labels.min_rows",
        "not_before_test": f"not before {reference}, the oldest test row with a time",
    }.get(reason, f"{'near-duplicate' if reason.startswith('near_') else 'duplicate'} of {reference}")
    if reason.startswith("group_in_"):
        detail = f"in the same group as {reference}"
    if reason.startswith("near_"):
        detail = f"{drops.similarity[row]:.2f} like {reference}"
    file, row_id = (table.texts.value(column, row) for column in ("file", "id"))
    return Rejected(file, int(table.columns["line"][row]), row_id, reason, detail, kind="dropped")


def _make_output_row(row: Mapping[str, Any], recipe: Recipe, map_label: Callable[[str], str] | None) -> dict[str, Any]:
    """Return the row as written to a split file."""
    text, task = map_label(row["target"]) if map_label else row["target"], TASKS[recipe.task.task_name]
    target = task.parse_target(text)
    output_row = {"id": row["id"], "input": {"text": row["text"]}, "target": target, "group": row["group"]}
    if row["references"] is not None:
        output_row["references"] = [task.parse_target(answer) for answer in json.loads(row["references"])]
    return output_row if text == row["target"] else {**output_row, "original_target": task.parse_target(row["target"])}


def _row_slices(row: Mapping[str, Any], train_values: Mapping[str, set[str]], recipe: Recipe) -> dict[str, str | bool]:
    """Return {slice: value} of a row; for a not_in_train slice, whether its value is absent from train."""
    row_values = dict(zip(recipe.data.slices, row["slices"].split("\n"), strict=True))
    return {
        name: _equality_key(name, value, recipe) not in train_values[name] if name in train_values else value
        for name, value in row_values.items()
    }


def _collect_train_values(table: Table, splits: Array, drops: DropDecisions, recipe: Recipe) -> dict[str, set[str]]:
    """Return for each not_in_train slice the keys of the values that occur in train."""
    names = list(recipe.data.slices)
    unseen_slices = [name for name, spec in recipe.data.slices.items() if isinstance(spec, NotInTrain)]
    train_values: dict[str, set[str]] = {name: set() for name in unseen_slices}
    if not unseen_slices:
        return train_values
    for start, batch in table.texts.batches():
        mask = (drops.kept & (splits == TRAIN))[start : start + batch.num_rows]
        for lines in batch.column("slices").filter(mask).to_pylist():
            row_values = dict(zip(names, lines.split("\n"), strict=True))
            for name in unseen_slices:
                train_values[name].add(_equality_key(name, row_values[name], recipe))
    return train_values


def _equality_key(name: str, value: str, recipe: Recipe) -> str:
    """Return the key that compares slice values.

    A field is normalized as for scoring; the value of a column is cleaned and case-folded.
    """
    normalizers = recipe.task.normalizers.get(slice_columns(recipe)[name])
    return str(normalize(value, normalizers)) if normalizers else clean(value).casefold()
