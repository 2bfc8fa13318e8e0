"""Columns of rows that come in pieces: one type for all of them, in which every value comes back."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from insource.tasks import classification, extraction, multilabel
from predict.prediction import Prediction
from predict.rows import output
from predict.rows.column_types import MAX_FIELDS, ColumnTypes, answer_type

SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(-1e9, 1e9) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=3)
)
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), max_size=12)


def types_of(rows: list[dict[str, Any]], chunk_size: int) -> ColumnTypes:
    types = ColumnTypes()
    for start in range(0, len(rows), chunk_size):
        types.add(rows[start : start + chunk_size])
    return types


def same(original: Any, restored: Any) -> bool:
    """Whether a value came back: as itself, with null for keys that other rows have, as a float, or as JSON."""
    if isinstance(original, dict) and isinstance(restored, dict):
        return all(same(original.get(key), restored.get(key)) for key in {*original, *restored})
    if isinstance(original, list) and isinstance(restored, list):
        return len(original) == len(restored) and all(map(same, original, restored))
    if isinstance(restored, str) and not isinstance(original, str):
        return original is None or json.loads(restored) == original
    if isinstance(original, bool) or original is None or isinstance(original, str):
        return original is restored or original == restored
    return isinstance(restored, int | float) and abs(original - restored) <= abs(original) * 1e-12


@given(ROWS, st.integers(1, 5))
def test_every_value_comes_back_from_parquet(
    tmp_path_factory: Any, rows: list[dict[str, Any]], chunk_size: int
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "part.parquet"
    layout = output.make_layout("parquet", types_of(rows, chunk_size), answer_type(classification, None), ())
    output.write_part(path, layout, [(row, Prediction("late", 0.5, "local")) for row in rows])
    restored = pq.read_table(path).to_pylist()
    assert len(restored) == len(rows)
    for row, restored_row in zip(rows, restored, strict=True):
        assert restored_row["answer"] == "late" and all(
            same(row.get(name), restored_row[name]) for name in layout.input_types.names
        )


def test_an_object_whose_keys_are_data_is_json() -> None:
    rows = [{"by_id": {f"id{index}": index}} for index in range(MAX_FIELDS + 1)]
    types = types_of(rows, 7)
    assert str(types.arrow_type("by_id")) == "string" and json.loads(types.to_column_value("by_id", {"a": 1})) == {
        "a": 1
    }


def test_answers_are_typed_by_the_task() -> None:
    schema = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}, "day": {"enum": ["mon", "tue"]}}}
    spec = extraction.Spec("Read it.", schema, {})
    assert str(answer_type(classification, None)) == "string"
    assert str(answer_type(multilabel, None)) == "list<item: string>"
    assert str(answer_type(extraction, spec)) == "struct<n: int64, day: string>"
