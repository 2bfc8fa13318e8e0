"""The cheapest baselines: TF-IDF features with a linear model, fitted on the train rows.

    classification   logistic regression on words (1-2, insource/tasks/words.py) and characters within words (2-5)
    several labels   one binary classifier for each label (one-vs-rest)
    other kinds      the answer of the train row that is most similar to the input, by the same features

The features are fixed, so that the baseline cannot be weakened by tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compare.eval_dataset import EvalDataset
from insource.config.errors import StageError
from insource.tasks.data_row import InputRows, Rows
from insource.tasks.records.json_fields import canonical_json
from insource.tasks.tfidf import make_vectorizer, nearest_rows


@dataclass(frozen=True)
class BaselinePrediction:
    """The prediction of a linear model for a row."""

    output: str
    log_probability: float | None
    """Of the label, natural logarithm; None for a copied answer."""


def predict_dataset(dataset: EvalDataset, encoder: str | None = None) -> list[BaselinePrediction]:
    """Return the prediction for each row of `dataset.test`, fitted on `dataset.train`.

    The features are TF-IDF, or those of `encoder`. Raise StageError if the encoder cannot be loaded.
    """
    task, train, rows = dataset.task, dataset.train, dataset.test
    if task.IS_MULTILABEL:
        return predict_label_sets(train, rows, list(dataset.spec.labels), dataset.spec.may_be_empty, encoder)
    return predict_answers(train, rows, dataset.train_answers, task.HAS_LABELS, encoder)


def predict_answers(
    train: InputRows, rows: InputRows, answers: Sequence[str], labelled: bool, encoder: str | None = None
) -> list[BaselinePrediction]:
    """Return the prediction for each row.

    `answers` are the answers of the train rows as text. If `labelled`, they are classes to predict, else texts to copy.
    The features of a classifier are TF-IDF, or those of `encoder`. Raise StageError if the encoder cannot be loaded.
    """
    if not labelled:
        return [BaselinePrediction(answers[indices[-1]], None) for indices in nearest_rows(train, rows, 1)]
    train_features, features = _features(train, rows, encoder)
    if len(set(answers)) < 2:
        return [BaselinePrediction(answers[0], 0.0)] * len(rows)
    model = _fit_classifier(train_features, answers)
    log_probabilities = model.predict_log_proba(features)
    return [
        BaselinePrediction(str(model.classes_[index]), float(row[index]))
        for row, index in zip(log_probabilities, log_probabilities.argmax(axis=1), strict=True)
    ]


def predict_label_sets(
    train: Rows, rows: Rows, labels: Sequence[str], may_be_empty: bool, encoder: str | None = None
) -> list[BaselinePrediction]:
    """Return the predicted set of labels for each row, as canonical JSON: those with a probability above 0.5.

    If a row must have a label and none is above 0.5, the most probable one is taken. Targets of train rows are sets of
    `labels`. The features are TF-IDF, or those of `encoder`. Raise StageError if the encoder cannot be loaded.
    """
    import numpy as np

    train_features, features = _features(train, rows, encoder)
    has_label = np.array([[label in row["target"] for label in labels] for row in train])
    probabilities = np.column_stack([_label_probability(train_features, column, features) for column in has_label.T])
    selected = probabilities > 0.5
    if not may_be_empty:
        selected[np.arange(len(selected)), probabilities.argmax(axis=1)] |= ~selected.any(axis=1)
    log_probabilities = np.log(np.clip(np.where(selected, probabilities, 1 - probabilities), 1e-12, 1)).sum(axis=1)
    return [
        BaselinePrediction(
            canonical_json([label for label, is_selected in zip(labels, row, strict=True) if is_selected]),
            float(log_probability),
        )
        for row, log_probability in zip(selected, log_probabilities, strict=True)
    ]


def _label_probability(train_features: Any, has_label: Any, features: Any) -> Any:
    """Return the probability of one label for each row. `has_label` is the label's column of the train rows."""
    import numpy as np

    if has_label.all() or not has_label.any():
        return np.full(features.shape[0], float(has_label[0]))
    return _fit_classifier(train_features, has_label).predict_proba(features)[:, 1]


def _fit_classifier(train_features: Any, targets: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=1000).fit(train_features, targets)


def _features(train: InputRows, rows: InputRows, encoder: str | None = None) -> tuple[Any, Any]:
    """Return the features of train rows and of the other rows.

    They are TF-IDF, or those of a sentence encoder: the mean of its last layer, normalised.
    """
    if encoder is not None:
        embeddings = _embed([*_texts(train), *_texts(rows)], encoder)
        return embeddings[: len(train)], embeddings[len(train) :]
    vectorizer = make_vectorizer()
    return vectorizer.fit_transform(_texts(train)), vectorizer.transform(_texts(rows))


def _embed(texts: Sequence[str], encoder: str) -> Any:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    except (OSError, ValueError) as error:
        raise StageError(
            f"compare.encoder: {encoder} cannot be loaded: {str(error).splitlines()[0]}", code="INS-C009"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    chunks = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            encoded = tokenizer(list(texts[start : start + 64]), padding=True, truncation=True, return_tensors="pt")
            layer, mask = model(**encoded).last_hidden_state, encoded["attention_mask"].unsqueeze(-1)
            chunks.append(torch.nn.functional.normalize((layer * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(chunks).float().numpy()


def _texts(rows: InputRows) -> list[str]:
    return [row["input"]["text"] for row in rows]
