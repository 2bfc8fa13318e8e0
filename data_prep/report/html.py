"""data.html: what data.json says, to look at. One file that loads nothing, and that prints.

in   {"read": 13083, "written": {"train": 7900, ...}, "rejected": {}, "dropped": {"in_test": 25, ...}}
out  a bar of segments, each {"name": "train", "rows": 7900, "x": 0.0, "width": 60.384}, that sum to the rows read

Each function gives the data of one section; `report.html.jinja` says it. Lengths are percent of a figure's width.
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

from data_prep.dedup.exact import DROP_REASONS
from data_prep.labels import label_sets
from data_prep.labels.label_errors import LabelIssue
from data_prep.report import console
from data_prep.report.statistics import PreparedData
from data_prep.rows.columns import field_paths
from insource.config.schema.data import SPLITS, Source

MAX_EXCERPT_CHARACTERS = 240
CONTEXT_CHARACTERS = 60
MAX_PAIRS_SHOWN = 2
MAX_LABEL_ISSUES_SHOWN = 10
MAX_REJECTED_SHOWN = 5
FIELD_STATES = ("verbatim", "rewrapped", "elsewhere", "empty", "absent")
# A limit that far above the longest row is drawn behind a break of the axis.
AXIS_BREAK_FACTOR = 1.5
# Line breaks as signs keep documents small; characters that show nothing are shown by their pictures.
CONTROL_PICTURES: dict[int, int | str] = {code: 0x2400 + code for code in range(32)} | {9: " ", 10: " ↵ "}

View = dict[str, Any]


def write(path: Path, told: Mapping[str, Any], prepared: PreparedData, doubtful: list[LabelIssue]) -> None:
    """Writes the page. `told` is what data.json will hold, `doubtful` the suspects, most doubtful first."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"number": "{:,}".format}
    pages.filters |= {one.__name__: one for one in (many, percent, breakable, excerpt)}
    page = pages.get_template("report.html.jinja").render(
        told=told,
        name=source_name(prepared.recipe.data.source),
        recipe=prepared.recipe,
        splits=[name for name in SPLITS if told["rows"]["written"][name]],
        flow=make_row_flow(told["rows"]),
        rejected=prepared.unusable[:MAX_REJECTED_SHOWN],
        still_shared=count_remaining_leaks(prepared),
        labels=make_split_bars(told["labels"]),
        lengths=make_token_histogram(told["tokens"]),
        pairs=make_pair_views(prepared),
        suspects=[(one, make_row_view(one.row, prepared)) for one in doubtful[:MAX_LABEL_ISSUES_SHOWN]],
        fields=make_field_bars(told, prepared),
        notes=console.format_notes(told),
        slices={name: make_split_bars(one["values"]) for name, one in told["slices"].items()},
    )
    # A file name may hold bytes that are no text.
    path.write_text(page, encoding="utf-8", errors="replace")


def many(count: int, one: str, several: str = "") -> str:
    """Returns "1 row", "13,083 rows"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def percent(part: float, whole: float = 1) -> str:
    """Returns 12.3%. What is not nothing is never 0.0%, and what is not all is never 100.0%."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.05:
        return "<0.1%"
    return ">99.9%" if 99.95 <= share < 100 else f"{share:.1f}%"


def breakable(name: str) -> Markup:
    """Returns a name that may be broken where its words end."""
    return escape(name).replace("_", Markup("_<wbr>"))


def source_name(source: Source) -> str:
    """Returns what people call the source: the data set, the file, or the folder that the files share."""
    if source.hub is not None:
        return source.hub
    given = [path for paths in source.given.values() for path in paths]
    path = Path(given[0] if len(given) == 1 else commonpath([Path(one).absolute().parent for one in given]))
    # What a wildcard stands for has no name; the folder above it has.
    plain = next((one for one in (path, *path.parents) if not set("*?[") & set(one.name)), path)
    return plain.name.split(".")[0] or "data"


