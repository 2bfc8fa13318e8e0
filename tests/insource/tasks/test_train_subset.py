"""Subsets of the train rows: nested, the same whatever the order of the file, and by the hash of the splits."""

import random
from pathlib import Path
from typing import Any

import pytest

from insource.config.load import load
from insource.config.recipe import Recipe
from insource.tasks.train_subset import order_train_rows, select_train_rows
from insource.text.split_hash import hash_texts
from insource.text.text_keys import duplicate_key, split_key
from insource.tracking import digests

ROWS = [
    {"id": f"T{number}", "input": {"text": f"Where is parcel {number}?"}, "target": "parcel", "group": None}
    for number in range(200)
]
GROUPED = [{**row, "group": f"C{index // 10}"} for index, row in enumerate(ROWS)]


@pytest.fixture
def recipe(small_recipe: Path) -> Recipe:
    return load(str(small_recipe), (), "cpu").recipe


def ids(rows: list[dict[str, Any]], indices: list[int]) -> list[str]:
    return [rows[index]["id"] for index in indices]


@pytest.mark.parametrize("rows", [ROWS, GROUPED])
def test_a_smaller_subset_is_a_part_of_a_larger_one_whatever_the_order_of_the_file(
    rows: list[dict[str, Any]], recipe: Recipe
) -> None:
    order = ids(rows, order_train_rows(rows, recipe))
    assert sorted(order) == sorted(row["id"] for row in rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert ids(shuffled, order_train_rows(shuffled, recipe)) == order
    subsets = []
    for size in (20, 50, 100):
        limited = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_train_rows": size})})
        subsets.append({*ids(rows, select_train_rows(rows, limited))})
        assert subsets[-1] == {*order[:size]}
    assert subsets[0] < subsets[1] < subsets[2]


def test_the_order_is_that_of_the_hash_that_splits_the_rows(recipe: Recipe) -> None:
    seed = recipe.data.split.seed
    texts = [split_key(duplicate_key(row["input"]["text"])) for row in ROWS]
    hashes = hash_texts(texts, seed)
    assert order_train_rows(ROWS, recipe) == sorted(range(len(ROWS)), key=lambda index: hashes[index])
    assert order_train_rows(ROWS, recipe, seed=seed + 1) != order_train_rows(ROWS, recipe)
    # A group enters the subsets as a whole, before the next one.
    groups = [GROUPED[index]["group"] for index in order_train_rows(GROUPED, recipe)]
    assert len([group for index, group in enumerate(groups) if group != groups[index - 1]]) == 20


def test_without_a_limit_or_with_a_large_one_all_rows_are_selected(recipe: Recipe) -> None:
    assert select_train_rows(ROWS, recipe) == list(range(200))
    large = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_train_rows": 500})})
    assert select_train_rows(ROWS, large) == list(range(200))


def test_a_subset_is_another_training_on_the_same_prepared_data() -> None:
    sources = [("all", "tickets.csv", "sha256 of it")]
    whole = load("classifier", (), "cpu").recipe
    subset = load("classifier", ["train.max_train_rows=100"], "cpu").recipe
    assert digests.compute_data_digest(subset, sources) == digests.compute_data_digest(whole, sources)
    assert digests.compute_training_digest(subset, "data") != digests.compute_training_digest(whole, "data")
    # The untuned base answers alike, whatever is trained on.
    assert digests.compute_untuned_digest(subset, "data", 8) == digests.compute_untuned_digest(whole, "data", 8)
    assert digests.compute_untuned_digest(subset, "data", 9) != digests.compute_untuned_digest(whole, "data", 8)
