"""Similar rows: the examples in the prompts of a comparison, and of a training with `train.shots`."""

import random
from typing import Any

from insource.tasks import tfidf
from insource.text.text_keys import duplicate_key


def row(number: int, text: str, group: str | None = None) -> dict[str, Any]:
    return {"id": str(number), "input": {"text": text}, "target": "", "group": group}


def test_examples_are_the_most_similar_train_rows_the_most_similar_last() -> None:
    train = [row(0, "where is my parcel"), row(1, "my card was stolen"), row(2, "the parcel has not come")]
    assert tfidf.nearest_rows(train, [row(9, "where is the parcel")], 2) == [[2, 0]]
    assert tfidf.nearest_rows(train, [row(9, "anything")], 0) == [[]]


def test_a_train_row_is_no_example_of_itself_its_copies_or_its_group() -> None:
    train = [
        row(0, "Where is my parcel?", "ann"),
        row(1, "where is my parcel", "bob"),
        row(2, "where is my second parcel", "ann"),
        row(3, "the parcel has not come"),
        row(4, "my card was stolen"),
    ]
    nearest = tfidf.nearest_other_rows(train, 2)
    assert nearest[0] == [4, 3], "neither its copy (1) nor a row of the same customer (2)"
    assert all(index not in indices for index, indices in enumerate(nearest))
    assert [set(indices) for indices in nearest[1:3]] == [{2, 3}, {1, 3}], "a customer's own rows are no examples"
    # A held-out row is in none of the groups, so all rows of train can be its examples.
    assert set(tfidf.nearest_rows(train, [row(9, "where is my parcel")], 3)[0]) == {0, 1, 2}


def test_a_row_has_fewer_examples_where_train_has_no_more() -> None:
    train = [row(0, "one parcel", "ann"), row(1, "two parcels", "ann"), row(2, "a stolen card", "bob")]
    assert [set(indices) for indices in tfidf.nearest_other_rows(train, 3)] == [{2}, {2}, {0, 1}]
    assert tfidf.nearest_other_rows(train[:2], 3) == [[], []]
    assert tfidf.nearest_other_rows([], 3) == []


def test_the_examples_do_not_depend_on_how_many_rows_are_compared_at_once(monkeypatch: Any) -> None:
    words = ["parcel", "card", "refund", "late", "lost", "stolen", "invoice", "order"]
    choice = random.Random(3)
    train = [row(at, " ".join(choice.choices(words, k=5)), f"C{at % 9}") for at in range(60)]
    expected = tfidf.nearest_other_rows(train, 4)
    monkeypatch.setattr(tfidf, "MAX_CHUNK_CELLS", 7 * len(train))
    assert tfidf.nearest_other_rows(train, 4) == expected
    for at, indices in enumerate(expected):
        assert len(indices) == 4
        for index in indices:
            assert train[index]["group"] != train[at]["group"]
            assert duplicate_key(train[index]["input"]["text"]) != duplicate_key(train[at]["input"]["text"])