def make_segments(parts: Mapping[str, int], whole: int) -> list[View]:
    """Returns the parts laid end to end on a bar that is `whole` long, those that are empty left out."""
    ends = np.cumsum([0, *parts.values()]) * 100 / max(whole, 1)
    return [
        {"name": name, "rows": rows, "x": round(float(start), 3), "width": round(float(end - start), 3)}
        for (name, rows), (start, end) in zip(parts.items(), pairwise(ends), strict=True)
        if rows
    ]


def make_row_flow(rows: Mapping[str, Any]) -> View:
    """Returns where the rows read went: the written ones by split, the others by reason, the most frequent first."""
    gone = {**rows["dropped"], **rows["rejected"]}
    gone |= {"filtered": rows["filtered"]} if rows["filtered"] else {}
    gone = dict(sorted(gone.items(), key=lambda item: -item[1]))
    out, written = sum(gone.values()), sum(rows["written"].values())
    return {
        "written": written,
        "out": out,
        "whole": make_segments({**rows["written"], "out": out}, rows["read"]),
        "reasons": make_segments(gone, out),
        "from": round(100 * written / max(rows["read"], 1), 3),
    }


def count_remaining_leaks(prepared: PreparedData) -> int:
    """Returns how many test rows say the same as a row of another split: counted anew, in what is written."""
    keys, written = prepared.table.columns["key"], prepared.written
    others = np.any([written[name] for name in SPLITS if name != "test"], axis=0)
    return int(np.isin(keys[written["test"]], keys[others]).sum())


def make_split_bars(counted: Mapping[str, Mapping[str, Any]]) -> list[View]:
    """Returns for each label or value its rows by split as a bar, the most frequent first, all on one scale."""
    rows = {name: {split: one.get(split, 0) for split in SPLITS} for name, one in counted.items()}
    longest = max((sum(one.values()) for one in rows.values()), default=0)
    return [
        {"name": name, "rows": sum(one.values()), "of": one, "bar": make_segments(one, longest), "told": counted[name]}
        for name, one in sorted(rows.items(), key=lambda item: -sum(item[1].values()))
    ]


