"""What a comparison has to beat first: TF-IDF features with a linear model, trained on the rows that training had.

    classification   logistic regression on words (1-2, insource/tasks/words.py) and characters within words (2-5)
    several labels   the same for each label by itself: whether a row has it (one-vs-rest)
    other kinds      the answer of the train row that is most like the input, by the same features

The features are fixed, so that nobody tunes them until they lose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insource.config.errors import StageError
from insource.tasks.records.json_fields import canonical_json
from insource.tasks.words import extract_terms

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Prediction:
    """What a linear model says of a row."""

    output: str
    log_probability: float | None
    """Of the label, natural logarithm; None where an answer was copied."""


def predict_answers(train: Rows, asked: Rows, answers: Sequence[str], labelled: bool) -> list[Prediction]:
    """Returns the guess for each row asked. `answers` are the train rows' answers as text, `labelled` whether they are
    labels to be learnt or texts to be copied."""
    if not labelled:
        return _predict_nearest(train, asked, answers)
    known, unknown = _features(train, asked)
    return _fit_predict(known, answers, unknown)


def predict_with_encoder(train: Rows, asked: Rows, answers: Sequence[str], encoder: str) -> list[Prediction]:
    """Returns the guesses of a linear model on a sentence encoder's features (mean of its last layer, normalised).

    Raises StageError where the encoder cannot be loaded.
    """
    known, unknown = _features(train, asked, encoder)
    return _fit_predict(known, answers, unknown)


def predict_label_sets(
    train: Rows, asked: Rows, labels: Sequence[str], may_be_empty: bool, encoder: str | None = None
) -> list[Prediction]:
    """Returns the set of labels guessed for each row asked, as canonical JSON: those with a probability above a half.

    Where a row must have a label and none is above a half, it is the most probable one. Targets of train rows are sets
    of `labels`; the features are TF-IDF, or those of an `encoder`. Raises StageError where that cannot be loaded.
    """
    import numpy as np

    known, unknown = _features(train, asked, encoder)
    had = np.array([[label in row["target"] for label in labels] for row in train])
    likely = np.column_stack([_label_probability(known, column, unknown) for column in had.T])
    chosen = likely > 0.5
    if not may_be_empty:
        chosen[np.arange(len(chosen)), likely.argmax(axis=1)] |= ~chosen.any(axis=1)
    logs = np.log(np.clip(np.where(chosen, likely, 1 - likely), 1e-12, 1)).sum(axis=1)
    return [
        Prediction(canonical_json([label for label, one in zip(labels, row, strict=True) if one]), float(log))
        for row, log in zip(chosen, logs, strict=True)
    ]


def _label_probability(known: Any, had: Any, unknown: Any) -> Any:
    """The probability of one label for each row asked; `had`: which train rows have it."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    if had.all() or not had.any():
        return np.full(unknown.shape[0], float(had[0]))
    return LogisticRegression(C=10.0, max_iter=1000).fit(known, had).predict_proba(unknown)[:, 1]


def nearest_rows(train: Rows, asked: Rows, most: int) -> list[list[int]]:
    """Returns for each row asked the numbers of the train rows most like it, the most similar last: what stands next
    to the question weighs most."""
    import numpy as np

    if not most or not train:
        return [[] for _ in asked]
    features = _make_vectorizer()
    known = features.fit_transform(_texts(train))
    found: list[list[int]] = []
    for first in range(0, len(asked), 1024):
        similar = (features.transform(_texts(asked[first : first + 1024])) @ known.T).toarray()
        order = np.argsort(-similar, axis=1, kind="stable")[:, :most]
        found += [[int(at) for at in reversed(row)] for row in order]
    return found


def _features(train: Rows, asked: Rows, encoder: str | None = None) -> tuple[Any, Any]:
    """The features of train rows and of rows asked: TF-IDF, or those of an encoder."""
    if encoder is not None:
        found = _embed([*_texts(train), *_texts(asked)], encoder)
        return found[: len(train)], found[len(train) :]
    features = _make_vectorizer()
    return features.fit_transform(_texts(train)), features.transform(_texts(asked))


def _fit_predict(known: Any, answers: Sequence[str], asked: Any) -> list[Prediction]:
    from sklearn.linear_model import LogisticRegression

    if len(set(answers)) < 2:
        return [Prediction(answers[0], 0.0)] * asked.shape[0]
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(known, answers)
    logs = model.predict_log_proba(asked)
    return [
        Prediction(str(model.classes_[at]), float(row[at])) for row, at in zip(logs, logs.argmax(axis=1), strict=True)
    ]


def _predict_nearest(train: Rows, asked: Rows, answers: Sequence[str]) -> list[Prediction]:
    return [Prediction(answers[found[-1]], None) for found in nearest_rows(train, asked, 1)]


def _make_vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(analyzer=extract_terms, sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )


def _embed(texts: Sequence[str], encoder: str) -> Any:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    except (OSError, ValueError) as error:
        raise StageError(f"compare.encoder: {encoder} cannot be loaded: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = []
    with torch.inference_mode():
        for first in range(0, len(texts), 64):
            read = tokenizer(list(texts[first : first + 64]), padding=True, truncation=True, return_tensors="pt")
            layer, mask = model(**read).last_hidden_state, read["attention_mask"].unsqueeze(-1)
            found.append(torch.nn.functional.normalize((layer * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found).float().numpy()


def _texts(rows: Rows) -> list[str]:
    return [row["input"]["text"] for row in rows]
