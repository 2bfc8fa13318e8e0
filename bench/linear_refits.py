"""The linear model of `data_prep/selection/linear_model.py`, fitted many times on subsets of the same texts.

    refits = LinearRefits(["where is my card", "refund please", "card lost?"])
    fitted = refits.fit([0, 1], ["card", "refund"])
    fitted.labels, fitted.margins      the label and the margin of each of the three texts

It counts the terms of all texts once. A fit weights the counts by the document frequencies of its own rows, as the
TF-IDF vectorizers do. Logistic regression with an L2 penalty depends on the features only through the inner products of
the rows. So a fit on n rows uses n features, a Cholesky factor of those products, instead of tens of thousands. The
probabilities are those of `fit_linear_model` (a test compares them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from data_prep.arrays import Array
from insource.tasks.words import extract_terms

JITTER = 1e-10
"""Added to the diagonal, so that two rows of equal features have a Cholesky factor."""


@dataclass(frozen=True)
class Refit:
    """The predictions of one fitted model for all texts."""

    labels: list[str]
    margins: Array
    """Probability of the first label minus that of the second, float64 [texts]."""


class LinearRefits:
    """Term counts of all texts, from which models of some of them are fitted."""

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._counts: list[Any] = []
        for options in ({"analyzer": extract_terms}, {"analyzer": "char_wb", "ngram_range": (2, 5)}):
            counts = CountVectorizer(**options, dtype=np.float64).fit_transform(texts).tocsr()
            counts.data = 1.0 + np.log(counts.data)
            self._counts.append(counts)

    def fit(self, rows: Sequence[int], labels: Sequence[str]) -> Refit:
        """Return the predictions of the model that is fitted on these rows with these labels, at least two."""
        from scipy.linalg import solve_triangular
        from scipy.sparse import hstack
        from sklearn.linear_model import LogisticRegression

        features = hstack([_weight(counts, rows) for counts in self._counts], format="csr")
        fitted_rows = features[list(rows)]
        products = (fitted_rows @ fitted_rows.T).toarray()
        factor = np.linalg.cholesky(products + JITTER * np.eye(len(rows)))
        classifier = LogisticRegression(C=10.0, max_iter=1000).fit(factor, labels)
        by_row = solve_triangular(factor, classifier.coef_.T, trans="T", lower=True)
        scores = features @ (fitted_rows.T @ by_row) + classifier.intercept_
        return _predict(scores, [str(name) for name in classifier.classes_])


def score(fitted: Refit, scored: Sequence[tuple[str, str]]) -> float:
    """Return the accuracy on (text, label) rows, which are the last texts of the predictions."""
    return mean(label == truth for label, (_, truth) in zip(fitted.labels[-len(scored) :], scored, strict=True))


def _weight(counts: Any, rows: Sequence[int]) -> Any:
    """Return the TF-IDF rows of all texts, with unit norm, by the document frequencies of `rows`."""
    from scipy.sparse import diags_array
    from sklearn.preprocessing import normalize

    frequencies = counts[list(rows)].getnnz(axis=0)
    weights = np.where(frequencies > 0, np.log((1 + len(rows)) / (1 + frequencies)) + 1, 0.0)
    return normalize(counts @ diags_array(weights))


def _predict(scores: Array, names: Sequence[str]) -> Refit:
    from scipy.special import softmax

    if scores.shape[1] == 1:  # of two labels, the score is that of the second
        scores = np.hstack([np.zeros_like(scores), scores])
    probabilities = softmax(scores, axis=1)
    top = probabilities.argmax(axis=1)
    highest = np.partition(probabilities, -2, axis=1)[:, -2:]
    return Refit([names[index] for index in top.tolist()], highest[:, 1] - highest[:, 0])
