"""The summary of prepared data that `make data` prints."""

from collections.abc import Mapping

from data_prep.readers.source_row import LABELLED
from data_prep.readers.sources import parse_split_name
from data_prep.split import HELD_OUT_SPLITS
from insource.text.labels import display_label
from insource.text.text_keys import clean
from insource.tracking.data_report import DataReport, LabelIssueReport, LabelReport, LabelsPerRow, TeacherReport

PROVENANCE_NAMES = {
    "source": "own files",
    "human": "labelled without a suggestion",
    "human_suggested": "labelled with a suggestion in view",
    "teacher": "labelled by the teacher",
}
# Maximum number of lines of one kind.
MAX_LINES = 10
STRADDLING_MESSAGES = {
    "group_in_test": "share their group with given test rows",
    "group_in_validation": "share their group with given validation rows",
    "group_in_calibration": "share their group with given calibration rows",
    "not_before_test": "are not older than the oldest given test row",
}


def format_summary(report: DataReport, state: str) -> str:
    """Return a few lines: rows read, written and dropped, and what needs attention."""
    rows = report.rows
    split_counts = ", ".join(f"{name} {count:,}" for name, count in rows.written.items())
    lines = [f"data      {state}: {rows.read:,} rows read; {split_counts}"]
    if rows.filtered:
        lines.append(f"          {rows.filtered:,} rows do not match data.where")
    reason_counts = {**rows.dropped, **rows.rejected}
    if reason_counts:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in reason_counts.items())
        lines.append(f"          {sum(reason_counts.values()):,} left out ({reasons}): see rejected.jsonl")
    lines += [f"          {line}" for line in format_notes(report)]
    lines += [*_labels_per_row_notes(report.labels_per_row), *format_merged_labels(report.labels)]
    issue_notes = _label_issue_notes(report.label_issues)
    pii_counts = {kind: entry.rows for kind, entry in report.personal_data.items() if entry.rows and not entry.redacted}
    pii_notes = [f"{kind} in {count:,} rows, not redacted" for kind, count in pii_counts.items()]
    if issue_notes or pii_notes:
        lines.append(f"          {', '.join(issue_notes + pii_notes)}")
    return "\n".join(lines)


def format_notes(report: DataReport) -> list[str]:
    """Return one line per decision or finding on rows.

    The lines cover given splits, the labels of a teacher, straddling rows, length limits, rare labels and labels that
    cannot be learnt.
    """
    unmatched, cut_notes = report.where_unmatched[:MAX_LINES], _cut_field_notes(report.fields)[:MAX_LINES]
    label_notes = [*report.rare_labels, *report.not_learnable[:MAX_LINES]]
    source_notes = [*_source_notes(report), *_labelled_notes(report), *_teacher_notes(report.teacher)]
    return [*source_notes, *unmatched, *cut_notes, *_limit_notes(report), *label_notes]


def _labelled_notes(report: DataReport) -> list[str]:
    """Return one line per labelled file, and one with the train rows by the origin of their label."""
    files = [source for source in report.sources if source.split == LABELLED]
    if not files:
        return []
    lines = [
        f"{file.file}: {file.rows_read - file.rows_unlabelled:,} of {file.rows_read:,} rows are labelled, "
        f"{file.rows_unlabelled:,} are empty and skipped"
        for file in files[:MAX_LINES]
    ]
    counts = {name: by_split["train"] for name, by_split in report.provenance.items()}
    listing = ", ".join(f"{PROVENANCE_NAMES[name]} {rows:,}" for name, rows in counts.items())
    lines.append(f"train rows by the origin of their label: {listing}")
    if dropped := sum(report.rows.dropped.get(f"group_in_{name}", 0) for name in HELD_OUT_SPLITS):
        lines.append(f"{dropped:,} rows of a group that is held out are left out of train")
    return lines


def _teacher_notes(teacher: TeacherReport | None) -> list[str]:
    """Return lines on the train labels of a teacher: how many, whose, and which rows were left out."""
    if teacher is None:
        return []
    rows = teacher.rows
    stand_in = " (a stand-in on this machine)" if teacher.stand_in else ""
    lines = [
        f"{teacher.written:,} train labels are those of the teacher {teacher.name}{stand_in}; all other labels, "
        "and all held-out ones, are those of the source"
    ]
    outcomes = {**rows.left_out, "dropped": rows.labelled - teacher.written}
    if left_out := ", ".join(f"{reason} {count:,}" for reason, count in outcomes.items() if count):
        lines.append(
            f"teacher: {rows.sent:,} of {rows.read:,} unlabelled rows sent, "
            f"{sum(outcomes.values()):,} left out ({left_out})"
        )
    return lines


