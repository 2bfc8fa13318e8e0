"""Positions in the report's charts, in percent of width and height, so that a chart fits any page.

in   a fraction of 0.912 with an interval of 0.901 to 0.922, on an axis from 0.85 to 0.95
out  {"x": 62.0, "from": 51.0, "to": 72.0}; label offsets are in pixels, so that no two labels overlap

A chart needs no script and no style of its own: positions are attributes of SVG.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, takewhile
from math import ceil, floor, log10
from typing import Any

from insource.tracking.scores.comparison import PairedResult
from insource.tracking.scores.system_result import Reliability

View = dict[str, Any]

CHARACTER_PX, LINE_PX = 7.2, 17.0
DOT_PX = 7.0
MAX_LABEL_CHARACTERS = 30
HEAT_LEVELS = 5
# A difference is an outlier beyond this multiple of the largest margin or interval width.
OUTLIER_FACTOR = 4
# A system that is worse than the best by this fraction is drawn below the chart of quality against cost.
FAR_BELOW_BEST = 0.15


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis."""

    low: float
    high: float
    log: bool = False

    def position(self, value: float) -> float:
        """Return the position of a value in percent. Values outside the axis are clipped to its ends."""
        low, high, scaled = (
            log10(max(number, 1e-12)) if self.log else number for number in (self.low, self.high, value)
        )
        return round(min(max(100 * (scaled - low) / (high - low), 0.0), 100.0), 2)

    def ticks(self, max_ticks: int = 6) -> list[View]:
        """Return round values with their positions, {"at", "x", "y"}: x from the left, y from the top."""
        values = (
            _log_ticks(self.low, self.high, max_ticks) if self.log else _linear_ticks(self.low, self.high, max_ticks)
        )
        return [{"at": value, "x": self.position(value), "y": round(100 - self.position(value), 2)} for value in values]

    def interval(self, value: float, low: float, high: float) -> View:
        """Return the positions of a value and its interval."""
        start, end = self.position(low), self.position(high)
        return {"x": self.position(value), "from": start, "to": end, "width": round(end - start, 2)}


def fraction_axis(values: Iterable[float]) -> Axis:
    """Return an axis for fractions from -1 to 1 with round ends that contains all values."""
    numbers = list(values) or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if high - low <= 5 * step or step == 0.5)
    low, high = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    if high == low:
        # Some metrics are negative; a share is not drawn below 0.
        low, high = (max(low - step, 0.0) if low >= 0 else low - step), min(low + step, 1.0)
    return Axis(round(low, 6), round(high, 6))


def difference_axis(comparisons: Sequence[PairedResult]) -> Axis:
    """Return an axis for differences that contains zero, the margins and every interval near them.

    Outliers, such as an untuned base, are clipped: they would leave no room for the others.
    """
    margins = [comparison.margin for comparison in comparisons]
    limit = OUTLIER_FACTOR * max(
        [comparison.ci_high - comparison.ci_low for comparison in comparisons] + margins, default=0.01
    )
    bounds = [0.0, *margins, *(-margin for margin in margins)]
    bounds += [
        max(min(bound, limit), -limit)
        for comparison in comparisons
        for bound in (comparison.ci_low, comparison.ci_high)
    ]
    padding = 0.06 * (max(bounds) - min(bounds)) or 0.01
    return Axis(min(bounds) - padding, max(bounds) + padding)


def log_axis(values: Iterable[float]) -> Axis:
    """Return a logarithmic axis with round ends for amounts above 0."""
    amounts = [value for value in values if value > 0] or [1.0]
    low = max(takewhile(lambda tick: tick <= min(amounts) * (1 + 1e-9), _round_values(min(amounts))))
    high = next(tick for tick in _round_values(min(amounts)) if tick >= max(amounts) * (1 - 1e-9))
    return Axis(low, high if high > low else 10 * low, log=True)


