"""Rows with several labels."""

import random
from typing import Any

from tests.helpers.distinct_texts import distinct_texts

TASK = "{kind: classification, instruction: Name all topics of it., labels_per_row: many}"


def draw_label_sets(count: int) -> list[list[str]]:
    """Sets of three labels, none and all among them, in no order of their own."""
    rng = random.Random(7)
    return [rng.sample(["late", "torn", "refund"], rng.choice([0, 1, 1, 2, 3])) for _ in range(count)]


def rows(count: int = 240) -> list[dict[str, Any]]:
    return [
        {"text": text, "label": labels}
        for text, labels in zip(distinct_texts(count), draw_label_sets(count), strict=True)
    ]
