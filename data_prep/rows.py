"""Source rows to data rows, or the reason why not.

in   SourceRow("tickets.csv", 19, {"ticket_id": "T000017", "message": " My parcel\\r\\nis late",
                                   "queue": "delivery_delay", "customer_id": "C01294", "channel": "chat"})
out  Row("T000017", {"text": "My parcel\\nis late"}, "delivery_delay", "C01294", {"channel": "chat"}, ...)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data_prep.read import SourceRow, read
from recipes.errors import RecipeError
from recipes.schema import Recipe
from recipes.schema_data import By, NotInTrain
from tasks.text import clean, duplicate_key


@dataclass(frozen=True)
class Row:
    """One usable row. `key` is what it shares with rows that say the same (tasks/text.py)."""

    id: str
    input: dict[str, str]
    target: str
    group: str | None
    slices: dict[str, str]
    file: str
    line: int
    key: str = field(repr=False)

    def json(self) -> dict[str, Any]:
        """The row as it stands in train.jsonl and its sisters."""
        shown: dict[str, Any] = {"id": self.id, "input": self.input, "target": self.target, "group": self.group}
        return {**shown, "slices": self.slices} if self.slices else shown


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why: `rejected` ones cannot be, `dropped` ones must not be."""

    file: str
    line: int
    id: str | None
    reason: str
    detail: str
    kind: str = "rejected"

    def json(self) -> dict[str, Any]:
        """The row as it stands in rejected.jsonl, without its text."""
        return {
            "id": self.id,
            "file": self.file,
            "line": self.line,
            "kind": self.kind,
            "reason": self.reason,
            "detail": self.detail,
        }


def rows_of(path: Path, recipe: Recipe) -> Iterator[Row | Rejected]:
    """Yields each row of a file as Row or Rejected. Raises RecipeError where a column of the recipe is missing."""
    first = True
    for source in read(path):
        if source.problem:
            yield Rejected(source.file, source.line, None, "unreadable", source.problem)
            continue
        if first:
            _check_columns(path, source.values, recipe)
            first = False
        yield _row(source, recipe)


def _check_columns(path: Path, values: dict[str, str], recipe: Recipe) -> None:
    columns, split = recipe.data.columns, recipe.data.split
    asked = {"data.columns.text": columns.text, "data.columns.label": columns.label, "data.columns.id": columns.id}
    if recipe.data.source.train is None:
        asked |= {"data.split.group": split.group, "data.split.time": split.time}
    asked |= {f"data.slices.{name}": column for name, column in slice_columns(recipe).items()}
    missing = []
    for key, column in asked.items():
        if column is not None and column not in values:
            near = get_close_matches(column, list(values), 1)
            missing.append(f"  {key}: there is no column {column!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if missing:
        raise RecipeError(
            "\n".join([f"{path} lacks columns that the recipe names:", *missing, f"  It has: {', '.join(values)}"])
        )


def slice_columns(recipe: Recipe) -> dict[str, str]:
    """Returns the column behind each slice of the recipe."""
    return {
        name: one.by if isinstance(one, By) else one.not_in_train
        for name, one in recipe.data.slices.items()
        if isinstance(one, By | NotInTrain)
    }


def _row(source: SourceRow, recipe: Recipe) -> Row | Rejected:
    columns, split, values = recipe.data.columns, recipe.data.split, source.values
    row_id = values.get(columns.id, "").strip() if columns.id else f"{source.file}:{source.line}"

    def rejected(reason: str, detail: str) -> Rejected:
        return Rejected(source.file, source.line, row_id or None, reason, detail)

    # A JSONL row may lack a column that the first row had.
    text, target = clean(values.get(columns.text, "")), clean(values.get(columns.label, ""))
    if not row_id:
        return rejected("no_id", f"column {columns.id!r} is empty")
    if not text:
        return rejected("no_text", f"column {columns.text!r} is empty")
    if "\x00" in text:
        return rejected("nul_byte", f"column {columns.text!r} holds a NUL byte")
    if not target:
        return rejected("no_label", f"column {columns.label!r} is empty")
    labels = recipe.task.labels
    if labels != "auto" and target not in labels:
        near = get_close_matches(target, list(labels), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return rejected("unknown_label", f"{target!r} is not among task.labels{hint}")
    slices = {name: values.get(column, "").strip() for name, column in slice_columns(recipe).items()}
    group = values.get(split.group, "").strip() or row_id if split.group else None
    return Row(row_id, {"text": text}, target, group, slices, source.file, source.line, duplicate_key(text))
