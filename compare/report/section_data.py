"""The data of each section of the report, computed only from scores.json. compare/report/templates/ renders them.

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
"""Minimum size of a chart in pixels, on a desktop and on a phone."""
MAX_TABLE_LABELS = 12
"""Maximum number of labels of a confusion matrix that is a table of numbers."""
MAX_DRAWN_LABELS = 250
"""Maximum number of labels of a confusion matrix that is drawn."""
MAX_PAIRS = 15
MAX_SYSTEMS = 4
MAX_TEXT_CHARACTERS = 2000
NO_VALID_ANSWER = "(no valid answer)"


def css_class(system: Mapping[str, Any]) -> str:
    """Return the CSS classes of a system: its kind gives the colour, a stand-in is hollow."""
    return f"k-{system['kind']}" + (" hollow" if system["stand_in"] else "")


def quality(scores: Scores) -> View:
    """Return every system with its metrics and costs, the best first and incomplete systems last."""
    metric = wording.deciding_metric(scores)
    other_metrics = [name for name in scores["task"]["metrics"] if name != metric]
    systems = {name: system for name, system in scores["systems"].items() if metric in system["metrics"]}
    order = sorted(
        systems, key=lambda name: (not systems[name]["complete"], -systems[name]["metrics"][metric]["value"])
    )
    values = [systems[name]["metrics"][metric] for name in order]
    axis = charts.fraction_axis(bound for value in values for bound in (value["ci_low"], value["ci_high"]))
    rows = [
        {
            "rank": rank,
            "name": name,
            "title": wording.display_name(systems[name]),
            "class": css_class(systems[name]),
            "chief": name in wording.primary_pair(scores),
            "system": systems[name],
            "figure": value,
            "fig": axis.interval(value["value"], value["ci_low"], value["ci_high"]),
            "others": [systems[name]["metrics"].get(other_metric) for other_metric in other_metrics],
        }
        for rank, (name, value) in enumerate(zip(order, values, strict=True), 1)
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
    return {"metric": metric, "others": other_metrics, "rows": rows, "ticks": axis.ticks(4), "pictures": pictures}


def differences(scores: Scores) -> list[View]:
    """Return the paired differences by metric, the deciding one first, each group on one axis."""
    deciding, titles = wording.deciding_metric(scores), wording.display_names(scores)
    metrics = list(dict.fromkeys(comparison["metric"] for comparison in scores["comparisons"]))
    groups = []
    for metric in sorted(metrics, key=lambda name: name != deciding):
        group = [comparison for comparison in scores["comparisons"] if comparison["metric"] == metric]
        group.sort(key=lambda comparison: comparison["family"] != "primary")
        axis = charts.difference_axis(group)
        rows = [
            {
                "one": comparison,
                "a": titles[comparison["a"]],
                "b": titles[comparison["b"]],
                "class": css_class(scores["systems"][comparison["b"]]),
                "chief": comparison["family"] == "primary",
                "fig": charts.forest_row(comparison, axis),
            }
            for comparison in group
        ]
        margins = [row["fig"]["margin"] for row in rows if row["fig"]["margin"] is not None]
        groups.append({"metric": metric, "rows": rows, "ticks": axis.ticks(5), "margins": margins})
    return groups


def validity(scores: Scores) -> View:
    """Return the fraction of each system's answers that passes each validity stage, and the problems of the others."""
    systems = [(wording.display_name(system), system) for system in scores["systems"].values()]
    rows = [
        {"title": title, "stages": [(stage, system["validity"][stage]) for stage in wording.STAGE_LABELS]}
        for title, system in systems
        if system["validity"]
    ]
    problems = [
        {"title": title, "what": problem.replace("_", " "), "count": count, "of": system["n"], "kind": kind}
        for title, system in systems
        for kind, counts in (("answer", system["invalid"]), ("call", system["errors"]))
        for problem, count in sorted(counts.items(), key=lambda item: -item[1])
        if count
    ]
    return {"rows": rows, "problems": problems}


