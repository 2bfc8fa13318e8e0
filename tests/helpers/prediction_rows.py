"""Rows for tests of bulk prediction, and what a linear model says of them."""

import math
from functools import cache
from typing import Any

from compare.systems import linear_baseline
from tests.helpers.gateway.task_gateway import LABELS

PHRASES = {
    "late": ["is still not here", "has been under way for weeks", "should have come on monday"],
    "lost": ["is nowhere to be found", "was given to nobody", "has vanished from the tracking"],
    "broken": ["came in pieces", "has a crack in it", "does not switch on"],
}


TEXTS = [f"order {at}: my parcel {PHRASES[LABELS[at % 3]][at // 3 % 3]}" for at in range(240)]


@cache
def linear_predictions() -> dict[str, tuple[str, float]]:
    """What a linear model says of TEXTS, with its probability."""
    train = [{"input": {"text": f"my parcel {words}"}} for label in LABELS for words in PHRASES[label]]
    labels = [label for label in LABELS for _ in PHRASES[label]]
    found = linear_baseline.predict_answers(train, [{"input": {"text": text}} for text in TEXTS], labels, True)
    likely = [(one.output, math.exp(one.log_probability or 0.0)) for one in found]
    return dict(zip(TEXTS, likely, strict=True))


def make_rows(texts: list[str]) -> list[dict[str, Any]]:
    return [{"number": at, "message": text} for at, text in enumerate(texts)]