def forest_row(comparison: PairedResult, axis: Axis) -> View:
    """Return the positions of one paired difference, with lines for zero and the margin."""
    return {
        **axis.interval(comparison.delta, comparison.ci_low, comparison.ci_high),
        "zero": axis.position(0),
        "beyond": "right" if comparison.delta > axis.high else "left" if comparison.delta < axis.low else None,
        "margin": axis.position(-comparison.margin),
    }


def quality_cost_plot(points: Sequence[Mapping[str, Any]], size: tuple[int, int], named: bool) -> View | None:
    """Return quality against cost on a logarithmic axis; None if no system has a cost above 0.

    points  {"key", "title", "class", "value", "low", "high", "cost"}
    size    width and height in pixels for which labels are placed; the chart itself may be wider
    named   whether labels are titles, or only keys

    Systems without a cost are in a column of their own, in which the horizontal position has no meaning. A system that
    is far worse than the best is drawn below the chart ("below"), so that the others can be distinguished.
    """
    if not any(point["cost"] for point in points):
        return None
    columns, start = _side_columns(points, 0.16 if named else 0.24)
    cost_axis = log_axis(point["cost"] for point in points if point["cost"])
    best = max(points, key=lambda point: float(point["value"]))
    min_quality = best["value"] - max(FAR_BELOW_BEST, OUTLIER_FACTOR * (best["high"] - best["low"]))
    quality_axis = fraction_axis(
        point[bound] for point in points if point["value"] >= min_quality for bound in ("low", "high")
    )
    width = 100 - start
    placed = []
    for point in points:
        column = next((column for column in columns if point["key"] in column["keys"]), None)
        x = (
            column["places"][column["keys"].index(point["key"])]
            if column
            else start + cost_axis.position(point["cost"]) * width / 100
        )
        location = {"x": round(x, 2), "y": 100 - quality_axis.position(point["value"])}
        whisker = {
            "top": 100 - quality_axis.position(point["high"]),
            "bottom": 100 - quality_axis.position(point["low"]),
        }
        coordinates = {name: round(value, 2) for name, value in {**location, **whisker}.items()}
        placed.append({**point, **coordinates, "below": point["value"] < min_quality})
    _place_labels(placed, size, named)
    x_ticks = [{**tick, "x": round(start + tick["x"] * width / 100, 2)} for tick in cost_axis.ticks(6 if named else 4)]
    return {"points": placed, "lanes": columns, "start": start, "x_ticks": x_ticks, "y_ticks": quality_axis.ticks()}


def reliability_bins(calibration: Reliability) -> list[View]:
    """Return the bins of a reliability diagram: confidence on the x axis, accuracy on the y axis."""
    axis = Axis(0, 1)
    return [
        {
            "x": axis.position(bucket.confidence),
            "y": round(100 - axis.position(bucket.accuracy), 2),
            "top": round(100 - axis.position(bucket.ci_high), 2),
            "bottom": round(100 - axis.position(bucket.ci_low), 2),
            "n": bucket.n,
        }
        for bucket in calibration.bins
        if bucket.n
    ]


def confusion_paths(counts: Sequence[Sequence[int]]) -> list[View]:
    """Return the cells of a confusion matrix as one SVG path for each shade, right and wrong separately.

    The shade is the cell's fraction of the rows of its label, so that rare labels are visible.
    """
    paths: dict[tuple[bool, int], list[str]] = {}
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if count:
                paths.setdefault((x == y, shade_level(count, sum(row))), []).append(f"M{x} {y}h1v1h-1z")
    return [
        {"right": correct, "level": level, "path": "".join(cells)} for (correct, level), cells in sorted(paths.items())
    ]


def shade_level(count: int, total: int) -> int:
    """Return the shade of a cell, from 0 for none to HEAT_LEVELS for all."""
    return min(ceil(HEAT_LEVELS * (count / total) ** 0.5), HEAT_LEVELS) if total else 0


