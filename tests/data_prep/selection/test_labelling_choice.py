"""The comparison of rules for the rows to label next, on a few synthetic rows."""

from collections.abc import Sequence

import numpy as np
import pytest

from bench import labelling_choice, labelling_pools
from bench.labelling_choice import BASELINE, CURRENT, RULES, Candidates
from bench.labelling_pools import POOLS, Pool
from bench.linear_refits import LinearRefits
from data_prep.selection.linear_model import fit_linear_model
from data_prep.selection.repeated_rows import find_repeats

TOPICS = {
    "parcel": "where is the parcel that the courier should deliver",
    "refund": "when is the refund paid to my bank account",
    "login": "how do I reset the password of my login",
}


def make_rows(count: int) -> list[tuple[str, str]]:
    """Rows of three topics that are not near-duplicates of each other."""
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice([*"abcdefghijklmnop"], 6)) for _ in range(200)]
    return [
        (f"{TOPICS[label]} {' '.join(rng.choice(words, 5))} {number}", label)
        for number in range(count)
        for label in [[*TOPICS][number % 3]]
    ]


@pytest.mark.parametrize("topics", [2, 3])
def test_refits_have_the_labels_and_margins_of_the_linear_model(topics: int) -> None:
    rows = [row for row in make_rows(60) if row[1] in [*TOPICS][:topics]]
    fitted_rows = [*range(1, 21), 1]
    texts, labels = [text for text, _ in rows], [rows[row][1] for row in fitted_rows]
    refit = LinearRefits(texts).fit(fitted_rows, labels)
    predictions = fit_linear_model([texts[row] for row in fitted_rows], labels).predict(texts)
    assert refit.labels == [prediction.label for prediction in predictions]
    assert refit.margins == pytest.approx([prediction.margin for prediction in predictions], abs=1e-5)


@pytest.mark.parametrize("name", ["near-copies", "useless cluster"])
def test_pools_have_no_row_that_deduplication_removes_nor_one_that_is_scored(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant, value in (("ORIGINALS", 20), ("COPIES", 3), ("USELESS_ROWS", 30)):
        monkeypatch.setattr(labelling_pools, constant, value)
    pool = POOLS[name](make_rows(90))
    assert not find_repeats([text for text, _ in pool.rows], [])
    assert pool.scored and not {*pool.scored} & {*pool.rows}
    assert len(pool.origins) == len(pool.rows)
    if name == "near-copies":
        assert len({*pool.origins}) == 20 and len(pool.rows) > 60
    else:
        assert pool.origins.count(None) > 20


@pytest.mark.parametrize("rule", [*RULES])
def test_every_rule_chooses_as_many_different_rows(rule: str) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(80, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[40:] = vectors[0]
    chosen = RULES[rule](Candidates(vectors[2:], vectors[:2], rng.random(78), 30, seed=1))
    assert len(chosen) == 30 == len({*chosen} & {*range(78)})


def test_a_run_counts_useful_rows_and_starts_without_useless_ones() -> None:
    rows = make_rows(60)
    origins: Sequence[int | None] = [number // 2 if number < 50 else None for number in range(60)]
    pool = Pool("pairs", rows, origins, make_rows(90)[60:], start_rows=10, round_rows=20, rounds=2)
    result = labelling_choice.measure_rule(labelling_choice.prepare_pool(pool), BASELINE, seed=1)
    assert len(result["accuracy"]) == 3 and all(0 <= accuracy <= 1 for accuracy in result["accuracy"])
    assert 0 < result["useful_rows"] <= 25


def test_the_table_has_paired_differences_to_random_rows() -> None:
    runs = [
        {"pool": "p", "rule": rule, "seed": seed, "accuracy": [0.4, 0.5 + seed / 100 + gain * (seed + 1)]}
        | {"useful_rows": useful}
        for rule, gain, useful in ((BASELINE, 0.0, 4), ("product", 0.01, 7), (CURRENT, 0.02, 8))
        for seed in (2, 0, 1)
    ]
    results = {"hardware": "2 cores", "date": "2026-11-30", "command": "bench", "pools": [{"name": "p"}], "runs": runs}
    lines = labelling_choice.results_table(results).splitlines()
    assert "| random | 51.0% | |" in lines
    assert "| product | +2.0 (-0.5 to +4.5); 7 useful rows | +2.0 |" in lines
    assert "| product | +2.0 (-0.5 to +4.5) |" in lines, "the last table is what the rule of `make label` has more"
