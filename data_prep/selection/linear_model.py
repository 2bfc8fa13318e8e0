"""A logistic regression on TF-IDF features, fitted on labelled texts: the label of a text, and how uncertain it is.

    model = fit_linear_model(["where is my card", "refund please"], ["card", "refund"])
    model.predict(["card lost?"])      [LinearPrediction(label="card", confidence=0.83, margin=0.66)]

The features are those of the linear baseline of a comparison: words (1-2) and characters within words (2-5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from insource.tasks.tfidf import make_vectorizer

CHUNK_ROWS = 1024
"""Texts predicted at once: their dense probabilities are the largest array."""


@dataclass(frozen=True)
class LinearPrediction:
    """The most probable label of a text."""

    label: str
    confidence: float
    """Its probability, not calibrated."""
    margin: float
    """Its probability minus that of the second label; 1 if there is only one label."""


@dataclass(frozen=True)
class LinearModel:
    """A fitted vectorizer and classifier; without a classifier, every label was `only_label`."""

    vectorizer: Any
    classifier: Any
    only_label: str

    def predict(self, texts: Sequence[str]) -> list[LinearPrediction]:
        """Return the prediction for each text."""
        if self.classifier is None:
            return [LinearPrediction(self.only_label, 1.0, 1.0)] * len(texts)
        predictions: list[LinearPrediction] = []
        for start in range(0, len(texts), CHUNK_ROWS):
            features = self.vectorizer.transform(texts[start : start + CHUNK_ROWS])
            probabilities = self.classifier.predict_proba(features)
            top = probabilities.argmax(axis=1)
            for row, index in zip(probabilities, top, strict=True):
                second, first = sorted(row)[-2:]
                label = str(self.classifier.classes_[index])
                predictions.append(LinearPrediction(label, float(first), float(first - second)))
        return predictions


def fit_linear_model(texts: Sequence[str], labels: Sequence[str]) -> LinearModel:
    """Return the model fitted on labelled texts. Raise ValueError if there are none, or not a label for each."""
    from sklearn.linear_model import LogisticRegression

    if not texts or len(texts) != len(labels):
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels; a model needs at least one text and its label")
    vectorizer = make_vectorizer()
    features = vectorizer.fit_transform(texts)
    if len(set(labels)) < 2:
        return LinearModel(vectorizer, None, labels[0])
    return LinearModel(vectorizer, LogisticRegression(C=10.0, max_iter=1000).fit(features, labels), "")


def linear_uncertainty(labelled_texts: Sequence[str], labels: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Return 1 - margin of each text in [0, 1], by a linear model fitted on the labelled texts.

    The margin is the probability of the first label minus that of the second. Raise ValueError without labelled texts.
    """
    model = fit_linear_model(labelled_texts, labels)
    return [1.0 - prediction.margin for prediction in model.predict(texts)]