def breakdown(scores: Scores) -> View | None:
    """Return precision, recall and F1 of each label or field and system; None if no system has them."""
    systems = {name: system for name, system in scores["systems"].items() if system["per_part"]}
    if not systems:
        return None
    parts = list(dict.fromkeys(part for system in systems.values() for part in system["per_part"]))
    keys = list(systems)
    tuned, baseline = wording.primary_pair(scores)
    first_index = keys.index(tuned) if tuned in keys else 0
    second_index = keys.index(baseline) if baseline in keys else min(1, len(keys) - 1)
    values = [[_breakdown_values(system["per_part"].get(part)) for system in systems.values()] for part in parts]
    rows = [
        {
            "name": part,
            "n": max(entry[3] for entry in part_values if entry),
            "first": part_values[first_index],
            "second": part_values[second_index],
        }
        for part, part_values in zip(parts, values, strict=True)
    ]
    titles = [wording.display_name(system) for system in systems.values()]
    word = "field" if scores["task"]["parts"] == "fields" else "label"
    return {
        "word": word,
        "rows": rows,
        "systems": titles,
        "first": first_index,
        "second": second_index,
        "figures": values,
    }


def confusion(scores: Scores) -> list[View]:
    """Return the confusion matrix of each system, the two systems of the plan first."""
    tuned, baseline = wording.primary_pair(scores)
    names = sorted(scores["confusion"], key=lambda name: (name != tuned, name != baseline))
    confused_pairs = {name: _confused_pairs(scores["confusion"][name]) for name in names}
    views = []
    for name in names:
        labels, counts = _drop_invalid_row(scores["confusion"][name])
        columns = len(counts[0]) if counts else 0
        other_name = next(
            (candidate for candidate in (tuned, baseline) if candidate != name and candidate in confused_pairs), None
        )
        pairs = [
            {
                "wanted": target,
                "given": predicted,
                "count": count,
                "of": total,
                "also": None if other_name is None else confused_pairs[other_name].get((target, predicted), (0, 0))[0],
            }
            for (target, predicted), (count, total) in islice(confused_pairs[name].items(), MAX_PAIRS)
        ]
        cells = [
            [
                {"count": count, "class": f"{'r' if x == y else 'w'}{charts.shade_level(count, sum(row))}"}
                for x, count in enumerate(row)
            ]
            for y, row in enumerate(counts)
        ]
        views.append(
            {
                "title": wording.display_names(scores)[name],
                "against": None if other_name is None else wording.display_names(scores)[other_name],
                "wanted": labels[: len(counts)],
                "given": labels[:columns],
                "cells": cells if columns <= MAX_TABLE_LABELS else None,
                "paths": charts.confusion_paths(counts) if MAX_TABLE_LABELS < columns <= MAX_DRAWN_LABELS else None,
                "size": (columns, len(counts)),
                "pairs": pairs,
                "wrong": sum(count for count, _ in confused_pairs[name].values()),
            }
        )
    return views


def calibration(scores: Scores) -> list[View]:
    """Return the reliability of each system with confidences."""
    return [
        {"title": wording.display_name(system), "class": css_class(system), "told": system["calibration"]}
        | {"bins": charts.reliability_bins(system["calibration"])}
        for system in scores["systems"].values()
        if system["calibration"]
    ]


def latency(scores: Scores) -> View | None:
    """Return the latencies on one logarithmic axis; None if none was measured."""
    measured = [system for system in scores["systems"].values() if system["latency"]]
    if not measured:
        return None
    values = [system["latency"][name] for system in measured for name in ("p50_seconds", "p95_seconds", "p99_seconds")]
    axis = charts.log_axis(values)
    rows = [
        {"title": wording.display_name(system), "class": css_class(system), "system": system}
        | {name: axis.position(system["latency"][f"{name}_seconds"]) for name in ("p50", "p95", "p99")}
        for system in sorted(measured, key=lambda system: float(system["latency"]["p50_seconds"]))
    ]
    primary_row = next(
        (
            row
            for row in rows
            if row["title"] == wording.display_names(scores).get(wording.primary_pair(scores)[0] or "")
        ),
        rows[0],
    )
    return {"rows": rows, "chief": primary_row, "ticks": axis.ticks(4)}


