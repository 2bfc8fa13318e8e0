"""The data of each section of the report, computed only from scores.json. compare/report/templates/ renders them.

in   scores.systems["tuned"].metrics["accuracy"], which is MetricValue(value=0.912, ci_low=0.901, ci_high=0.922, ...)
out  a row {"rank": 2, "title": "tuned (adapter)", "class": "k-tuned", "fig": {"x": 61.0, "from": 50.1, "to": 71.2}}
"""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from compare.report import charts, wording
from insource.tracking.scores.comparison import ConfusionMatrix, Disagreement, Scores
from insource.tracking.scores.system_result import Latency, MetricValue, PartResult, SystemResult

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


def css_class(system: SystemResult) -> str:
    """Return the CSS classes of a system: its kind gives the colour, a stand-in is hollow."""
    return f"k-{system.kind}" + (" hollow" if system.stand_in else "")


def quality(scores: Scores) -> View:
    """Return every system with its metrics and costs, the best first and incomplete systems last."""
    metric = scores.deciding_metric
    other_metrics = [name for name in scores.task.metrics if name != metric]
    systems = {name: system for name, system in scores.systems.items() if metric in system.metrics}
    order = sorted(systems, key=lambda name: (not systems[name].complete, -systems[name].metrics[metric].value))
    values = [systems[name].metrics[metric] for name in order]
    axis = charts.fraction_axis(bound for value in values for bound in (value.ci_low, value.ci_high))
    rows: list[View] = [
        {
            "rank": rank,
            "name": name,
            "title": wording.display_name(systems[name]),
            "class": css_class(systems[name]),
            "chief": name in scores.primary_pair,
            "system": systems[name],
            "figure": value,
            "fig": axis.interval(value.value, value.ci_low, value.ci_high),
            "others": [systems[name].metrics.get(other_metric) for other_metric in other_metrics],
        }
        for rank, (name, value) in enumerate(zip(order, values, strict=True), 1)
    ]
    points = [
        {
            "key": row["rank"],
            "title": row["title"],
            "class": row["class"],
            "value": row["figure"].value,
            "low": row["figure"].ci_low,
            "high": row["figure"].ci_high,
            "cost": row["system"].cost_usd_per_1k,
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
    deciding, titles = scores.deciding_metric, wording.display_names(scores)
    metrics = list(dict.fromkeys(comparison.metric for comparison in scores.comparisons))
    groups = []
    for metric in sorted(metrics, key=lambda name: name != deciding):
        group = [comparison for comparison in scores.comparisons if comparison.metric == metric]
        group.sort(key=lambda comparison: comparison.family != "primary")
        axis = charts.difference_axis(group)
        rows = [
            {
                "comparison": comparison,
                "a": titles[comparison.a],
                "b": titles[comparison.b],
                "class": css_class(scores.systems[comparison.b]),
                "chief": comparison.family == "primary",
                "fig": charts.forest_row(comparison, axis),
            }
            for comparison in group
        ]
        margins = [axis.position(-comparison.margin) for comparison in group]
        groups.append({"metric": metric, "rows": rows, "ticks": axis.ticks(5), "margins": margins})
    return groups


def validity(scores: Scores) -> View:
    """Return the fraction of each system's answers that passes each validity stage, and the problems of the others."""
    systems = [(wording.display_name(system), system) for system in scores.systems.values()]
    rows = [{"title": title, "stages": list(system.validity.to_json().items())} for title, system in systems]
    problems = [
        {"title": title, "what": problem.replace("_", " "), "count": count, "of": system.n, "kind": kind}
        for title, system in systems
        for kind, counts in (("answer", system.invalid), ("call", system.errors))
        for problem, count in sorted(counts.items(), key=lambda item: -item[1])
        if count
    ]
    return {"rows": rows, "problems": problems}


def breakdown(scores: Scores) -> View | None:
    """Return precision, recall and F1 of each label or field and system; None if no system has them."""
    systems = {name: system for name, system in scores.systems.items() if system.per_part}
    if not systems:
        return None
    parts = list(dict.fromkeys(part for system in systems.values() for part in system.per_part))
    keys = list(systems)
    tuned, baseline = scores.primary_pair
    first_index = keys.index(tuned) if tuned in keys else 0
    second_index = keys.index(baseline) if baseline in keys else min(1, len(keys) - 1)
    values = [[_breakdown_values(system.per_part.get(part)) for system in systems.values()] for part in parts]
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
    word = "field" if scores.task.parts == "fields" else "label"
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
    tuned, baseline = scores.primary_pair
    names = sorted(scores.confusion, key=lambda name: (name != tuned, name != baseline))
    confused_pairs = {name: _confused_pairs(scores.confusion[name]) for name in names}
    views = []
    for name in names:
        labels, counts = _drop_invalid_row(scores.confusion[name])
        columns = len(counts[0]) if counts else 0
        other_name = next(
            (candidate for candidate in (tuned, baseline) if candidate != name and candidate in confused_pairs), None
        )
        pairs = [
            {
                "expected": target,
                "predicted": predicted,
                "count": count,
                "of": total,
                "other_count": (
                    None if other_name is None else confused_pairs[other_name].get((target, predicted), (0, 0))[0]
                ),
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
                "expected": labels[: len(counts)],
                "predicted": labels[:columns],
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
        {"title": wording.display_name(system), "class": css_class(system), "reliability": system.calibration}
        | {"bins": charts.reliability_bins(system.calibration)}
        for system in scores.systems.values()
        if system.calibration
    ]


def latency(scores: Scores) -> View | None:
    """Return the latencies on one logarithmic axis; None if none was measured."""
    measured = [(system, system.latency) for system in scores.systems.values() if system.latency]
    if not measured:
        return None
    axis = charts.log_axis(seconds for _, measurement in measured for seconds in _percentiles(measurement).values())
    rows = [
        {"title": wording.display_name(system), "class": css_class(system), "system": system}
        | {name: axis.position(seconds) for name, seconds in _percentiles(measurement).items()}
        for system, measurement in sorted(measured, key=lambda entry: entry[1].p50_seconds)
    ]
    primary_row = next(
        (row for row in rows if row["title"] == wording.display_names(scores).get(scores.primary_pair[0] or "")),
        rows[0],
    )
    return {"rows": rows, "chief": primary_row, "ticks": axis.ticks(4)}


def slices(scores: Scores) -> list[View]:
    """Return the deciding metric on every slice, for the two systems of the plan and a few others."""
    metric = scores.deciding_metric
    primary_names = [name for name in scores.primary_pair if name]
    names = [*primary_names, *(name for name in scores.systems if name not in primary_names)]
    names = [name for name in dict.fromkeys(names) if scores.systems[name].slices][:MAX_SYSTEMS]
    systems = [scores.systems[name] for name in names]
    views = []
    for kind in dict.fromkeys(kind for system in systems for kind in system.slices):
        values = dict.fromkeys(value for system in systems for value in system.slices.get(kind, {}))
        slices_by_value = {value: [system.slices.get(kind, {}).get(value) for system in systems] for value in values}
        metrics_by_value = {
            value: [entry.metrics.get(metric) if entry else None for entry in system_slices]
            for value, system_slices in slices_by_value.items()
        }
        bounds = [
            bound
            for entries in metrics_by_value.values()
            for entry in entries
            if entry
            for bound in (entry.ci_low, entry.ci_high)
        ]
        axis = charts.fraction_axis(bounds)
        rows = [
            {
                "value": value,
                "n": max(entry.n for entry in slices_by_value[value] if entry),
                "cells": [_interval_cell(entry, axis) for entry in entries],
            }
            for value, entries in metrics_by_value.items()
        ]
        views.append({"name": kind, "rows": rows, "ticks": axis.ticks(4)})
    marks = [{"title": wording.display_name(system), "class": css_class(system)} for system in systems]
    return [{**view, "systems": marks, "left_out": len(scores.systems) - len(marks)} for view in views]


def disagreements(scores: Scores, rows: Sequence[Disagreement]) -> View | None:
    """Return the rows in which two systems differ, with the system that is right; None if there are none."""
    if not rows:
        return None
    names = list(rows[0].answers)
    primary_names = [name for name in scores.primary_pair if name in names]
    a, b = [*primary_names, *(name for name in names if name not in primary_names)][:2]
    display_rows = []
    for row in rows:
        correct = row.correct[a], row.correct[b]
        outcome = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}[
            correct
        ]
        texts = {
            "input": row.input,
            "target": row.target,
            "first": row.answers[a],
            "second": row.answers[b],
        }
        truncated = {name: _truncate(text) for name, text in texts.items()}
        display_rows.append({"id": row.id, "who": outcome, "right": correct, "confidence": row.confidence, **truncated})
    titles = wording.display_names(scores)
    agreement = scores.agreement.get(f"{a} | {b}", scores.agreement.get(f"{b} | {a}"))
    counts = Counter(entry["who"] for entry in display_rows)
    return {"a": titles[a], "b": titles[b], "rows": display_rows, "counts": counts, "agreement": agreement}


def agreement(scores: Scores) -> list[View]:
    """Return the fraction of equal answers of two systems, the highest first."""
    titles = wording.display_names(scores)
    pairs = []
    for pair, fraction in sorted(scores.agreement.items(), key=lambda item: -item[1]):
        a, _, b = pair.partition(" | ")
        pairs.append({"a": titles.get(a, a), "b": titles.get(b, b), "share": fraction})
    return pairs


def _breakdown_values(entry: PartResult | None) -> list[float] | None:
    return None if entry is None else [entry.precision, entry.recall, entry.f1, entry.n]


def _percentiles(latency: Latency) -> dict[str, float]:
    return {"p50": latency.p50_seconds, "p95": latency.p95_seconds, "p99": latency.p99_seconds}


def _interval_cell(value: MetricValue | None, axis: charts.Axis) -> View | None:
    if value is None:
        return None
    return {"value": value, "fig": axis.interval(value.value, value.ci_low, value.ci_high)}


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]} … ({len(text):,} characters)"


def _drop_invalid_row(matrix: ConfusionMatrix) -> tuple[list[str], list[list[int]]]:
    """Return labels and counts without the row "no valid answer", which no target can have."""
    labels, counts = list(matrix.labels), [list(row) for row in matrix.counts]
    if len(counts) == len(labels) and labels and labels[-1] == NO_VALID_ANSWER:
        counts = counts[:-1]
    return labels, counts


def _confused_pairs(matrix: ConfusionMatrix) -> dict[tuple[str, str], tuple[int, int]]:
    """Return {(target, predicted): (rows, rows of the target label)} of the confusions, the most frequent first."""
    labels, counts = _drop_invalid_row(matrix)
    pairs = {
        (labels[y], labels[x]): (count, sum(row))
        for y, row in enumerate(counts)
        for x, count in enumerate(row)
        if count and x != y
    }
    return dict(sorted(pairs.items(), key=lambda item: -item[1][0]))
