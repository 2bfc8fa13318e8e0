"""The order in which unlabelled rows should be labelled: uncertain rows that represent others, without repeats.

in   texts ["where is my card", "Where is my card?", "refund please", ...], uncertainty [0.9, 0.9, 0.4, ...], count 2
out  [0, 2]      (row 1 is a duplicate of row 0)

1. Rows are ordered by uncertainty; a keyed hash of the text breaks ties. Without uncertainty, the hash decides.
2. Rows that repeat a labelled row or an earlier row, exactly or nearly, are left out (`repeated_rows.py`).
3. Of the first MAX_CANDIDATES rows, those come first that represent the most uncertain rows best: rows that are similar
   to many of them and unlike labelled and earlier rows (`representative_rows.py`).

The similarity is the cosine of hashed TF-IDF features, reduced by a truncated SVD. Memory depends on MAX_CANDIDATES and
MAX_LABELLED and on the length of `texts`, not on the number of distinct words.

Source: Wei, Iyer and Bilmes 2015 (facility location among uncertain rows), ICML; Zhdanov 2019 (number of candidates),
arXiv:1901.05954. docs/labelling.md has the comparison with other rules.
"""

from collections.abc import Sequence

import numpy as np

from data_prep.arrays import Array
from data_prep.selection.repeated_rows import find_repeats
from data_prep.selection.representative_rows import choose_representative
from insource.config.schema.data import Deduplicate
from insource.tasks.words import extract_terms
from insource.text.split_hash import hash_texts
from insource.text.text_keys import duplicate_key

MAX_CANDIDATES = 10_000
"""Maximum number of the most uncertain rows from which rows are chosen."""
MAX_LABELLED = 10_000
"""Labelled rows to which similarities are computed: those of the lowest hash. Duplicates are searched in all."""
MAX_TEXT_CHARACTERS = 4_000
"""Characters of a text that its features come from."""
BLOCK_ROWS = 2_000
"""Rows whose sketches are compared at once, at least."""
HASHED_FEATURES = 2**18
COMPONENTS = 100


def rank_rows(
    texts: Sequence[str],
    *,
    uncertainty: Sequence[float] | None,
    labelled_texts: Sequence[str],
    count: int,
    seed: int,
    deduplicate: Deduplicate | None = None,
) -> list[int]:
    """Return the indices of up to `count` rows to label first, best first; fewer if fewer rows are distinct.

    `uncertainty` has a number in [0, 1] for each text, or is None if it is unknown. `deduplicate` is data.deduplicate;
    without it, its defaults. Raise ValueError if the lengths differ or a number is not in that range.
    """
    scores = _check_scores(texts, uncertainty)
    if count <= 0 or not len(texts):
        return []
    order = np.lexsort((hash_texts(texts, seed), -scores))
    distinct = _find_distinct(texts, order, labelled_texts, count, deduplicate)
    candidates = distinct[:MAX_CANDIDATES]
    vectors, labelled_vectors = embed_texts(
        [texts[row] for row in candidates], _sample_labelled(labelled_texts, seed), seed
    )
    positions = choose_representative(
        vectors, labelled_vectors, scores[candidates], count, all_rows=uncertainty is None
    )
    ranked = [candidates[position] for position in positions] + distinct[MAX_CANDIDATES:]
    return ranked[:count]


def _check_scores(texts: Sequence[str], uncertainty: Sequence[float] | None) -> Array:
    if uncertainty is None:
        return np.ones(len(texts))
    scores = np.asarray(uncertainty, dtype=np.float64)
    if scores.shape != (len(texts),):
        raise ValueError(f"{len(texts)} texts and {len(uncertainty)} numbers of uncertainty; give one for each text")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("uncertainty: every number must be between 0 and 1")
    return scores


def _find_distinct(
    texts: Sequence[str], order: Array, labelled_texts: Sequence[str], count: int, deduplicate: Deduplicate | None
) -> list[int]:
    """Return the first rows in this order that repeat neither a labelled row nor an earlier row.

    Rows are compared in blocks, so that only as many are sketched as are needed.
    """
    target = min(max(count, MAX_CANDIDATES), len(order))
    seen = {duplicate_key(text) for text in labelled_texts}
    distinct: list[int] = []
    block: list[int] = []
    for number, row in enumerate(order.tolist(), start=1):
        key = duplicate_key(texts[row])
        if key not in seen:
            seen.add(key)
            block.append(row)
        if block and (number == len(order) or len(block) >= max(target - len(distinct), BLOCK_ROWS)):
            references = [*labelled_texts, *(texts[kept] for kept in distinct)]
            repeats = find_repeats([texts[index] for index in block], references, deduplicate)
            distinct += [index for position, index in enumerate(block) if position not in repeats]
            block = []
        if len(distinct) >= target:
            break
    return distinct


def _sample_labelled(labelled_texts: Sequence[str], seed: int) -> list[str]:
    if len(labelled_texts) <= MAX_LABELLED:
        return list(labelled_texts)
    rows = np.argsort(hash_texts(labelled_texts, seed), kind="stable")[:MAX_LABELLED]
    return [labelled_texts[row] for row in rows]


def embed_texts(texts: Sequence[str], labelled_texts: Sequence[str], seed: int) -> tuple[Array, Array]:
    """Return unit vectors of the texts and of the labelled texts, float32 [rows, up to COMPONENTS].

    A text without features has a vector of zeros.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.utils.extmath import randomized_svd

    vectorizer = HashingVectorizer(
        analyzer=_extract_features, n_features=HASHED_FEATURES, alternate_sign=False, norm=None, dtype=np.float32
    )
    counts = vectorizer.transform([*texts, *labelled_texts])
    # A feature of one row makes no two rows similar. Most features are such, and the time of the SVD grows with them.
    counts = counts[:, np.flatnonzero(counts.getnnz(axis=0) > 1)]
    components = min(COMPONENTS, *counts.shape)
    if not components:
        return np.zeros((len(texts), 1), np.float32), np.zeros((len(labelled_texts), 1), np.float32)
    features = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    left, singular_values, _ = randomized_svd(features, components, random_state=seed)
    vectors = (left * singular_values).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return vectors[: len(texts)], vectors[len(texts) :]


def _extract_features(text: str) -> list[str]:
    return extract_terms(text[:MAX_TEXT_CHARACTERS])
