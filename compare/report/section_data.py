"""What each section of the report shows, from scores.json alone; compare/page says it.

in   "systems": {"tuned": {"metrics": {"accuracy": {"value": 0.912, "ci_low": 0.901, "ci_high": 0.922}}, ...}, ...}
out  a row {"rank": 2, "title": "tuned (adapter)", "class": "k-tuned", "fig": {"x": 61.0, "from": 50.1, "to": 71.2}}
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from compare.report import charts, wording
from compare.report.wording import Scores

View = dict[str, Any]

DESKTOP, PHONE = (640, 340), (270, 300)
"""Pixels that a picture has at least, on a desk and on a phone."""
MAX_TABLE_LABELS = 12
"""Labels up to which a confusion matrix is a table of numbers."""
MAX_DRAWN_LABELS = 250
"""Labels up to which it is drawn at all."""
MAX_PAIRS = 15
MAX_SYSTEMS = 4
MAX_TEXT_CHARACTERS = 2000
NO_VALID_ANSWER = "(no valid answer)"


def css_class(system: Mapping[str, Any]) -> str:
    """Returns the classes of a system's mark: its kind gives the colour, a stand-in is hollow."""
    return f"k-{system['kind']}" + (" hollow" if system["stand_in"] else "")


def quality(scores: Scores) -> View:
    """Returns every system with its metrics and costs, the best first and those that are not whole last."""
    metric = wording.deciding_metric(scores)
    others = [name for name in scores["task"]["metrics"] if name != metric]
    found = {name: one for name, one in scores["systems"].items() if metric in one["metrics"]}
    order = sorted(found, key=lambda name: (not found[name]["complete"], -found[name]["metrics"][metric]["value"]))
    figures = [found[name]["metrics"][metric] for name in order]
    axis = charts.fraction_axis(end for one in figures for end in (one["ci_low"], one["ci_high"]))
    rows = [
        {
            "rank": rank,
            "name": name,
            "title": wording.display_name(found[name]),
            "class": css_class(found[name]),
            "chief": name in wording.primary_pair(scores),
            "system": found[name],
            "figure": figure,
            "fig": axis.interval(figure["value"], figure["ci_low"], figure["ci_high"]),
            "others": [found[name]["metrics"].get(other) for other in others],
        }
        for rank, (name, figure) in enumerate(zip(order, figures, strict=True), 1)
    ]
    points = [
        {
            "key": row["rank"],
            "title": row["title"],
            "class": row["class"],
            "value": row["figure"]["value"],
            "low": row["figure"]["ci_low"],
            "high": row["figure"]["ci_high"],
            "cost": row["system"]["cost_usd_per_1k"],
        }
        for row in rows
    ]
    pictures = {
        "wide": charts.quality_cost_plot(points, DESKTOP, named=True),
        "phone": charts.quality_cost_plot(points, PHONE, named=False),
    }
    return {"metric": metric, "others": others, "rows": rows, "ticks": axis.ticks(4), "pictures": pictures}


def differences(scores: Scores) -> list[View]:
    """Returns the paired differences by metric, the one that decides first, each group on one axis."""
    deciding, named = wording.deciding_metric(scores), wording.display_names(scores)
    metrics = list(dict.fromkeys(one["metric"] for one in scores["comparisons"]))
    found = []
    for metric in sorted(metrics, key=lambda one: one != deciding):
        of = [one for one in scores["comparisons"] if one["metric"] == metric]
        of.sort(key=lambda one: one["family"] != "primary")
        axis = charts.difference_axis(of)
        rows = [
            {
                "one": one,
                "a": named[one["a"]],
                "b": named[one["b"]],
                "class": css_class(scores["systems"][one["b"]]),
                "chief": one["family"] == "primary",
                "fig": charts.forest_row(one, axis),
            }
            for one in of
        ]
        margins = [row["fig"]["margin"] for row in rows if row["fig"]["margin"] is not None]
        found.append({"metric": metric, "rows": rows, "ticks": axis.ticks(5), "margins": margins})
    return found


