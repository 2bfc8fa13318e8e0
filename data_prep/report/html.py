"""data.html: the report on prepared data, one printable file without external resources.

in   {"read": 13083, "written": {"train": 7900, ...}, "rejected": {}, "dropped": {"in_test": 25, ...}}
out  a bar of segments, each {"name": "train", "rows": 7900, "x": 0.0, "width": 60.384}, that sum to the rows read

Each function returns the data of one section for `report.html.jinja`. Lengths are percent of the width of a figure.
"""

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from itertools import pairwise, product
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from data_prep.dedup.drops import DROP_REASONS
from data_prep.labels import label_sets
from data_prep.labels.label_errors import LabelIssue
from data_prep.prepared_data import PreparedData
from data_prep.report import console
from data_prep.rows.columns import field_paths
from insource.config.schema.source import SPLITS, Source
from insource.system.html_template import load_template
from insource.system.number_format import format_count, format_percent
from insource.tracking.data_report import DataReport, LabelReport, RowCounts, TokenReport

TEMPLATE = Path(__file__).parent / "report.html.jinja"
MAX_EXCERPT_CHARACTERS = 240
CONTEXT_CHARACTERS = 60
MAX_PAIRS_SHOWN = 2
MAX_LABEL_ISSUES_SHOWN = 10
MAX_REJECTED_SHOWN = 5
FIELD_STATES = ("verbatim", "rewrapped", "elsewhere", "empty", "absent")
# A limit this many times above the longest row is drawn behind an axis break.
AXIS_BREAK_FACTOR = 1.5
# Visible signs for line breaks keep the texts short; other control characters are replaced by control pictures.
CONTROL_PICTURES: dict[int, int | str] = {code: 0x2400 + code for code in range(32)} | {9: " ", 10: " ↵ "}

View = dict[str, Any]


def write(path: Path, report: DataReport, prepared: PreparedData, issues: list[LabelIssue]) -> None:
    """Write the page. `report` is the content of data.json, `issues` the likely label errors."""
    template = load_template(TEMPLATE, format_count, breakable, excerpt, percent=_format_part)
    page = template.render(
        report=report,
        name=source_name(prepared.recipe.data.source),
        recipe=prepared.recipe,
        splits=[name for name in SPLITS if report.rows.written[name]],
        flow=make_row_flow(report.rows),
        rejected=prepared.rejected[:MAX_REJECTED_SHOWN],
        remaining_leaks=count_remaining_leaks(prepared),
        labels=make_label_bars(report.labels),
        lengths=make_token_histogram(report.tokens),
        pairs=make_pair_views(prepared),
        label_issues=[(issue, make_row_view(issue.row, prepared)) for issue in issues[:MAX_LABEL_ISSUES_SHOWN]],
        fields=make_field_bars(report, prepared),
        notes=console.format_notes(report),
        slices={name: make_split_bars(entry.values) for name, entry in report.slices.items()},
    )
    # File names may contain bytes that are not valid text.
    path.write_text(page, encoding="utf-8", errors="replace")


def _format_part(part: float, whole: float = 1) -> str:
    """Return a part of a whole in percent, 0.0% of nothing."""
    return format_percent(part / whole if whole else 0.0)