def _side_columns(points: Sequence[Mapping[str, Any]], fraction: float) -> tuple[list[View], float]:
    """Return the columns of systems without a position on the cost axis, and the start of the axis in percent."""
    free = [point for point in points if point["cost"] == 0]
    unknown = [point for point in points if point["cost"] is None]
    columns: list[View] = []
    start = 0.0
    for label, members in (("costs nothing", free), ("no cost measured", unknown)):
        if members:
            width = min(100 * fraction + 2.5 * (len(members) - 1), 32.0)
            # Systems of similar quality are spread horizontally, so that their intervals do not overlap.
            ordered = sorted(members, key=lambda point: -point["value"])
            positions = [start + width * (index + 0.7) / (len(ordered) + 0.4) for index in range(len(ordered))]
            keys = [point["key"] for point in ordered]
            columns.append({"words": label, "x": start, "width": width, "keys": keys, "places": positions})
            start += width + 2
    return columns, start


Box = tuple[float, float, float, float]
# Label positions, best first: pixel offset of the label's baseline from its dot, and the text anchor.
LABEL_POSITIONS = [
    (10, 4, "start"),
    (-10, 4, "end"),
    *((dx, dy, anchor) for dy, (dx, anchor) in product((-9, 18, -22, 30), ((7, "start"), (-7, "end")))),
    (10, -36, "start"),
    (10, 44, "start"),
]


def _place_labels(points: Sequence[View], size: tuple[int, int], named: bool) -> None:
    """Give every point {"label", "dx", "dy", "anchor", "crowded"}: its title if there is room, else its key.

    It is crowded if there is room for neither.
    """
    width, height = size
    positions = [(point["x"] * width / 100, point["y"] * height / 100) for point in points]
    taken: list[Box] = [(x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX) for x, y in positions]
    taken += [
        (x - 2, point["top"] * height / 100, x + 2, point["bottom"] * height / 100)
        for point, (x, _) in zip(points, positions, strict=True)
    ]
    for point, (x, y) in zip(points, positions, strict=True):
        title = point["title"] + (f", {point['value']:.0%}" if point["below"] else "")
        truncated = title if len(title) <= MAX_LABEL_CHARACTERS else title[: MAX_LABEL_CHARACTERS - 1] + "…"
        for text, (dx, dy, anchor) in product(([truncated] if named else []) + [str(point["key"])], LABEL_POSITIONS):
            box = _label_box(text, x + dx, y + dy, anchor)
            is_free = not any(_overlap(box, occupied) for occupied in taken)
            if is_free and box[0] >= -4 and box[2] <= width + 4 and box[1] >= -12 and box[3] <= height + 4:
                taken.append(box)
                point |= {"label": text, "dx": dx, "dy": dy, "anchor": anchor, "crowded": False}
                break
        else:
            point |= {"label": str(point["key"]), "dx": 10, "dy": 4, "anchor": "start", "crowded": True}


def _label_box(text: str, x: float, y: float, anchor: str) -> Box:
    length = CHARACTER_PX * len(text)
    left = x - length if anchor == "end" else x
    return left, y - LINE_PX * 0.75, left + length, y + LINE_PX * 0.25


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _round_values(start: float) -> Iterator[float]:
    """Yield 1, 2, 5, 10, 20 ... from the power of ten below `start`."""
    power = floor(log10(start))
    while True:
        yield from (digit * 10.0**power for digit in (1, 2, 5))
        power += 1


def _log_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    values = [
        value
        for value in takewhile(lambda value: value <= high * (1 + 1e-9), _round_values(low))
        if value >= low * (1 - 1e-9)
    ]
    tens = [value for value in values if abs(log10(value) - round(log10(value))) < 1e-9]
    if len(values) <= max_ticks:
        return values
    if len(tens) <= 1:
        return values[:: ceil(len(values) / max_ticks)]
    return tens[:: ceil(len(tens) / max_ticks)]


def _linear_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    steps = (digit * 10.0**power for power in range(-6, 12) for digit in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step < max_ticks)
    return [round(index * step, 9) for index in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
