"""What `make data` prints of prepared data: what was read, what left, what a person should look at."""

from collections.abc import Mapping
from typing import Any

from data_prep.readers.sources import split_named
from insource.tasks.labels import shown
from insource.tasks.text_keys import clean

# Lines of one kind that are shown.
MOST = 10
STRADDLING = {
    "group_in_test": "share their group with given test rows",
    "group_in_validation": "share their group with given validation rows",
    "group_in_calibration": "share their group with given calibration rows",
    "not_before_test": "are not older than the oldest given test row",
}


def summary(report: dict[str, Any], state: str) -> str:
    """Returns what was read, written and left out, and what a person should look at, in a few lines."""
    rows = report["rows"]
    written = ", ".join(f"{name} {count:,}" for name, count in rows["written"].items())
    lines = [f"data      {state}: {rows['read']:,} rows read; {written}"]
    if rows["filtered"]:
        lines.append(f"          {rows['filtered']:,} rows are not those that data.where asks for")
    left = {**rows["dropped"], **rows["rejected"]}
    if left:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in left.items())
        lines.append(f"          {sum(left.values()):,} left out ({reasons}): rejected.jsonl says which and why")
    lines += [f"          {line}" for line in notes(report)]
    lines += [*_several(report["labels_per_row"]), *merged(report["labels"])]
    doubted = _doubts(report["suspects"])
    found = {kind: one["rows"] for kind, one in report["personal_data"].items() if one["rows"] and not one["redacted"]}
    personal = [f"{kind} in {count:,} rows, not redacted" for kind, count in found.items()]
    if doubted or personal:
        lines.append(f"          {', '.join(doubted + personal)}")
    return "\n".join(lines)


def notes(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for each thing that was decided over rows: which files are splits, what straddles them, by which
    limits rows left, what became of rare labels, which labels cannot be learnt."""
    unmatched, cut = report.get("where_unmatched", [])[:MOST], _cut(report["fields"])[:MOST]
    rest = [*report["rare_labels"], *report["not_learnable"][:MOST]]
    return [*_sources(report), *unmatched, *cut, *_limits(report), *rest]


def _cut(fields: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Which fields have places that begin or end inside a word."""
    rows = {name: sum(states.get("cut", 0) for states in of.values()) for name, of in fields.items()}
    hint = "inside a word: are data.columns.slots.start and end right, and end_inclusive?"
    return [f"field {name}: in {count:,} rows its place begins or ends {hint}" for name, count in rows.items() if count]


def _sources(report: Mapping[str, Any]) -> list[str]:
    """Which files are given splits, what was not read, and which of their groups and times straddle."""
    lines, given = [], [one for one in report["sources"] if one["split"] != "all"]
    if given:
        named = ", ".join(f"{one['file']} is {one['split']}" for one in given[:MOST])
        lines.append(f"given splits are kept: {named}{', ...' if len(given) > MOST else ''}")
    elif len({split_named(one["file"]) for one in report["sources"]} - {None}) > 1:
        named = ", ".join(one["file"] for one in report["sources"][:MOST])
        lines.append(f"{named}{', ...' if len(report['sources']) > MOST else ''} are mixed, and split anew")
    if left := report["left_out"]:
        more = f" and {len(left) - MOST} more" if len(left) > MOST else ""
        lines.append(f"not read, as they are hidden or of no known kind or split: {', '.join(left[:MOST])}{more}")
    lacking = [one for one in report["sources"] if one.get("lacks_answers")]
    for one in lacking[:MOST]:
        columns = " and ".join(map(repr, one["lacks_answers"]))
        lines.append(f"{one['file']} has no column {columns}: its answers are the others")
    for one in given:
        if lacks := one["lacks"]:
            columns = " and ".join(map(repr, lacks))
            lines.append(f"{one['file']} has no column {columns}: whether train rows straddle it is not known")
    if alone := report["split"].get("rows_without_group"):
        lines.append(f"{alone:,} rows have no group (the column of data.split.group is empty): each is one of its own")
    for reason, rows in report["straddling"].items():
        told = "left out" if reason in report["rows"]["dropped"] else "kept; data.split.straddling=drop leaves them out"
        lines.append(f"{rows:,} train rows {STRADDLING[reason]} ({told})")
    return lines


def _limits(report: Mapping[str, Any]) -> list[str]:
    """By which limits rows left, and how many test rows no served model can be asked."""
    tokens, dropped = report["tokens"], report["rows"]["dropped"]
    lines = []
    if dropped.get("too_long"):
        lines.append(f"too_long: more than train.max_length ({tokens['max_length']:,} tokens)")
    if dropped.get("too_long_for_base"):
        lines.append("too_long_for_base: more than model.base can look at, though train.max_length is more")
    if served := tokens.get("served"):
        limit = f"{served['limit']} ({served['tokens']:,} tokens, {served['for_the_answer']:,} of them for the answer)"
        if dropped.get("too_long_to_serve"):
            lines.append(f"too_long_to_serve: more than {limit}")
        if count := served["test_rows_that_do_not_fit"]:
            lines.append(f"{count:,} test rows are more than {limit}: a served model cannot answer them")
        if count := served.get("train_rows_that_do_not_fit"):
            lines.append(f"{count:,} train rows are more than {limit}: learnt, though a served model cannot be asked")
    return lines


def _several(labels_per_row: Mapping[str, Any] | None) -> list[str]:
    """How many labels rows have, and why none is doubted; nothing where a row has one label."""
    if labels_per_row is None:
        return []
    rows = labels_per_row["rows"].items()
    first = ", ".join(f"{size}: {count:,} rows" for size, count in list(rows)[:MOST])
    return [f"          labels a row: {first}{', ...' if len(rows) > MOST else ''}; labels are not doubted"]


def _doubts(suspects: Mapping[str, Any]) -> list[str]:
    """How many labels are doubted and how good the model is that doubts them; or why it is not asked."""
    if suspects["found"]:
        right = f"by a linear model that is right in {suspects['accuracy']:.0%}"
        return [f"{suspects['found']:,} labels doubted {right} (suspects.csv)"]
    return [f"no labels doubted: {suspects['why_none']}"] if suspects["rows_looked_at"] and suspects["why_none"] else []


def merged(labels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each label that rows write in several ways: every spelling with its rows, the first MOST.
    White space alone is no other way where all rows have it."""
    told = [
        f"          label {shown(label)} in {len(one['spellings'])} spellings: "
        + ", ".join(f"{shown(spelt)} {rows:,}" for spelt, rows in sorted(one["spellings"].items(), key=_by_rows)[:MOST])
        for label, one in labels.items()
        if "spellings" in one and [*map(clean, one["spellings"])] != [label]
    ]
    more = [f"          and {len(told) - MOST} more labels in several spellings: see data.json"]
    hint = ["          labels that differ in spelling alone are one; data.normalize_labels=false keeps them apart"]
    return told[:MOST] + (more if len(told) > MOST else []) + (hint if told else [])


def _by_rows(spelt: tuple[str, int]) -> tuple[int, str]:
    return -spelt[1], spelt[0]