def breakable(name: str) -> Markup:
    """Return the name with a break opportunity after each underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def source_name(source: Source) -> str:
    """Return the name of the source: the data set, the file, or the common folder of its files."""
    if source.hub is not None:
        return source.hub
    all_paths = [path for paths in source.paths_by_split.values() for path in paths]
    path = Path(
        all_paths[0] if len(all_paths) == 1 else commonpath([Path(name).absolute().parent for name in all_paths])
    )
    # A path part with a wildcard is no name; the folder above it is one.
    literal_path = next(
        (candidate for candidate in (path, *path.parents) if not set("*?[") & set(candidate.name)), path
    )
    return literal_path.name.split(".")[0] or "data"


def make_segments(parts: Mapping[str, int], whole: int) -> list[View]:
    """Return the segments of a bar that is `whole` rows long, without empty parts."""
    bounds = np.cumsum([0, *parts.values()]) * 100 / max(whole, 1)
    return [
        {"name": name, "rows": rows, "x": round(float(start), 3), "width": round(float(end - start), 3)}
        for (name, rows), (start, end) in zip(parts.items(), pairwise(bounds), strict=True)
        if rows
    ]


def make_row_flow(rows: RowCounts) -> View:
    """Return the written rows by split and the lost rows by reason, the most frequent reason first."""
    losses = {**rows.dropped, **rows.rejected}
    losses |= {name: count for name, count in (("filtered", rows.filtered), ("unlabelled", rows.unlabelled)) if count}
    losses = dict(sorted(losses.items(), key=lambda item: -item[1]))
    n_lost, n_written = sum(losses.values()), sum(rows.written.values())
    return {
        "written": n_written,
        "lost": n_lost,
        "segments": make_segments({**rows.written, "out": n_lost}, rows.read),
        "reasons": make_segments(losses, n_lost),
        "lost_from": round(100 * n_written / max(rows.read, 1), 3),
    }


def count_remaining_leaks(prepared: PreparedData) -> int:
    """Return how many written test rows have a duplicate in another written split."""
    keys, kept_by_split = prepared.table.columns["key"], prepared.kept_by_split
    in_other_splits = np.any([kept_by_split[name] for name in SPLITS if name != "test"], axis=0)
    return int(np.isin(keys[kept_by_split["test"]], keys[in_other_splits]).sum())


def make_split_bars(counts: Mapping[str, Mapping[str, int]]) -> list[View]:
    """Return one bar per label or value with its rows by split, most rows first, on a common scale."""
    rows = {name: {split: entry.get(split, 0) for split in SPLITS} for name, entry in counts.items()}
    longest = max((sum(by_split.values()) for by_split in rows.values()), default=0)
    return [
        {
            "name": name,
            "rows": sum(by_split.values()),
            "rows_by_split": by_split,
            "bar": make_segments(by_split, longest),
        }
        for name, by_split in sorted(rows.items(), key=lambda item: -sum(item[1].values()))
    ]


def make_label_bars(labels: Mapping[str, LabelReport]) -> list[View]:
    """Return one bar per label, as `make_split_bars`, with its description and spellings."""
    bars = make_split_bars({name: entry.rows_by_split for name, entry in labels.items()})
    return [{**label_bar, "entry": labels[label_bar["name"]]} for label_bar in bars]


def make_token_histogram(tokens: TokenReport) -> View | None:
    """Return the histogram of token counts; None if no row was counted.

    The area of a column is its number of rows, because the bins differ in width by one token.
    """
    if not tokens.histogram:
        return None
    edges, limit = tokens.histogram["edges"], tokens.max_length
    axis_broken = limit > edges[0] + AXIS_BREAK_FACTOR * (edges[-1] - edges[0])
    low = min(edges[0], limit)
    high = edges[-1] if axis_broken else max(edges[-1], limit + (limit - low) // 40 + 1)
    scale = (88 if axis_broken else 100) / (high - low)
    counts = {name: tokens.histogram[name] for name in SPLITS}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    density = [total / (end - start) for total, (start, end) in zip(totals, pairwise(edges), strict=True)]
    tallest = int(np.argmax(density))
    columns = []
    for index, (start, end) in enumerate(pairwise(edges)):
        geometry = {"x": round((start - low) * scale, 3), "width": round((end - start) * scale, 3)}
        top = 100.0
        for name, bin_counts in counts.items():
            if height := 100 * bin_counts[index] / (end - start) / density[tallest]:
                top -= height
                columns.append({"name": name, **geometry, "y": round(top, 2), "height": round(height, 2)})
    return {
        "columns": columns,
        "axis_broken": axis_broken,
        "limit": 96.0 if axis_broken else round((limit - low) * scale, 3),
        "ticks": [{"x": round((tick - low) * scale, 3), "value": tick} for tick in ticks(low, high)],
        "tallest": {"rows": totals[tallest], "from": edges[tallest], "to": edges[tallest + 1] - 1},
        "shortest": edges[0],
    }


def ticks(low: int, high: int) -> list[int]:
    """Return at most six round numbers from low to high."""
    steps = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    step = next(step for step in steps if high // step - -(-low // step) < 6)
    return list(range(-(-low // step) * step, high + 1, step))


def make_pair_views(prepared: PreparedData) -> list[View]:
    """Return example pairs for each drop reason that names a second row, the least similar pairs first."""
    drops, views = prepared.drops, []
    for code, reason in enumerate(DROP_REASONS):
        rows = np.flatnonzero((drops.reason == code) & (drops.reason_row >= 0))
        if not len(rows):
            continue
        clean = prepared.table.columns["clean"]
        similarity = np.where(clean[rows] == clean[drops.reason_row[rows]], 1.0, drops.similarity[rows])
        rows = rows[np.argsort(similarity, kind="stable")]
        # One example per reason row is sufficient.
        rows = rows[np.sort(np.unique(prepared.table.columns["key"][drops.reason_row[rows]], return_index=True)[1])]
        pairs = [make_pair_view(int(row), prepared) for row in rows[:MAX_PAIRS_SHOWN]]
        views.append({"reason": reason, "rows": int((drops.reason == code).sum()), "shown": pairs})
    return views


def make_pair_view(row: int, prepared: PreparedData) -> View:
    """Return a dropped row and its reason row; similarity 0 means that their keys are equal."""
    reason_row, targets = int(prepared.drops.reason_row[row]), prepared.table.columns["target"]
    views = [make_row_view(number, prepared) for number in (row, reason_row)]
    for view, pieces in zip(views, diff_texts(*(view["text"] for view in views)), strict=True):
        view["pieces"] = pieces
    similarity = float(prepared.drops.similarity[row])
    return {"similarity": similarity, "same_target": bool(targets[row] == targets[reason_row]), "rows": views}


def make_row_view(row: int, prepared: PreparedData) -> View:
    """Return the location, split, label and text of a row."""
    texts = prepared.table.texts
    return {
        "location": prepared.table.location(row),
        "split": SPLITS[prepared.assignment.splits[row]],
        "kept": bool(prepared.drops.kept[row]),
        "label": label_sets.format_labels(prepared.label_sets, prepared.table.columns["target"][row]),
        "text": texts.value("text", row),
    }


def diff_texts(left: str, right: str) -> list[list[tuple[str, bool]]]:
    """Return each text as pieces (text, differs), cut to begin shortly before the first difference."""
    common_length = next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), 0)
    # Start at a word if the difference would otherwise be cut off.
    offset = (
        max(left.rfind(" ", 0, common_length - CONTEXT_CHARACTERS), 0)
        if common_length > MAX_EXCERPT_CHARACTERS // 2
        else 0
    )
    a, b = (re.findall(r"\w+|\s+|[^\w\s]", excerpt(text, offset)) for text in (left, right))
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    left_pieces = [("".join(a[start:end]), step != "equal") for step, start, end, _, _ in steps]
    right_pieces = [("".join(b[start:end]), step != "equal") for step, _, _, start, end in steps]
    return [left_pieces, right_pieces]


def excerpt(text: str, start: int = 0) -> str:
    """Return up to MAX_EXCERPT_CHARACTERS of a text on one line, from `start` to the end of a word."""
    end = start + MAX_EXCERPT_CHARACTERS
    if end < len(text):
        end = max(text.rfind(" ", start + MAX_EXCERPT_CHARACTERS // 2, end), text.rfind("\n", start, end), 0) or end
    return ("…" if start else "") + text[start:end].translate(CONTROL_PICTURES) + (" …" if end < len(text) else "")


def make_field_bars(report: DataReport, prepared: PreparedData) -> list[View]:
    """Return for each record field and each given split a bar of the field states."""
    bars = []
    for name, split in product(field_paths(prepared.recipe), ("all", *SPLITS)):
        if counts := report.fields.get(name, {}).get(split):
            states = {state: counts.get(state, 0) for state in FIELD_STATES}
            rows = sum(states.values())
            bars.append(
                {
                    "name": name,
                    "split": split,
                    "rows": rows,
                    "rows_by_state": states,
                    "bar": make_segments(states, rows),
                }
            )
    return bars
