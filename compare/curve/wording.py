"""The conclusion of a learning curve in words, and its table for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from insource.system.number_format import format_percent, format_points, format_range
from insource.tasks import metric_label

TITLES = {"tuned": "tuned model", "linear": "linear model"}
HEADLINES = {
    "helps": "More labels would help.",
    "enough": "More labels would bring little.",
    "undecided": "Whether more labels would help is unknown.",
}


def describe_conclusion(payload: Mapping[str, Any], name: str) -> str:
    """Return one paragraph: what doubling the labels would bring, with its interval. `payload` is curve.json."""
    curve = payload["curves"][name]
    doubling, title = curve["doubling"], TITLES[name]
    if doubling is None:
        return f"The {title} has one size so far, which gives no curve."
    metric, confidence = metric_label(payload["metric"]), f"{1 - payload['alpha']:.0%}"
    estimate = (
        f"Doubling the train rows from {doubling['train_rows']:,} to {doubling['doubled_rows']:,} would bring the "
        f"{title} {format_points(doubling['gain'])} points of {metric} "
        f"({confidence} interval {format_range(doubling['low'], doubling['high'])})"
    )
    target = f"{format_points(payload['target_gain'])} points (curve.target_gain)"
    return {
        "helps": f"{HEADLINES['helps']} {estimate}. That is at least {target}.",
        "enough": f"{HEADLINES['enough']} {estimate}. That is less than {target}.",
        "undecided": (
            f"{HEADLINES['undecided']} {estimate}. The interval contains {target}. "
            f"{doubling['n']:,} validation rows do not resolve that; more validation rows narrow it."
        ),
    }[curve["conclusion"]]


def describe_basis(payload: Mapping[str, Any], name: str) -> str:
    """Return the basis of the estimate: the power law with its exponent, and the sizes of the interval."""
    curve = payload["curves"][name]
    law, doubling = curve["law"], curve["doubling"]
    if doubling is None:
        return ""
    interval = f"The interval: a quarter to all of the last doubling's gain, on {doubling['n']:,} validation rows."
    if law is None:
        return interval
    low, high = law["exponent_interval"]
    return (
        f"Power law over {len(law['sizes'])} sizes: error = {law['asymptote']:.3f} + {law['scale']:.3g} · "
        f"n^-{law['exponent']:.2f} (exponent {low:.2f} to {high:.2f}). {interval}"
    )


def describe_stop(payload: Mapping[str, Any]) -> str | None:
    """Return why trainings were left out, None if none was."""
    if not payload["stopped_early"]:
        return None
    trained = {point["train_rows"] for point in payload["curves"]["tuned"]["points"]}
    left_out = [size for size in payload["planned_sizes"] if size not in trained]
    return (
        f"Stopped early: the answer was clear after {len(trained)} of {len(payload['planned_sizes'])} sizes. Not "
        f"trained: {', '.join(f'{size:,}' for size in left_out)} rows."
    )


def describe_api_level(level: Mapping[str, Any]) -> str:
    """Return the level of an API model, and on which rows it was measured."""
    return (
        f"{level['title']}: {format_percent(level['value'])} ({format_range(level['low'], level['high'])}) "
        f"on {level['n']:,} test rows, by the comparison of run {level['run']}; the curves are on validation rows"
    )


def table_lines(payload: Mapping[str, Any]) -> list[str]:
    """Return the points of all curves as aligned lines, one for each size."""
    metric = metric_label(payload["metric"])
    header = ["rows"]
    for name in payload["curves"]:
        header += [f"{name} {metric}", f"{1 - payload['alpha']:.0%} interval", "to the size before"]
    rows = [header]
    for size in payload["planned_sizes"]:
        cells = [f"{size:,}"]
        for curve in payload["curves"].values():
            cells += _point_cells(curve, size)
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def summary_lines(payload: Mapping[str, Any]) -> list[str]:
    """Return everything that the console shows at the end."""
    lines = table_lines(payload)
    for name in payload["curves"]:
        lines.append(f"{name:<9} {describe_conclusion(payload, name)}")
        lines += [f"          {basis}"] if (basis := describe_basis(payload, name)) else []
    lines += [f"stopped   {stop}"] if (stop := describe_stop(payload)) else []
    return [*lines, *(f"api       {describe_api_level(level)}" for level in payload["api"])]


def _point_cells(curve: Mapping[str, Any], size: int) -> Sequence[str]:
    point = next((point for point in curve["points"] if point["train_rows"] == size), None)
    if point is None:
        return "not trained", "", ""
    difference = next((difference for difference in curve["differences"] if difference["to"] == size), None)
    change = (
        f"{100 * difference['delta']:+.1f} ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
        if difference
        else ""
    )
    return format_percent(point["value"]), format_range(point["low"], point["high"]), change