def validity(scores: Scores) -> View:
    """Returns how far the answers of each system get, and what was wrong with those that get nowhere."""
    systems = [(wording.display_name(one), one) for one in scores["systems"].values()]
    rows = [
        {"title": title, "stages": [(stage, one["validity"][stage]) for stage in wording.STAGE_LABELS]}
        for title, one in systems
        if one["validity"]
    ]
    problems = [
        {"title": title, "what": what.replace("_", " "), "count": count, "of": one["n"], "kind": kind}
        for title, one in systems
        for kind, counted in (("answer", one["invalid"]), ("call", one["errors"]))
        for what, count in sorted(counted.items(), key=lambda item: -item[1])
        if count
    ]
    return {"rows": rows, "problems": problems}


def breakdown(scores: Scores) -> View | None:
    """Returns precision, recall and F1 of each label or field and system; None where no system has any."""
    systems = {name: one for name, one in scores["systems"].items() if one["per_part"]}
    if not systems:
        return None
    order = list(dict.fromkeys(part for one in systems.values() for part in one["per_part"]))
    keys = list(systems)
    own, other = wording.primary_pair(scores)
    first = keys.index(own) if own in keys else 0
    second = keys.index(other) if other in keys else min(1, len(keys) - 1)
    figures = [[_breakdown_values(one["per_part"].get(part)) for one in systems.values()] for part in order]
    rows = [
        {"name": part, "n": max(one[3] for one in of if one), "first": of[first], "second": of[second]}
        for part, of in zip(order, figures, strict=True)
    ]
    named = [wording.display_name(one) for one in systems.values()]
    word = "field" if scores["task"]["parts"] == "fields" else "label"
    return {"word": word, "rows": rows, "systems": named, "first": first, "second": second, "figures": figures}


def confusion(scores: Scores) -> list[View]:
    """Returns who takes what for what, system by system, the pair that the comparison is about first."""
    own, other = wording.primary_pair(scores)
    names = sorted(scores["confusion"], key=lambda name: (name != own, name != other))
    counted = {name: _confused_pairs(scores["confusion"][name]) for name in names}
    found = []
    for name in names:
        labels, counts = _drop_invalid_row(scores["confusion"][name])
        columns = len(counts[0]) if counts else 0
        against = next((one for one in (own, other) if one != name and one in counted), None)
        pairs = [
            {
                "wanted": wanted,
                "given": given,
                "count": count,
                "of": of,
                "also": None if against is None else counted[against].get((wanted, given), (0, 0))[0],
            }
            for (wanted, given), (count, of) in islice(counted[name].items(), MAX_PAIRS)
        ]
        cells = [
            [
                {"count": count, "class": f"{'r' if x == y else 'w'}{charts.shade_level(count, sum(row))}"}
                for x, count in enumerate(row)
            ]
            for y, row in enumerate(counts)
        ]
        found.append(
            {
                "title": wording.display_names(scores)[name],
                "against": None if against is None else wording.display_names(scores)[against],
                "wanted": labels[: len(counts)],
                "given": labels[:columns],
                "cells": cells if columns <= MAX_TABLE_LABELS else None,
                "paths": charts.confusion_paths(counts) if MAX_TABLE_LABELS < columns <= MAX_DRAWN_LABELS else None,
                "size": (columns, len(counts)),
                "pairs": pairs,
                "wrong": sum(count for count, _ in counted[name].values()),
            }
        )
    return found


def calibration(scores: Scores) -> list[View]:
    """Returns the reliability of each system that says how sure it is."""
    return [
        {"title": wording.display_name(one), "class": css_class(one), "told": one["calibration"]}
        | {"bins": charts.reliability_bins(one["calibration"])}
        for one in scores["systems"].values()
        if one["calibration"]
    ]


def latency(scores: Scores) -> View | None:
    """Returns the latencies on one logarithmic axis; None where none was measured."""
    measured = [one for one in scores["systems"].values() if one["latency"]]
    if not measured:
        return None
    ends = [one["latency"][name] for one in measured for name in ("p50_seconds", "p95_seconds", "p99_seconds")]
    axis = charts.log_axis(ends)
    rows = [
        {"title": wording.display_name(one), "class": css_class(one), "system": one}
        | {name: axis.at(one["latency"][f"{name}_seconds"]) for name in ("p50", "p95", "p99")}
        for one in sorted(measured, key=lambda one: float(one["latency"]["p50_seconds"]))
    ]
    chief = next(
        (
            row
            for row in rows
            if row["title"] == wording.display_names(scores).get(wording.primary_pair(scores)[0] or "")
        ),
        rows[0],
    )
    return {"rows": rows, "chief": chief, "ticks": axis.ticks(4)}