def _cut_field_notes(fields: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Return one line per field with spans that begin or end inside a word."""
    rows = {
        name: sum(states.get("cut", 0) for states in states_by_split.values())
        for name, states_by_split in fields.items()
    }
    hint = "inside a word: are data.columns.slots.start and end right, and end_inclusive?"
    return [f"field {name}: in {count:,} rows its place begins or ends {hint}" for name, count in rows.items() if count]


def _source_notes(report: DataReport) -> list[str]:
    """Return lines on given splits, files that were not read, and straddling groups and times."""
    lines, given_sources = [], [source for source in report.sources if source.split not in ("all", LABELLED)]
    if given_sources:
        listing = ", ".join(f"{source.file} is {source.split}" for source in given_sources[:MAX_LINES])
        lines.append(f"given splits are kept: {listing}{', ...' if len(given_sources) > MAX_LINES else ''}")
    elif len({parse_split_name(source.file) for source in report.sources} - {None}) > 1:
        listing = ", ".join(source.file for source in report.sources[:MAX_LINES])
        lines.append(f"{listing}{', ...' if len(report.sources) > MAX_LINES else ''} are mixed, and split again")
    if ignored := report.left_out:
        remainder = f" and {len(ignored) - MAX_LINES} more" if len(ignored) > MAX_LINES else ""
        lines.append(
            f"not read, as they are hidden or of no known kind or split: {', '.join(ignored[:MAX_LINES])}{remainder}"
        )
    without_answers = [source for source in report.sources if source.lacks_answers]
    for source in without_answers[:MAX_LINES]:
        columns = " and ".join(map(repr, source.lacks_answers))
        lines.append(f"{source.file} has no column {columns}: its answers are the others")
    for source in given_sources:
        if missing := source.lacks:
            columns = " and ".join(map(repr, missing))
            lines.append(f"{source.file} has no column {columns}: whether train rows straddle it is not known")
    if n_ungrouped := report.split.rows_without_group:
        lines.append(
            f"{n_ungrouped:,} rows have no group (the column of data.split.group is empty): each is one of its own"
        )
    for reason, rows in report.straddling.items():
        outcome = "left out" if reason in report.rows.dropped else "kept; data.split.straddling=drop leaves them out"
        lines.append(f"{rows:,} train rows {STRADDLING_MESSAGES[reason]} ({outcome})")
    return lines


def _limit_notes(report: DataReport) -> list[str]:
    """Return lines on the limits that dropped rows, and on test rows that no served model can answer."""
    tokens, dropped = report.tokens, report.rows.dropped
    lines = []
    if dropped.get("too_long"):
        lines.append(f"too_long: more than train.max_length ({tokens.max_length:,} tokens)")
    if dropped.get("too_long_for_base"):
        lines.append("too_long_for_base: more than model.base can process, though train.max_length is more")
    if served := tokens.served:
        limit = f"{served.limit} ({served.tokens:,} tokens, {served.for_the_answer:,} of them for the answer)"
        if dropped.get("too_long_to_serve"):
            lines.append(f"too_long_to_serve: more than {limit}")
        if count := served.test_rows_that_do_not_fit:
            lines.append(f"{count:,} test rows are more than {limit}: a served model cannot answer them")
        if count := served.train_rows_that_do_not_fit:
            lines.append(f"{count:,} train rows are more than {limit}: trained on, but not servable")
    return lines


def _labels_per_row_notes(labels_per_row: LabelsPerRow | None) -> list[str]:
    """Return a line with the numbers of labels per row; none for single-label tasks."""
    if labels_per_row is None:
        return []
    rows = labels_per_row.rows.items()
    sizes = ", ".join(f"{size}: {count:,} rows" for size, count in list(rows)[:MAX_LINES])
    return [
        f"          labels a row: {sizes}{', ...' if len(rows) > MAX_LINES else ''}; label errors are not searched for"
    ]


def _label_issue_notes(issues: LabelIssueReport) -> list[str]:
    """Return a line with the number of likely label errors and the accuracy of the model, or why there are none."""
    if issues.count:
        method = f"by a linear model with an accuracy of {issues.accuracy:.0%}"
        return [f"{issues.count:,} likely label errors, found {method} (suspects.csv)"]
    return (
        [f"no likely label errors: {issues.no_issues_reason}"]
        if issues.rows_examined and issues.no_issues_reason
        else []
    )


def format_merged_labels(labels: Mapping[str, LabelReport]) -> list[str]:
    """Return one line per label with several spellings, at most MAX_LINES.

    Spellings that differ only in white space are not reported if all rows share them.
    """
    lines = [
        f"          label {display_label(label)} in {len(entry.spellings)} spellings: "
        + ", ".join(
            f"{display_label(spelling)} {rows:,}"
            for spelling, rows in sorted(entry.spellings.items(), key=_sort_key)[:MAX_LINES]
        )
        for label, entry in labels.items()
        if entry.spellings and [*map(clean, entry.spellings)] != [label]
    ]
    remainder = [f"          and {len(lines) - MAX_LINES} more labels in several spellings: see data.json"]
    hint = ["          labels that differ only in spelling are merged; data.normalize_labels=false keeps them apart"]
    return lines[:MAX_LINES] + (remainder if len(lines) > MAX_LINES else []) + (hint if lines else [])


def _sort_key(spelling_count: tuple[str, int]) -> tuple[int, str]:
    """Return the sort key of (spelling, rows): most rows first, then alphabetical."""
    return -spelling_count[1], spelling_count[0]
