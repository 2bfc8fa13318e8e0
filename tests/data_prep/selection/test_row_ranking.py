"""The ranking of unlabelled rows: distinct, uncertain, representative, and the same at every call."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.selection import row_ranking
from data_prep.selection.linear_model import fit_linear_model, linear_uncertainty
from data_prep.selection.repeated_rows import find_repeats
from data_prep.selection.row_ranking import rank_rows
from insource.config.schema.data import Deduplicate
from insource.text.text_keys import duplicate_key
from tests.helpers.property_tests import examples

TOPICS = {
    "parcel": ["parcel", "courier", "delivery", "doorstep", "tracking", "van", "driver", "depot"],
    "refund": ["refund", "money", "account", "bank", "transfer", "amount", "payment", "balance"],
    "login": ["login", "password", "screen", "browser", "reset", "email", "code", "access"],
}
WORDS = [word for words in TOPICS.values() for word in words]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=0, max_size=6).map(" ".join)


def make_texts(topic: str, count: int, seed: int = 1) -> list[str]:
    """Texts of one topic that are not near-duplicates of each other."""
    rng = random.Random(f"{topic} {seed}")
    texts: dict[str, str] = {}
    while len(texts) < count:
        text = " ".join(rng.sample(TOPICS[topic], 5))
        texts.setdefault(" ".join(sorted(text.split())), text)
    return list(texts.values())


@examples(40)
@given(
    texts=st.lists(TEXTS, max_size=30),
    labelled=st.lists(TEXTS, max_size=8),
    count=st.integers(0, 35),
    known=st.booleans(),
    data=st.data(),
)
def test_ranked_rows_are_distinct_new_and_a_prefix_of_a_longer_ranking(
    texts: list[str], labelled: list[str], count: int, known: bool, data: Any
) -> None:
    numbers = st.lists(st.floats(0, 1), min_size=len(texts), max_size=len(texts))
    uncertainty = data.draw(numbers) if known else None
    ranked = rank_rows(texts, uncertainty=uncertainty, labelled_texts=labelled, count=count, seed=3)
    keys = [duplicate_key(texts[row]) for row in ranked]
    assert len(ranked) <= count and len(set(keys)) == len(keys)
    assert not {*keys} & {*map(duplicate_key, labelled)}
    longer = rank_rows(texts, uncertainty=uncertainty, labelled_texts=labelled, count=count + 5, seed=3)
    assert longer[: len(ranked)] == ranked
    if len(ranked) < count:
        assert not find_repeats([texts[row] for row in ranked], labelled)
        assert longer == ranked, "fewer rows come only if no more are distinct"


def test_a_row_near_a_labelled_row_or_an_earlier_one_is_not_ranked() -> None:
    text = "my parcel was due on monday and the courier has not been here since then"
    texts = [f"{text}!!", text.replace("monday", "mondays"), "where do I reset the password of my account please"]
    texts.append("where do I reset the password of my account, pleas")
    ranked = rank_rows(texts, uncertainty=[0.9, 0.9, 0.5, 0.4], labelled_texts=[text], count=4, seed=1)
    assert ranked == [2]
    exact_only = rank_rows(
        texts, uncertainty=None, labelled_texts=[text], count=4, seed=1, deduplicate=Deduplicate(near=1)
    )
    assert sorted(exact_only) == [1, 2, 3]


def test_of_rows_as_far_from_each_other_the_uncertain_ones_come_first() -> None:
    texts = [f"{first}{second} {second}{first}" for first, second in zip("abcdefgh", "ijklmnop", strict=True)]
    uncertainty = [0.1, 0.8, 0.3, 0.9, 0.2, 0.7, 0.4, 0.6]
    ranked = rank_rows(texts, uncertainty=uncertainty, labelled_texts=[], count=8, seed=1)
    assert [uncertainty[row] for row in ranked] == sorted(uncertainty, reverse=True)


def test_every_topic_is_among_the_first_rows_though_one_is_more_uncertain() -> None:
    topics = (
        ["parcel courier delivery depot"] * 40 + ["refund money account bank"] * 10 + ["login password reset code"] * 10
    )
    texts = [f"{topic} {'abcdefghijklmnopqrstuvwxyz'[row % 26] * 5}{row * 7919}" for row, topic in enumerate(topics)]
    uncertainty = [0.9] * 40 + [0.7] * 20
    ranked = rank_rows(texts, uncertainty=uncertainty, labelled_texts=[], count=6, seed=1)
    assert {topics[row] for row in ranked} == {*topics}
    most_uncertain = sorted(range(60), key=lambda row: -uncertainty[row])[:6]
    assert len({topics[row] for row in most_uncertain}) == 1, "uncertainty alone takes one topic"


def test_a_topic_that_is_labelled_already_comes_later() -> None:
    texts = make_texts("parcel", 10) + make_texts("refund", 10)
    ranked = rank_rows(texts, uncertainty=[0.5] * 20, labelled_texts=make_texts("parcel", 20, seed=2), count=5, seed=1)
    assert ranked[0] >= 10


def test_more_rows_than_candidates_follow_by_uncertainty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranking, "MAX_CANDIDATES", 5)
    monkeypatch.setattr(row_ranking, "MAX_LABELLED", 3)
    texts = make_texts("parcel", 20)
    uncertainty = [1 - row / 20 for row in range(20)]
    labelled = make_texts("refund", 10)
    ranked = rank_rows(texts, uncertainty=uncertainty, labelled_texts=labelled, count=12, seed=1)
    assert sorted(ranked[:5]) == [0, 1, 2, 3, 4] and ranked[5:] == sorted(ranked[5:]) and len(ranked) == 12


def test_the_seed_decides_only_between_equal_rows() -> None:
    texts = [f"{first}{second} {second}{first}" for first, second in zip("abcdefgh", "ijklmnop", strict=True)]
    orders = {tuple(rank_rows(texts, uncertainty=None, labelled_texts=[], count=5, seed=seed)) for seed in range(5)}
    assert len(orders) > 1
    assert len({tuple(rank_rows(texts, uncertainty=None, labelled_texts=[], count=5, seed=2)) for _ in range(3)}) == 1


@pytest.mark.parametrize("uncertainty", [[0.5], [0.5, 1.5], [0.5, float("nan")]])
def test_numbers_that_are_no_uncertainty_are_refused(uncertainty: list[float]) -> None:
    with pytest.raises(ValueError, match="uncertainty"):
        rank_rows(["a", "b"], uncertainty=uncertainty, labelled_texts=[], count=1, seed=1)


def test_a_repeat_of_a_reference_has_precedence_over_a_repeat_of_an_earlier_row() -> None:
    repeats = find_repeats(["Card lost!", "card lost", "refund"], ["card lost?"])
    assert {row: (repeat.reference, repeat.other) for row, repeat in repeats.items()} == {0: (0, None), 1: (0, None)}
    repeats = find_repeats(["refund", "Refund!", "card"], [])
    assert {row: (repeat.reference, repeat.other) for row, repeat in repeats.items()} == {1: (None, 0)}
    assert find_repeats([], ["a"]) == {} and find_repeats(["a"], []) == {}


def test_the_linear_model_is_uncertain_between_topics_and_not_within_one() -> None:
    labelled = make_texts("parcel", 15) + make_texts("refund", 15)
    labels = ["parcel"] * 15 + ["refund"] * 15
    clear, unclear, none = linear_uncertainty(
        labelled, labels, ["courier delivery depot", "courier refund depot money", "xyz"]
    )
    assert 0 <= clear < unclear <= 1 and clear < none <= 1
    predictions = fit_linear_model(labelled, labels).predict(["courier delivery depot", "bank transfer"])
    assert [prediction.label for prediction in predictions] == ["parcel", "refund"]
    assert all(prediction.margin <= prediction.confidence <= 1 for prediction in predictions)


def test_with_one_label_nothing_is_uncertain_and_without_rows_there_is_no_model() -> None:
    assert linear_uncertainty(["a b", "c d"], ["x", "x"], ["e", "a b"]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="0 texts"):
        linear_uncertainty([], [], ["e"])
