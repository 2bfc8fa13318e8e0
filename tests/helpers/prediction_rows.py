"""Rows for tests of bulk prediction, and a linear model's predictions of them."""

import math
from functools import cache
from typing import Any

from compare.systems import linear_baseline
from insource.tasks.data_row import InputRow
from tests.helpers.gateway.task_gateway import LABELS

PHRASES = {
    "late": ["is still not here", "has been under way for weeks", "should have come on monday"],
    "lost": ["is nowhere to be found", "was given to nobody", "has vanished from the tracking"],
    "broken": ["came in pieces", "has a crack in it", "does not switch on"],
}


TEXTS = [f"order {index}: my parcel {PHRASES[LABELS[index % 3]][index // 3 % 3]}" for index in range(240)]


@cache
def linear_predictions() -> dict[str, tuple[str, float]]:
    """Return {text: (label, probability)} of TEXTS by a linear model."""
    train = _input_rows([f"my parcel {phrase}" for label in LABELS for phrase in PHRASES[label]])
    labels = [label for label in LABELS for _ in PHRASES[label]]
    predictions = linear_baseline.predict_answers(train, _input_rows(TEXTS), labels, True)
    probabilities = [(prediction.output, math.exp(prediction.log_probability or 0.0)) for prediction in predictions]
    return dict(zip(TEXTS, probabilities, strict=True))


def _input_rows(texts: list[str]) -> list[InputRow]:
    return [{"id": str(index), "input": {"text": text}} for index, text in enumerate(texts)]


def make_rows(texts: list[str]) -> list[dict[str, Any]]:
    return [{"number": index, "message": text} for index, text in enumerate(texts)]