def slices(scores: Scores) -> list[View]:
    """Return the deciding metric on every slice, for the two systems of the plan and a few others."""
    metric = wording.deciding_metric(scores)
    primary_names = [name for name in wording.primary_pair(scores) if name]
    names = [*primary_names, *(name for name in scores["systems"] if name not in primary_names)]
    names = [name for name in dict.fromkeys(names) if scores["systems"][name]["slices"]][:MAX_SYSTEMS]
    systems = [scores["systems"][name] for name in names]
    views = []
    for kind in dict.fromkeys(kind for system in systems for kind in system["slices"]):
        values = dict.fromkeys(value for system in systems for value in system["slices"].get(kind, {}))
        slices_by_value = {value: [system["slices"].get(kind, {}).get(value) for system in systems] for value in values}
        metrics_by_value = {
            value: [entry["metrics"].get(metric) if entry else None for entry in system_slices]
            for value, system_slices in slices_by_value.items()
        }
        bounds = [
            entry[bound]
            for entries in metrics_by_value.values()
            for entry in entries
            if entry
            for bound in ("ci_low", "ci_high")
        ]
        axis = charts.fraction_axis(bounds)
        rows = [
            {
                "value": value,
                "n": max(entry["n"] for entry in slices_by_value[value] if entry),
                "cells": [_interval_cell(entry, axis) for entry in entries],
            }
            for value, entries in metrics_by_value.items()
        ]
        views.append({"name": kind, "rows": rows, "ticks": axis.ticks(4)})
    marks = [{"title": wording.display_name(system), "class": css_class(system)} for system in systems]
    return [{**view, "systems": marks, "left_out": len(scores["systems"]) - len(marks)} for view in views]


def disagreements(scores: Scores, rows: Sequence[Mapping[str, Any]]) -> View | None:
    """Return the rows in which two systems differ, with the system that is right; None if there are none."""
    if not rows:
        return None
    primary_names = [name for name in wording.primary_pair(scores) if name in rows[0]["answers"]]
    a, b = [*primary_names, *(name for name in rows[0]["answers"] if name not in primary_names)][:2]
    display_rows = []
    for row in rows:
        correct = row["right"][a], row["right"][b]
        outcome = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}[
            correct
        ]
        texts = {
            "input": row["input"],
            "target": row["target"],
            "first": row["answers"][a],
            "second": row["answers"][b],
        }
        truncated = {name: _truncate(text) for name, text in texts.items()}
        display_rows.append(
            {"id": row["id"], "who": outcome, "right": correct, "confidence": row["confidence"], **truncated}
        )
    titles = wording.display_names(scores)
    agreement = scores["agreement"].get(f"{a} | {b}", scores["agreement"].get(f"{b} | {a}"))
    counts = Counter(entry["who"] for entry in display_rows)
    return {"a": titles[a], "b": titles[b], "rows": display_rows, "counts": counts, "agreement": agreement}


def agreement(scores: Scores) -> list[View]:
    """Return the fraction of equal answers of two systems, the highest first."""
    titles = wording.display_names(scores)
    pairs = []
    for pair, fraction in sorted(scores["agreement"].items(), key=lambda item: -item[1]):
        a, _, b = pair.partition(" | ")
        pairs.append({"a": titles.get(a, a), "b": titles.get(b, b), "share": fraction})
    return pairs


def _breakdown_values(entry: Mapping[str, Any] | None) -> list[Any] | None:
    return None if entry is None else [entry["precision"], entry["recall"], entry["f1"], entry["n"]]


def _interval_cell(value: Mapping[str, Any] | None, axis: charts.Axis) -> View | None:
    if value is None:
        return None
    return {"told": value, "fig": axis.interval(value["value"], value["ci_low"], value["ci_high"])}


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]} … ({len(text):,} characters)"


def _drop_invalid_row(matrix: Mapping[str, Any]) -> tuple[list[str], list[list[int]]]:
    """Return labels and counts without the row "no valid answer", which no target can have."""
    labels, counts = list(matrix["labels"]), [list(row) for row in matrix["counts"]]
    if len(counts) == len(labels) and labels and labels[-1] == NO_VALID_ANSWER:
        counts = counts[:-1]
    return labels, counts


def _confused_pairs(matrix: Mapping[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return {(target, predicted): (rows, rows of the target label)} of the confusions, the most frequent first."""
    labels, counts = _drop_invalid_row(matrix)
    pairs = {
        (labels[y], labels[x]): (count, sum(row))
        for y, row in enumerate(counts)
        for x, count in enumerate(row)
        if count and x != y
    }
    return dict(sorted(pairs.items(), key=lambda item: -item[1][0]))
