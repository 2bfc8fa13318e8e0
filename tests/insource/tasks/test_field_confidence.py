"""How sure a model is of the field that it is least sure of, however its tokens cut the record."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insource.tasks.records.field_confidence import find_value_ends, lowest_field_log_probability

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.text(max_size=6), values, min_size=1, max_size=6)


def test_a_record_as_the_module_tells_it() -> None:
    tokens = ['{"', "number", '": "', "204", "17", '", "', "due", '": ', "null", "}", "<|im_end|>"]
    log_probabilities = [0.0, 0.0, 0.0, -0.1, -0.2, 0.0, 0.0, 0.0, -1.2, 0.0, 0.0]
    assert lowest_field_log_probability(tokens, log_probabilities) == pytest.approx(-1.2)
    log_probabilities[8] = -0.1
    assert lowest_field_log_probability(tokens, log_probabilities) == pytest.approx(-0.3), (
        "the parts of one value are added"
    )


@given(records, st.data(), st.booleans())
def test_however_it_is_cut_each_field_has_what_was_decided_in_it(
    record: dict[str, Any], data: st.DataObject, is_indented: bool
) -> None:
    text = json.dumps(record, ensure_ascii=False, indent=2 if is_indented else None)
    bounds = find_value_ends(text)
    assert len(bounds) == len(record)
    for (start, end), (name, value) in zip(pairwise([0, *bounds]), record.items(), strict=True):
        assert json.loads("{" + text[start:end].lstrip("{, \n") + "}") == {name: value}
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=20)))
    tokens = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    # All that is uncertain lies in the token where the last character of one value stands.
    field_index = data.draw(st.integers(0, len(bounds) - 1))
    starts = [0, *cuts]
    holder = max(index for index, start in enumerate(starts) if start < bounds[field_index])
    log_probabilities = [-2.0 if index == holder else 0.0 for index in range(len(tokens))]
    assert lowest_field_log_probability(tokens, log_probabilities) == -2.0
    assert lowest_field_log_probability(tokens, [-1.0] * len(tokens)) <= -1.0 * len(tokens) / len(bounds) + 1e-9  # type: ignore[operator]


NO_RECORDS = ["billing_dispute", '["a", "b"]', "{}", '{"a": 1', '{"a" 1}', '{"a": 1 "b": 2}', '{"a": 1,}', "", " ", "{"]


@pytest.mark.parametrize("text", [*NO_RECORDS, '{"a": ' + "[" * 100_000])
def test_what_is_no_record_has_no_field(text: str) -> None:
    assert find_value_ends(text) == []
    assert lowest_field_log_probability(list(text), [-0.1] * len(text)) is None
