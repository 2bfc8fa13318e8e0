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


def types_of(rows: list[dict[str, Any]], piece: int) -> ColumnTypes:
    found = ColumnTypes()
    for at in range(0, len(rows), piece):
        found.add(rows[at : at + piece])
    return found


def same(given: Any, back: Any) -> bool:
    """Whether a value came back: as itself, with null for keys that other rows have, as a float, or as JSON."""
    if isinstance(given, dict) and isinstance(back, dict):
        return all(same(given.get(key), back.get(key)) for key in {*given, *back})
    if isinstance(given, list) and isinstance(back, list):
        return len(given) == len(back) and all(map(same, given, back))
    if isinstance(back, str) and not isinstance(given, str):
        return given is None or json.loads(back) == given
    if isinstance(given, bool) or given is None or isinstance(given, str):
        return given is back or given == back
    return isinstance(back, int | float) and abs(given - back) <= abs(given) * 1e-12


@given(ROWS, st.integers(1, 5))
def test_every_value_comes_back_from_parquet(tmp_path_factory: Any, rows: list[dict[str, Any]], piece: int) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "part.parquet"
    layout = output.make_layout("parquet", types_of(rows, piece), answer_type(classification, None), ())
    output.write_part(path, layout, [(row, Prediction("late", 0.5, "local")) for row in rows])
    back = pq.read_table(path).to_pylist()
    assert len(back) == len(rows)
    for row, found in zip(rows, back, strict=True):
        assert found["answer"] == "late" and all(same(row.get(name), found[name]) for name in layout.own.names)


def test_an_object_whose_keys_are_data_is_json() -> None:
    rows = [{"by_id": {f"id{at}": at}} for at in range(MAX_FIELDS + 1)]
    found = types_of(rows, 7)
    assert str(found.of("by_id")) == "string" and json.loads(found.value("by_id", {"a": 1})) == {"a": 1}


def test_answers_are_typed_by_the_task() -> None:
    schema = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}, "day": {"enum": ["mon", "tue"]}}}
    spec = extraction.Spec("Read it.", schema, {})
    assert str(answer_type(classification, None)) == "string"
    assert str(answer_type(multilabel, None)) == "list<item: string>"
    assert str(answer_type(extraction, spec)) == "struct<n: int64, day: string>"
