"""What a comparison has to beat first: TF-IDF features with a linear model, trained on the rows that training had.

    classification   logistic regression on words (1-2, tasks/words.py) and characters within words (2-5)
    other kinds      the answer of the train row that is most like the input, by the same features

The features are fixed, so that nobody tunes them until they lose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.errors import StageError
from tasks.words import terms

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Guess:
    """What a linear model says of a row."""

    output: str
    log_probability: float | None
    """Of the label, natural logarithm; None where an answer was copied."""


def guesses(train: Rows, asked: Rows, answers: Sequence[str], labelled: bool) -> list[Guess]:
    """Returns the guess for each row asked. `answers` are the train rows' answers as text, `labelled` whether they are
    labels to be learnt or texts to be copied."""
    return _learnt(_texts(train), answers, _texts(asked)) if labelled else _copied(train, asked, answers)


def encoded(train: Rows, asked: Rows, answers: Sequence[str], encoder: str) -> list[Guess]:
    """Returns the guesses of a linear model on a sentence encoder's features (mean of its last layer, normalised).

    Raises StageError where the encoder cannot be loaded.
    """
    features = _embedded([*_texts(train), *_texts(asked)], encoder)
    return _fitted(features[: len(train)], answers, features[len(train) :])


def nearest(train: Rows, asked: Rows, most: int) -> list[list[int]]:
    """Returns for each row asked the numbers of the train rows most like it, the most similar last: what stands next
    to the question weighs most."""
    import numpy as np

    if not most or not train:
        return [[] for _ in asked]
    features = _vectorizer()
    known = features.fit_transform(_texts(train))
    found: list[list[int]] = []
    for first in range(0, len(asked), 1024):
        similar = (features.transform(_texts(asked[first : first + 1024])) @ known.T).toarray()
        order = np.argsort(-similar, axis=1, kind="stable")[:, :most]
        found += [[int(at) for at in reversed(row)] for row in order]
    return found


def _learnt(texts: Sequence[str], answers: Sequence[str], asked: Sequence[str]) -> list[Guess]:
    features = _vectorizer()
    return _fitted(features.fit_transform(texts), answers, features.transform(asked))


def _fitted(known: Any, answers: Sequence[str], asked: Any) -> list[Guess]:
    from sklearn.linear_model import LogisticRegression

    if len(set(answers)) < 2:
        return [Guess(answers[0], 0.0)] * asked.shape[0]
    model = LogisticRegression(C=10.0, max_iter=1000)
    model.fit(known, answers)
    logs = model.predict_log_proba(asked)
    return [Guess(str(model.classes_[at]), float(row[at])) for row, at in zip(logs, logs.argmax(axis=1), strict=True)]


def _copied(train: Rows, asked: Rows, answers: Sequence[str]) -> list[Guess]:
    return [Guess(answers[found[-1]], None) for found in nearest(train, asked, 1)]


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(analyzer=terms, sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )


def _embedded(texts: Sequence[str], encoder: str) -> Any:
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