def slices(scores: Scores) -> list[View]:
    """Returns the metric that decides on every slice, for the pair and a few others."""
    metric = wording.deciding_metric(scores)
    chief = [name for name in wording.primary_pair(scores) if name]
    names = [*chief, *(name for name in scores["systems"] if name not in chief)]
    names = [name for name in dict.fromkeys(names) if scores["systems"][name]["slices"]][:MAX_SYSTEMS]
    systems = [scores["systems"][name] for name in names]
    found = []
    for kind in dict.fromkeys(kind for one in systems for kind in one["slices"]):
        values = dict.fromkeys(value for one in systems for value in one["slices"].get(kind, {}))
        of = {value: [one["slices"].get(kind, {}).get(value) for one in systems] for value in values}
        figures = {value: [one["metrics"].get(metric) if one else None for one in told] for value, told in of.items()}
        ends = [one[end] for told in figures.values() for one in told if one for end in ("ci_low", "ci_high")]
        axis = charts.fraction_axis(ends)
        rows = [
            {
                "value": value,
                "n": max(one["n"] for one in of[value] if one),
                "cells": [_interval_cell(one, axis) for one in told],
            }
            for value, told in figures.items()
        ]
        found.append({"name": kind, "rows": rows, "ticks": axis.ticks(4)})
    marks = [{"title": wording.display_name(one), "class": css_class(one)} for one in systems]
    return [{**one, "systems": marks, "left_out": len(scores["systems"]) - len(marks)} for one in found]


def disagreements(scores: Scores, rows: Sequence[Mapping[str, Any]]) -> View | None:
    """Returns the rows in which two systems differ, by which of the two is right; None where there are none."""
    if not rows:
        return None
    chief = [name for name in wording.primary_pair(scores) if name in rows[0]["answers"]]
    a, b = [*chief, *(name for name in rows[0]["answers"] if name not in chief)][:2]
    shown = []
    for one in rows:
        right = one["right"][a], one["right"][b]
        who = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}[right]
        texts = {
            "input": one["input"],
            "target": one["target"],
            "first": one["answers"][a],
            "second": one["answers"][b],
        }
        cut = {name: _truncate(text) for name, text in texts.items()}
        shown.append({"id": one["id"], "who": who, "right": right, "confidence": one["confidence"], **cut})
    named = wording.display_names(scores)
    agreement = scores["agreement"].get(f"{a} | {b}", scores["agreement"].get(f"{b} | {a}"))
    counts = Counter(one["who"] for one in shown)
    return {"a": named[a], "b": named[b], "rows": shown, "counts": counts, "agreement": agreement}


def agreement(scores: Scores) -> list[View]:
    """Returns how often two systems give the same answer, most often first."""
    named = wording.display_names(scores)
    found = []
    for both, share in sorted(scores["agreement"].items(), key=lambda item: -item[1]):
        a, _, b = both.partition(" | ")
        found.append({"a": named.get(a, a), "b": named.get(b, b), "share": share})
    return found


def _breakdown_values(told: Mapping[str, Any] | None) -> list[Any] | None:
    return None if told is None else [told["precision"], told["recall"], told["f1"], told["n"]]


def _interval_cell(figure: Mapping[str, Any] | None, axis: charts.Axis) -> View | None:
    if figure is None:
        return None
    return {"told": figure, "fig": axis.interval(figure["value"], figure["ci_low"], figure["ci_high"])}


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]} … ({len(text):,} characters)"


def _drop_invalid_row(told: Mapping[str, Any]) -> tuple[list[str], list[list[int]]]:
    """Returns the labels and the counts without the row of what no row can want: no valid answer."""
    labels, counts = list(told["labels"]), [list(row) for row in told["counts"]]
    if len(counts) == len(labels) and labels and labels[-1] == NO_VALID_ANSWER:
        counts = counts[:-1]
    return labels, counts


def _confused_pairs(told: Mapping[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns {(wanted, given): (rows, rows of the wanted label)} of what was confused, most often first."""
    labels, counts = _drop_invalid_row(told)
    found = {
        (labels[y], labels[x]): (count, sum(row))
        for y, row in enumerate(counts)
        for x, count in enumerate(row)
        if count and x != y
    }
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))
