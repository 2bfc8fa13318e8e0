"""Rows that represent the most uncertain rows: few, different, and the same for every count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.arrays import Array
from data_prep.selection import representative_rows
from data_prep.selection.representative_rows import choose_representative

NO_ROWS = np.zeros((0, 4), np.float32)


def make_vectors(count: int, seed: int, dimensions: int = 4) -> Array:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    unit: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def choose_naively(vectors: Array, labelled: Array, uncertainty: Array, count: int) -> float:
    """Return the weighted coverage of the greedy choice, without lazy evaluation."""
    covered = np.maximum(vectors @ labelled.T, 0.0).max(axis=1, initial=0.0)
    for _ in range(count):
        gains = uncertainty @ np.maximum(vectors @ vectors.T - covered[:, None], 0.0)
        covered = np.maximum(covered, vectors @ vectors[gains.argmax()])
    return float(uncertainty @ covered)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 60), labelled=st.integers(0, 5), count=st.integers(1, 70), seed=st.integers(0, 1000))
def test_lazy_evaluation_covers_as_much_as_the_plain_greedy_choice(
    rows: int, labelled: int, count: int, seed: int
) -> None:
    vectors, references = make_vectors(rows, seed), make_vectors(labelled, seed + 1)
    uncertainty = np.sort(np.random.default_rng(seed).random(rows))[::-1]
    chosen = choose_representative(vectors, references, uncertainty, count)
    assert len(chosen) == len({*chosen}) == min(count, rows)
    covered = np.maximum(vectors @ np.vstack([references, vectors[chosen]]).T, 0.0).max(axis=1)
    naive = choose_naively(vectors, references, uncertainty, min(count, rows))
    assert uncertainty @ covered == pytest.approx(naive, rel=1e-4)


def test_the_first_rows_do_not_depend_on_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representative_rows, "BLOCK_ROWS", 5)
    monkeypatch.setattr(representative_rows, "CANDIDATES_PER_ROW", 3)
    vectors, uncertainty = make_vectors(80, 1), np.linspace(1, 0.1, 80)
    longest = choose_representative(vectors, NO_ROWS, uncertainty, 40)
    for count in (1, 5, 6, 13, 39):
        assert choose_representative(vectors, NO_ROWS, uncertainty, count) == longest[:count]
    assert max(longest[:5]) < 15 and max(longest[5:10]) < 30, "3 candidates for each row of the blocks so far"


def test_a_row_of_a_group_comes_before_an_outlier_and_copies_come_last() -> None:
    group = np.array([[1, 0, 0, 0], [0.98, 0.199, 0, 0], [0.98, -0.199, 0, 0]])
    outlier = np.array([[0, 0, 1, 0]])
    vectors = np.vstack([outlier, group, group[:1], group[:1]]).astype(np.float32)
    chosen = choose_representative(vectors, NO_ROWS, np.full(6, 0.9), 6)
    assert chosen[0] == 1 and chosen[1] == 0 and {*chosen[4:]} == {4, 5}


def test_a_group_with_a_labelled_row_comes_after_one_without() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32)[:2], 10, axis=0)
    chosen = choose_representative(vectors, vectors[:1], np.linspace(0.9, 0.8, 20), 2)
    assert chosen == [10, 0]


def test_rows_without_features_are_ranked_by_uncertainty() -> None:
    vectors = np.zeros((3, 4), np.float32)
    assert choose_representative(vectors, NO_ROWS, np.array([0.9, 0.5, 0.1]), 5) == [0, 1, 2]