def make_token_histogram(tokens: Mapping[str, Any]) -> View | None:
    """Returns the histogram of tokens; None where no row was counted.

    A column's area is its rows, as bins differ in width by a token.
    """
    if "histogram" not in tokens:
        return None
    edges, limit = tokens["histogram"]["edges"], tokens["max_length"]
    far = limit > edges[0] + AXIS_BREAK_FACTOR * (edges[-1] - edges[0])
    low = min(edges[0], limit)
    high = edges[-1] if far else max(edges[-1], limit + (limit - low) // 40 + 1)
    scale = (88 if far else 100) / (high - low)
    counts = {name: tokens["histogram"][name] for name in SPLITS}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    density = [total / (end - start) for total, (start, end) in zip(totals, pairwise(edges), strict=True)]
    tallest = int(np.argmax(density))
    columns = []
    for at, (start, end) in enumerate(pairwise(edges)):
        place = {"x": round((start - low) * scale, 3), "width": round((end - start) * scale, 3)}
        top = 100.0
        for name, of_bins in counts.items():
            if height := 100 * of_bins[at] / (end - start) / density[tallest]:
                top -= height
                columns.append({"name": name, **place, "y": round(top, 2), "height": round(height, 2)})
    return {
        "columns": columns,
        "far": far,
        "limit": 96.0 if far else round((limit - low) * scale, 3),
        "ticks": [{"x": round((at - low) * scale, 3), "at": at} for at in ticks(low, high)],
        "tallest": {"rows": totals[tallest], "from": edges[tallest], "to": edges[tallest + 1] - 1},
        "shortest": edges[0],
    }


def ticks(low: int, high: int) -> list[int]:
    """Returns round numbers from low to high, six at most."""
    steps = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    step = next(step for step in steps if high // step - -(-low // step) < 6)
    return list(range(-(-low // step) * step, high + 1, step))


def make_pair_views(prepared: PreparedData) -> list[View]:
    """Returns for each reason that names two rows some pairs: the least alike, in which there is most to see."""
    left, found = prepared.left, []
    for at, reason in enumerate(DROP_REASONS):
        rows = np.flatnonzero((left.reason == at) & (left.other >= 0))
        if not len(rows):
            continue
        clean = prepared.table.columns["clean"]
        alike = np.where(clean[rows] == clean[left.other[rows]], 1.0, left.similarity[rows])
        rows = rows[np.argsort(alike, kind="stable")]
        # One example is enough of rows that leave for the same text.
        rows = rows[np.sort(np.unique(prepared.table.columns["key"][left.other[rows]], return_index=True)[1])]
        shown = [make_pair_view(int(row), prepared) for row in rows[:MAX_PAIRS_SHOWN]]
        found.append({"reason": reason, "rows": int((left.reason == at).sum()), "shown": shown})
    return found


def make_pair_view(row: int, prepared: PreparedData) -> View:
    """Returns a row that leaves and the row because of which it does; similarity 0: they are the same by their key."""
    other, targets = int(prepared.left.other[row]), prepared.table.columns["target"]
    both = [make_row_view(one, prepared) for one in (row, other)]
    for one, pieces in zip(both, diff_texts(*(one["text"] for one in both)), strict=True):
        one["pieces"] = pieces
    similarity = float(prepared.left.similarity[row])
    return {"similarity": similarity, "same_target": bool(targets[row] == targets[other]), "rows": both}


def make_row_view(row: int, prepared: PreparedData) -> View:
    """Returns what is shown of a row."""
    texts = prepared.table.texts
    return {
        "place": prepared.table.place(row),
        "split": SPLITS[prepared.assigned.splits[row]],
        "stays": bool(prepared.left.stays[row]),
        "label": label_sets.format_labels(prepared.label_sets, prepared.table.columns["target"][row]),
        "text": texts.value("text", row),
    }


def diff_texts(one: str, other: str) -> list[list[tuple[str, bool]]]:
    """Returns both texts in pieces (text, whether the other lacks it), cut, from shortly before where they differ."""
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    # From there where a word begins, if the difference would be cut off.
    first = max(one.rfind(" ", 0, same - CONTEXT_CHARACTERS), 0) if same > MAX_EXCERPT_CHARACTERS // 2 else 0
    a, b = (re.findall(r"\w+|\s+|[^\w\s]", excerpt(text, first)) for text in (one, other))
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    of_one = [("".join(a[start:end]), step != "equal") for step, start, end, _, _ in steps]
    of_other = [("".join(b[start:end]), step != "equal") for step, _, _, start, end in steps]
    return [of_one, of_other]


def excerpt(text: str, first: int = 0) -> str:
    """Returns a piece of a text on one line, from a character on, up to where a word ends."""
    last = first + MAX_EXCERPT_CHARACTERS
    if last < len(text):
        last = max(text.rfind(" ", first + MAX_EXCERPT_CHARACTERS // 2, last), text.rfind("\n", first, last), 0) or last
    return ("…" if first else "") + text[first:last].translate(CONTROL_PICTURES) + (" …" if last < len(text) else "")


def make_field_bars(told: Mapping[str, Any], prepared: PreparedData) -> list[View]:
    """Returns for each field of a record and each given split where its values stand, as a bar of its own."""
    found = []
    for name, split in product(field_paths(prepared.recipe), ("all", *SPLITS)):
        if counted := told["fields"].get(name, {}).get(split):
            states = {state: counted.get(state, 0) for state in FIELD_STATES}
            rows = sum(states.values())
            found.append({"name": name, "split": split, "rows": rows, "of": states, "bar": make_segments(states, rows)})
    return found
