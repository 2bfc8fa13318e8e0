"""Where things stand in the report's pictures: in percent of a picture's width and height, so that it fits any page.

in   a share of 0.912 with an interval of 0.901 to 0.922, on an axis from 0.85 to 0.95
out  {"x": 62.0, "from": 51.0, "to": 72.0}; a label beside it is placed in pixels, so that no two cover each other

The page needs no script and no style of its own for a picture: positions are attributes of SVG.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, takewhile
from math import ceil, floor, log10
from typing import Any

View = dict[str, Any]

CHARACTER_PX, LINE_PX = 7.2, 17.0
DOT_PX = 7.0
MAX_LABEL_CHARACTERS = 30
HEAT_LEVELS = 5
# Margins or interval widths, the larger ones, up to which a difference is near.
OUTLIER_FACTOR = 4
# Share by which a system is so much worse than the best that it lies below the picture of quality against cost.
FAR_BELOW_BEST = 0.15


@dataclass(frozen=True)
class Axis:
    """Figures laid along a length, evenly or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Returns where a value lies, in percent; what is outside lies at the end."""
        low, high, here = (log10(max(one, 1e-12)) if self.log else one for one in (self.low, self.high, value))
        return round(min(max(100 * (here - low) / (high - low), 0.0), 100.0), 2)

    def ticks(self, most: int = 6) -> list[View]:
        """Returns round values and where they lie, {"at", "x", "y"}: x from the left, y from the top."""
        values = _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)
        return [{"at": value, "x": self.at(value), "y": round(100 - self.at(value), 2)} for value in values]

    def interval(self, value: float, low: float, high: float) -> View:
        """Returns a value and its interval along the axis."""
        start, end = self.at(low), self.at(high)
        return {"x": self.at(value), "from": start, "to": end, "width": round(end - start, 2)}


def fraction_axis(values: Iterable[float]) -> Axis:
    """Returns an axis for shares that begins and ends at round values, with all of them on it."""
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if high - low <= 5 * step or step == 0.2)
    low, high = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    return Axis(round(low, 6), round(high, 6)) if high > low else Axis(max(low - step, 0.0), min(low + step, 1.0))


def difference_axis(comparisons: Sequence[Mapping[str, Any]]) -> Axis:
    """Returns an axis for differences with no difference and the margins on it, and every interval that lies near.

    One far away, as an untuned base may be, would leave no room to see the others by.
    """
    margins = [one["margin"] for one in comparisons if one["margin"] is not None]
    far = OUTLIER_FACTOR * max([one["ci_high"] - one["ci_low"] for one in comparisons] + margins, default=0.01)
    ends = [0.0, *margins, *(-margin for margin in margins)]
    ends += [max(min(one[end], far), -far) for one in comparisons for end in ("ci_low", "ci_high")]
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    return Axis(min(ends) - room, max(ends) + room)


def log_axis(values: Iterable[float]) -> Axis:
    """Returns a logarithmic axis for amounts above 0, from a round value to a round value."""
    found = [value for value in values if value > 0] or [1.0]
    low = max(takewhile(lambda one: one <= min(found) * (1 + 1e-9), _round_values(min(found))))
    high = next(one for one in _round_values(min(found)) if one >= max(found) * (1 - 1e-9))
    return Axis(low, high if high > low else 10 * low, log=True)


def forest_row(comparison: Mapping[str, Any], axis: Axis) -> View:
    """Returns one paired difference with no difference and the margin as lines."""
    margin = comparison["margin"]
    return {
        **axis.interval(comparison["delta"], comparison["ci_low"], comparison["ci_high"]),
        "zero": axis.at(0),
        "beyond": "right" if comparison["delta"] > axis.high else "left" if comparison["delta"] < axis.low else None,
        "margin": None if margin is None else axis.at(-margin),
    }


def quality_cost_plot(points: Sequence[Mapping[str, Any]], size: tuple[int, int], named: bool) -> View | None:
    """Returns quality against cost on a logarithmic axis; None where no system has a cost above 0.

    points  {"key", "title", "class", "value", "low", "high", "cost"}
    size    width and height in pixels for which labels are placed; the picture itself may be wider
    named   whether labels are titles, or keys alone

    Systems without a cost stand in a lane of their own, in which left and right mean nothing. One that is far worse
    than the best lies below the picture ("below"), so that the others can be told apart.
    """
    if not any(one["cost"] for one in points):
        return None
    lanes, start = _side_columns(points, 0.16 if named else 0.24)
    costs = log_axis(one["cost"] for one in points if one["cost"])
    best = max(points, key=lambda one: float(one["value"]))
    floor_ = best["value"] - max(FAR_BELOW_BEST, OUTLIER_FACTOR * (best["high"] - best["low"]))
    quality = fraction_axis(one[end] for one in points if one["value"] >= floor_ for end in ("low", "high"))
    width = 100 - start
    shown = []
    for one in points:
        lane = next((lane for lane in lanes if one["key"] in lane["keys"]), None)
        x = lane["places"][lane["keys"].index(one["key"])] if lane else start + costs.at(one["cost"]) * width / 100
        place = {"x": round(x, 2), "y": 100 - quality.at(one["value"])}
        whisker = {"top": 100 - quality.at(one["high"]), "bottom": 100 - quality.at(one["low"])}
        at = {name: round(value, 2) for name, value in {**place, **whisker}.items()}
        shown.append({**one, **at, "below": one["value"] < floor_})
    _place_labels(shown, size, named)
    across = [{**tick, "x": round(start + tick["x"] * width / 100, 2)} for tick in costs.ticks(6 if named else 4)]
    return {"points": shown, "lanes": lanes, "start": start, "x_ticks": across, "y_ticks": quality.ticks()}


def reliability_bins(calibration: Mapping[str, Any]) -> list[View]:
    """Returns the bins of a reliability picture: confidence to the right, accuracy upwards."""
    axis = Axis(0, 1)
    return [
        {
            "x": axis.at(one["confidence"]),
            "y": round(100 - axis.at(one["accuracy"]), 2),
            "top": round(100 - axis.at(one["ci_high"]), 2),
            "bottom": round(100 - axis.at(one["ci_low"]), 2),
            "n": one["n"],
        }
        for one in calibration["bins"]
        if one["n"]
    ]


def confusion_paths(counts: Sequence[Sequence[int]]) -> list[View]:
    """Returns the cells of a confusion matrix as one path for each level of shade, right and wrong apart.

    A cell's shade is its share of the rows of its label, so that rare labels can be seen.
    """
    paths: dict[tuple[bool, int], list[str]] = {}
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                paths.setdefault((x == y, shade_level(count, sum(row))), []).append(f"M{x} {y}h1v1h-1z")
    return [{"right": right, "level": level, "path": "".join(cells)} for (right, level), cells in sorted(paths.items())]


def shade_level(count: int, whole: int) -> int:
    """Returns how dark a cell is, from 0 for nothing to HEAT_LEVELS for all."""
    return min(ceil(HEAT_LEVELS * (count / whole) ** 0.5), HEAT_LEVELS) if whole else 0


def _side_columns(points: Sequence[Mapping[str, Any]], share: float) -> tuple[list[View], float]:
    """Returns the lanes of systems that have no place on the axis of costs, and where the axis begins, in percent."""
    free = [one for one in points if one["cost"] == 0]
    unknown = [one for one in points if one["cost"] is None]
    lanes: list[View] = []
    start = 0.0
    for words, members in (("costs nothing", free), ("no cost measured", unknown)):
        if members:
            width = min(100 * share + 2.5 * (len(members) - 1), 32.0)
            # Neighbours in quality stand apart, so that their intervals do not cover each other.
            ordered = sorted(members, key=lambda one: -one["value"])
            places = [start + width * (at + 0.7) / (len(ordered) + 0.4) for at in range(len(ordered))]
            keys = [one["key"] for one in ordered]
            lanes.append({"words": words, "x": start, "width": width, "keys": keys, "places": places})
            start += width + 2
    return lanes, start


Box = tuple[float, float, float, float]
# Where a label may stand, best first: pixels from its dot to its baseline, and which end of it is there.
LABEL_POSITIONS = [
    (10, 4, "start"),
    (-10, 4, "end"),
    *((dx, dy, anchor) for dy, (dx, anchor) in product((-9, 18, -22, 30), ((7, "start"), (-7, "end")))),
    (10, -36, "start"),
    (10, 44, "start"),
]


def _place_labels(points: Sequence[View], size: tuple[int, int], named: bool) -> None:
    """Gives every point {"label", "dx", "dy", "anchor", "crowded"}: its title where there is room for it, else its key;
    crowded where there is room for neither."""
    width, height = size
    where = [(one["x"] * width / 100, one["y"] * height / 100) for one in points]
    taken: list[Box] = [(x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX) for x, y in where]
    taken += [
        (x - 2, one["top"] * height / 100, x + 2, one["bottom"] * height / 100)
        for one, (x, _) in zip(points, where, strict=True)
    ]
    for one, (x, y) in zip(points, where, strict=True):
        words = one["title"] + (f", {one['value']:.0%}" if one["below"] else "")
        cut = words if len(words) <= MAX_LABEL_CHARACTERS else words[: MAX_LABEL_CHARACTERS - 1] + "…"
        for text, (dx, dy, anchor) in product(([cut] if named else []) + [str(one["key"])], LABEL_POSITIONS):
            box = _label_box(text, x + dx, y + dy, anchor)
            free = not any(_overlap(box, other) for other in taken)
            if free and box[0] >= -4 and box[2] <= width + 4 and box[1] >= -12 and box[3] <= height + 4:
                taken.append(box)
                one |= {"label": text, "dx": dx, "dy": dy, "anchor": anchor, "crowded": False}
                break
        else:
            one |= {"label": str(one["key"]), "dx": 10, "dy": 4, "anchor": "start", "crowded": True}


def _label_box(text: str, x: float, y: float, anchor: str) -> Box:
    length = CHARACTER_PX * len(text)
    left = x - length if anchor == "end" else x
    return left, y - LINE_PX * 0.75, left + length, y + LINE_PX * 0.25


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _round_values(start: float) -> Iterator[float]:
    """Yields 1, 2, 5, 10, 20 ... from the power of ten below `start` on."""
    power = floor(log10(start))
    while True:
        yield from (digit * 10.0**power for digit in (1, 2, 5))
        power += 1


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    values = [
        one for one in takewhile(lambda one: one <= high * (1 + 1e-9), _round_values(low)) if one >= low * (1 - 1e-9)
    ]
    tens = [one for one in values if abs(log10(one) - round(log10(one))) < 1e-9]
    if len(values) <= most:
        return values
    if len(tens) <= 1:
        return values[:: ceil(len(values) / most)]
    return tens[:: ceil(len(tens) / most)]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    steps = (digit * 10.0**power for power in range(-6, 12) for digit in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step < most)
    return [round(at * step, 9) for at in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
