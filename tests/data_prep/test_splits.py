"""Splits and duplicates, as properties: whatever rows come, in whatever order, on however many processes."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from data_prep import minhash, prepare
from data_prep.dedup import near
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.data import Deduplicate
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.text.text_keys import duplicate_key
from tests.helpers.property_tests import examples

Row = tuple[str, str, str]

SAID = "my card parcel order is late broken again please help with the new blue old account number today and now"
WORDS = SAID.split()


def make_recipe(folder: Path, rows: Sequence[Row], *overrides: str) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label", "customer"), *rows])
    (folder / "r.yaml").write_text(
        "task: {kind: classification, instruction: Route the message to one queue.}\nmodel: {base: pocket}\n"
        "data: {source: {path: rows.csv}, split: {test: 0.3, validation: 0.2, calibration: 0.1}}\n",
        encoding="utf-8",
    )
    return load(str(folder / "r.yaml"), overrides, "cpu").recipe


def prepare_splits(recipe: Recipe, runs: Path) -> dict[str, list[Any]]:
    """The rows of each split; and every row that was read is there, or in rejected.jsonl."""
    folder, _ = prepare.main(recipe, runs)
    splits = {name: list(atomic_files.read_jsonl(folder / f"{name}.jsonl")) for name in SPLITS}
    rejected = list(atomic_files.read_jsonl(folder / "rejected.jsonl"))
    assert (
        sum(map(len, splits.values())) + len(rejected) == atomic_files.read_json(folder / "data.json")["rows"]["read"]
    )
    return splits


def distinct_rows(count: int = 60) -> list[Row]:
    """Rows unlike each other, so that every split and label has some."""
    rng = random.Random(9)
    return [
        (" ".join("".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(6)), "ab"[index % 2], f"f{index}")
        for index in range(count)
    ]


# Short sentences of few words, edited a little: duplicates and near-duplicates are common among them.
sentences = st.builds(
    lambda words, tail: " ".join(words) + tail,
    st.lists(st.sampled_from(WORDS), min_size=3, max_size=14),
    st.sampled_from(["", "!", " x", " now", "s"]),
)
row_lists = st.lists(
    st.tuples(sentences, st.sampled_from("ab"), st.sampled_from([f"c{n}" for n in range(8)])), max_size=40
)
few_examples = examples(25, suppress_health_check=[HealthCheck.too_slow])


def similarity(first: str, second: str) -> float:
    return minhash.jaccard(
        minhash.shingles(duplicate_key(first), "char5"), minhash.shingles(duplicate_key(second), "char5")
    )


@few_examples
@given(rows=row_lists)
def test_no_train_row_is_near_a_held_out_row_or_another_train_row_of_its_label(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("near")
    splits = prepare_splits(make_recipe(folder, [*distinct_rows(), *rows]), folder / "runs")
    texts = {name: [row["input"]["text"] for row in splits[name]] for name in SPLITS}
    for name in SPLITS[1:]:
        assert not [(a, b) for a in texts["train"] for b in texts[name] if similarity(a, b) >= 0.85]
    train = splits["train"]
    assert not [
        (a, b)
        for index, a in enumerate(train)
        for b in train[:index]
        if a["target"] == b["target"] and similarity(a["input"]["text"], b["input"]["text"]) >= 0.85
    ]


@few_examples
@given(rows=row_lists, seed=st.integers(0, 2**32))
def test_the_order_of_the_rows_decides_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    rows = [*distinct_rows(), *rows]
    shuffled = random.Random(seed).sample(rows, len(rows))
    contents = [
        {
            name: sorted((row["input"]["text"], row["target"], row["group"] or "") for row in split)
            for name, split in prepare_splits(
                make_recipe(folder / str(index), ordered, "data.split.group=customer"), folder
            ).items()
        }
        for index, ordered in enumerate((rows, shuffled))
    ]
    assert contents[0] == contents[1]


@few_examples
@given(rows=row_lists, added=row_lists)
def test_adding_rows_moves_no_old_row_to_another_split(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], added: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("more")

    def splits_by_text(source_rows: list[Row], name: str) -> dict[str, str]:
        splits = prepare_splits(make_recipe(folder / name, source_rows), folder)
        return {duplicate_key(row["input"]["text"]): split for split in SPLITS for row in splits[split]}

    old_splits, new_splits = (
        splits_by_text([*distinct_rows(), *rows], "old"),
        splits_by_text([*added, *distinct_rows(), *rows], "new"),
    )
    # A row of train may leave because of a new one; none is ever found in another split.
    assert {text: new_splits[text] for text in old_splits if text in new_splits} == {
        text: old_splits[text] for text in old_splits if text in new_splits
    }
    assert {text for text in old_splits if old_splits[text] == "test"} <= set(new_splits)


@few_examples
@given(rows=row_lists)
def test_no_group_straddles_two_splits(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    folder = tmp_path_factory.mktemp("group")
    splits = prepare_splits(
        make_recipe(folder, [*distinct_rows(), *rows], "data.split.group=customer"), folder / "runs"
    )
    groups = [{row["group"] for row in splits[name]} for name in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_one_process_and_two_write_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(4)
    rows = [
        *distinct_rows(),
        *((" ".join(rng.choices(WORDS, k=9)), rng.choice("ab"), f"c{n % 50}") for n in range(5000)),
    ]
    expected = [
        prepare.main(make_recipe(tmp_path, rows, f"data.num_proc={count}"), tmp_path / str(count))[0]
        for count in (1, 2)
    ]
    single, double = (
        {path.name: atomic_files.sha256(path) for path in folder.iterdir() if path.suffix in (".jsonl", ".csv")}
        for folder in expected
    )
    assert single == double
    assert {"train.jsonl", "test.jsonl", "rejected.jsonl", "suspects.csv"} <= set(single)
    assert [atomic_files.read_json(folder / "data.json")["processes"] for folder in expected] == [1, 2]


def test_near_rows_with_different_labels_are_both_kept(tmp_path: Path) -> None:
    text = "what do i need to do to get my new card delivered to the new address in town"
    near_text = "what do i need to do to get my new virtual card delivered to the new address in town"
    assert similarity(text, near_text) > 0.8
    override = ("data.split={test: 0.01, validation: 0.01, calibration: 0}", "data.deduplicate.near=0.8")
    rows = [*distinct_rows(400), (text, "a", "c1"), (near_text, "b", "c1"), (near_text + " now", "b", "c1")]
    texts = {
        row["input"]["text"]
        for row in prepare_splits(make_recipe(tmp_path, rows, *override), tmp_path / "runs")["train"]
    }
    assert text in texts
    assert len(texts & {near_text, near_text + " now"}) == 1


def test_test_is_the_newest_by_time_and_a_cut_holds_it_there(tmp_path: Path) -> None:
    rows = [(text, label, f"2026-03-{1 + index // 4:02d}") for index, (text, label, _) in enumerate(distinct_rows(100))]
    splits = prepare_splits(make_recipe(tmp_path, rows, "data.split.time=customer"), tmp_path / "newest")
    days = {row[0]: row[2] for row in rows}
    days_by_split = {name: {days[row["input"]["text"]] for row in splits[name]} for name in SPLITS}
    assert min(days_by_split["test"]) > max(
        days_by_split["train"] | days_by_split["validation"] | days_by_split["calibration"]
    )
    assert 25 <= len(splits["test"]) <= 35
    override = ("data.split.time=customer", "data.split.cut=2026-03-21")
    cut_splits = prepare_splits(
        make_recipe(tmp_path, [*rows, ("quite new here", "a", "2026-03-29")], *override), tmp_path / "cut"
    )
    assert {days.get(row["input"]["text"], "2026-03-29") for row in cut_splits["test"]} == {
        "2026-03-29",
        *(f"2026-03-{day}" for day in range(21, 26)),
    }


@few_examples
@given(rows=row_lists, added=row_lists)
def test_with_a_cut_rows_that_are_added_move_no_old_row_to_another_split(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], added: list[Row]
) -> None:
    folder, override = tmp_path_factory.mktemp("cut"), ("data.split.time=customer", "data.split.cut=2026-03-21")

    def splits_by_text(name: str, *parts: tuple[list[Row], int]) -> dict[str, str]:
        dated = [
            (text, label, f"2026-{month:02d}-{1 + int(customer[1:]) % 28:02d}")
            for part_rows, month in parts
            for text, label, customer in part_rows
        ]
        splits = prepare_splits(make_recipe(folder / name, dated, *override), folder)
        return {duplicate_key(row["input"]["text"]): split for split in SPLITS for row in splits[split]}

    # The same text at two times may be test and train: what is asked here is about others.
    added_keys = {duplicate_key(text) for text, *_ in added}
    rows = list({duplicate_key(row[0]): row for row in rows if duplicate_key(row[0]) not in added_keys}.values())
    old_splits = splits_by_text("old", (distinct_rows(), 3), (rows, 3))
    # Newer ones, all of them test; older ones; and those of the same month.
    for name, month in (("newer", 5), ("older", 1), ("same", 3)):
        new_splits = splits_by_text(name, (added, month), (distinct_rows(), 3), (rows, 3))
        assert {text: new_splits[text] for text in old_splits if text in new_splits} == {
            text: old_splits[text] for text in old_splits if text in new_splits
        }
        assert {text for text in old_splits if old_splits[text] == "test"} <= set(new_splits)


def test_rows_without_a_group_stay_where_they_are_when_rows_are_added_above_them(tmp_path: Path) -> None:
    rows = [
        (text, label, customer if index % 3 else "") for index, (text, label, customer) in enumerate(distinct_rows(90))
    ]
    added = [(f"{text} newly", label, customer) for text, label, customer in distinct_rows(60)[::-1]]

    def splits_by_text(source_rows: list[Row], name: str) -> dict[str, str]:
        overrides = ("data.split.group=customer", "data.deduplicate.near=1")
        splits = prepare_splits(make_recipe(tmp_path / name, source_rows, *overrides), tmp_path / name)
        assert {row["group"] is None for split in SPLITS for row in splits[split]} == {True, False}
        return {row["input"]["text"]: split for split in SPLITS for row in splits[split]}

    old_splits, new_splits = splits_by_text(rows, "old"), splits_by_text([*added, *rows], "new")
    assert old_splits == {text: new_splits[text] for text in old_splits}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.split.time=text"], "bad_time: column .text.: .*is no time; known: ISO 8601"),
        (["data.split.time=customer", "data.split.cut=soon"], "is not an ISO 8601 time"),
        (["data.split.time=customer", "data.split.cut=2031-01-01"], "no row is from 2031-01-01"),
        (["data.split.time=customer", "data.split.cut=1999-01-01"], "no row is before 1999-01-01"),
    ],
)
def test_a_time_that_cannot_split_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    rows = [(text, label, "2026-03-01") for text, label, _ in distinct_rows()]
    with pytest.raises(RecipeError, match=message):
        prepare.main(make_recipe(tmp_path, rows, *overrides), tmp_path / "runs")


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95])
def test_pairs_at_the_threshold_are_found_and_the_promise_is_kept(threshold: float) -> None:
    assert minhash.recall(threshold) > 0.9999
    rng = random.Random(3)
    keys, pairs = [], []
    # One edit changes 5 shingles of 5 characters: short texts have no pair above 0.95.
    max_characters = 160 if threshold < 0.9 else 400
    while len(pairs) < 1500:
        text = "".join(rng.choices("abcdefghij ", k=rng.randint(20, max_characters)))
        edited, similarity = list(text), rng.uniform(threshold, threshold + 0.05)
        for _ in range(max(1, round(len(text) * (1 - similarity) / (1 + similarity) / 5))):
            edited[rng.randrange(len(edited))] = rng.choice("klmnop")
        edited_text = "".join(edited)
        if (
            threshold
            <= minhash.jaccard(minhash.shingles(text, "char5"), minhash.shingles(edited_text, "char5"))
            < threshold + 0.05
        ):
            pairs.append((len(keys), len(keys) + 1))
            keys += [text, edited_text]
    bands, sketches = minhash.sketch(keys, Deduplicate(near=threshold))
    first, second = np.array(pairs).T
    assert (bands[first] == bands[second]).any(axis=1).mean() > 0.998
    min_similarity = (
        threshold - near.SKETCH_MARGIN_DEVIATIONS * (threshold * (1 - threshold) / minhash.PERMUTATIONS) ** 0.5
    )
    assert ((sketches[first] == sketches[second]).mean(axis=1) >= min_similarity).mean() > 0.999


def test_a_duplicate_of_many_is_one_comparison_each_and_not_all_pairs(tmp_path: Path) -> None:
    rows = [
        (
            f"where is my order number {index:05d}, it was to be here last week and nobody answers my calls about it",
            "a",
            "c",
        )
        for index in range(6000)
    ]
    override = "data.split={test: 0.01, validation: 0.01, calibration: 0}"
    splits = prepare_splits(make_recipe(tmp_path, [*distinct_rows(400), *rows], override), tmp_path / "runs")
    assert sum("order number" in row["input"]["text"] for row in splits["train"]) == 0
    assert sum("order number" in row["input"]["text"] for row in splits["test"]) > 20
