"""Rows with several references: an answer is scored against the nearest one.

row   {"target": "Refund sent.", "references": ["We have sent the refund."], ...}

The target is the first reference and the one that training uses.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from insource.config.schema.source import Columns
from insource.tasks.data_row import DataRow, Rows
from insource.tasks.parsed_answer import ParsedAnswer
from insource.tasks.source_record import UnusableRowError, to_text
from insource.tasks.task_kind import MultiReferenceTaskKind, TaskKind


def select_targets(module: TaskKind, spec: object, rows: Rows, answers: Sequence[ParsedAnswer]) -> list[Any]:
    """Return the reference that each answer is scored against: the nearest of the row's target and references."""
    return [
        _nearest_reference(module, spec, row, answer) if row.get("references") else row["target"]
        for row, answer in zip(rows, answers, strict=True)
    ]


def read_references(values: Mapping[str, object], columns: Columns) -> list[Any]:
    """Return the references of a source row, in the order of `data.columns.targets`, without empty ones.

    Raises UnusableRowError if a column of several references contains no list, or if there is no reference.
    """
    assert columns.targets is not None
    if isinstance(columns.targets, str):
        entries = _parse_list(values.get(columns.targets), columns.targets)
    else:
        entries = [values.get(name) for name in columns.targets]
    answers = [entry for entry in entries if entry is not None and (not isinstance(entry, str) or entry.strip())]
    if not answers:
        raise UnusableRowError("no_answer", "there is no answer in data.columns.targets")
    return answers


def _nearest_reference(module: TaskKind, spec: object, row: DataRow, answer: ParsedAnswer) -> Any:
    assert isinstance(module, MultiReferenceTaskKind)
    return module.nearest_target(spec, [row["target"], *row["references"]], answer)


def _parse_list(value: object, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            message = f"column {column!r} is text that is no JSON; a list of answers is needed, or its JSON"
            raise UnusableRowError("bad_answer", message) from None
    if not isinstance(value, list):
        display = to_text(value)[:40] or "nothing"
        raise UnusableRowError("bad_answer", f"column {column!r}: a list of answers is needed, given {display}")
    return value
