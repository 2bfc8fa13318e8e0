"""The section `curve`: `make curve`, which estimates the gain from more labels.

curve: {points: 5, target_gain: 0.01}
"""

from typing import Annotated

from pydantic import Field

from insource.config.schema.section import OpenFraction, Section


class Curve(Section):
    """The learning curve over subsets of the train rows."""

    points: Annotated[int, Field(ge=2, le=10)] = 5
    """Number of sizes: all train rows, a half, a quarter and so on."""
    target_gain: OpenFraction = 0.01
    """Gain of the metric that is worth doubling the labels; 0.01 is one point."""
    alpha: OpenFraction = 0.05
    """Intervals are at 1 - alpha."""
