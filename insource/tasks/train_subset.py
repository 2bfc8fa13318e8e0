"""Subsets of the train rows: `train.max_train_rows`, and the sizes of a learning curve.

    5,184 train rows, max_train_rows 648  -> the 648 rows with the smallest keyed hashes

The hash is that of the splits (insource/text/split_hash.py): of the row's group, or of its text. Rows of one group are
neighbours in that order. A subset may end within a group.
"""

from insource.config.recipe import Recipe
from insource.tasks.data_row import Rows
from insource.text.split_hash import make_split_unit, order_by_hash
from insource.text.text_keys import duplicate_key


def order_train_rows(rows: Rows, recipe: Recipe, seed: int | None = None) -> list[int]:
    """Return the indices of prepared train rows, in the order in which subsets take them.

    `seed` is the key of the hash, by default `data.split.seed`.
    """
    split = recipe.data.split
    by_id = bool(split.group and recipe.data.columns.id)
    units = [
        make_split_unit(row.get("group"), row["id"], duplicate_key(row["input"]["text"]), by_id=by_id) for row in rows
    ]
    return order_by_hash(units, [row["id"] for row in rows], split.seed if seed is None else seed)


def select_train_rows(rows: Rows, recipe: Recipe) -> list[int]:
    """Return the indices of the rows that `train.max_train_rows` selects, in the order of the rows."""
    max_rows = recipe.train.max_train_rows
    if max_rows is None or max_rows >= len(rows):
        return list(range(len(rows)))
    return sorted(order_train_rows(rows, recipe)[:max_rows])
