"""TF-IDF features of texts, and the most similar rows by them.

    nearest_rows(train, [row("where is the parcel")], 2)    [[2, 0]]      indices in train, the most similar last
    nearest_other_rows(train, 2)                            [[1, 2], ...] the same for each row of train

The features are words (1-2) and characters within words (2-5). The linear baseline uses them, and prompts with examples
(few_shot.py): of the comparison, and of a training with `train.shots`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from insource.tasks.data_row import InputRows, Rows
from insource.tasks.words import extract_terms
from insource.text.text_keys import duplicate_key

MAX_CHUNK_ROWS = 1024
MAX_CHUNK_CELLS = 2**24
"""Similarities computed at once, 8 bytes each."""


def make_vectorizer() -> Any:
    """Return the TF-IDF vectorizer of words and characters, not yet fitted."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(analyzer=extract_terms, sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )


def nearest_rows(train: InputRows, rows: InputRows, max_rows: int) -> list[list[int]]:
    """Return for each row the indices of the most similar train rows, the most similar last.

    The last example is next to the question and has most influence.
    """
    return _rank_rows(train, rows, max_rows, lambda _: ())


def nearest_other_rows(train: Rows, max_rows: int) -> list[list[int]]:
    """Return for each train row the indices of the most similar other train rows, the most similar last.

    A row with the same text (by its duplicate key) or of the same group is left out: a held-out row has none in train.
    A row may therefore have less than `max_rows`, or none.
    """
    keys = [duplicate_key(row["input"]["text"]) for row in train]
    related: dict[tuple[str, str], list[int]] = {}
    for index, (row, key) in enumerate(zip(train, keys, strict=True)):
        related.setdefault(("text", key), []).append(index)
        if (group := row.get("group")) is not None:
            related.setdefault(("group", group), []).append(index)

    def find_related(index: int) -> Iterable[int]:
        group = train[index].get("group")
        yield from related["text", keys[index]]
        yield from related["group", group] if group is not None else ()

    return _rank_rows(train, train, max_rows, find_related)


def _rank_rows(
    train: InputRows, rows: InputRows, max_rows: int, find_excluded: Callable[[int], Iterable[int]]
) -> list[list[int]]:
    """Return the most similar train rows of each row, without those that `find_excluded` returns for its index."""
    import numpy as np

    if not max_rows or not train:
        return [[] for _ in rows]
    vectorizer = make_vectorizer()
    train_features = vectorizer.fit_transform(_texts(train))
    chunk_rows = max(1, min(MAX_CHUNK_ROWS, MAX_CHUNK_CELLS // len(train)))
    ranked: list[list[int]] = []
    for start in range(0, len(rows), chunk_rows):
        chunk = rows[start : start + chunk_rows]
        similar = (vectorizer.transform(_texts(chunk)) @ train_features.T).toarray()
        for offset, similarities in enumerate(similar):
            similarities[list(find_excluded(start + offset))] = -1.0  # below every similarity
        order = np.argsort(-similar, axis=1, kind="stable")[:, :max_rows]
        ranked += [
            [int(index) for index in reversed(indices) if similarities[index] >= 0]
            for indices, similarities in zip(order, similar, strict=True)
        ]
    return ranked


def _texts(rows: InputRows) -> list[str]:
    return [row["input"]["text"] for row in rows]
