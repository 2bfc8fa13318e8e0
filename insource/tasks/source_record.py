"""Input and target of a source row before cleaning, or the reason why the row is unusable.

in   {"message": "my parcel is late", "queue": "delivery_delay"}
out  SourceRecord("", "my parcel is late", "delivery_delay")
"""

import ast
import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from insource.config.schema.source import Columns
from insource.text.text_keys import clean


class UnusableRowError(Exception):
    """A row cannot be used. Reports count `reason` and show `detail`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class SourceRecord:
    """The parts of a row before cleaning. `system` is the system prompt of a chat row."""

    system: str
    text: str
    target: Any
    other_targets: Sequence[Any] = ()
    """Further references for the same input."""


def to_text(value: object) -> str:
    """Return a source value as text; null is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_text(value: object, column: str) -> str:
    """Return the text of a column; a number becomes text. Raises UnusableRowError for a list or an object."""
    if isinstance(value, list | dict):
        is_chat = isinstance(value, list) and value and isinstance(value[0], dict)
        hint = (
            "data.columns.messages reads chats"
            if is_chat
            else f"name a column that holds text{_nested_name_hint(value, column)}"
        )
        raise UnusableRowError(
            "bad_text", f"column {column!r} holds {_describe_type(value)}, and a text is needed; {hint}"
        )
    return to_text(value)


def read_input(values: Mapping[str, object], columns: Columns) -> str:
    """Return the input of a row: the text of its column, or the non-empty texts of several columns, joined."""
    texts = [read_text(values.get(column), column) for column in columns.texts]
    return texts[0] if len(texts) == 1 else columns.separator.join(text for text in texts if text.strip())


def read_label(value: object, column: str) -> str:
    """Return the label of a column. Raises UnusableRowError for a list or an object."""
    if parse_list(value) is not None:
        hint = "for several labels a row, set task.labels_per_row: many"
        raise UnusableRowError("bad_label", f"column {column!r} holds a list, and a row has one label; {hint}")
    if isinstance(value, dict):
        message = f"column {column!r} holds an object, and a label is a text"
        raise UnusableRowError("bad_label", message + _nested_name_hint(value, column))
    return to_text(value)


def parse_list(value: object) -> list[Any] | None:
    """Return a list, or the list that a text contains (["a", "b"] or ['a', 'b']); None for other values.

    Raises UnusableRowError for ['a' 'b'], NumPy's form of an array, which Python parses as one text 'ab'.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value if isinstance(value, list) else None
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if parse is ast.literal_eval and _lacks_commas(value.strip()):
            message = f"{value.strip()[:40]} is not a list: commas are missing between its entries"
            raise UnusableRowError("bad_list", message)
        return parsed if isinstance(parsed, list) else None
    return None


def columns_to_rows(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the objects of columns of equal length ({"slot": ["a", "b"], "end": [2, 5]}); None for other values.

    `datasets` stores a list of objects in this form.
    """
    columns = list(value.values())
    if (
        not columns
        or not all(isinstance(column, list) for column in columns)
        or len({len(column) for column in columns}) > 1
    ):
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _lacks_commas(text: str) -> bool:
    """Return whether two string literals are adjacent in a Python expression."""
    token_types = [
        token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL
    ]
    return any(first == second == tokenize.STRING for first, second in pairwise(token_types))


def _nested_name_hint(value: object, column: str) -> str:
    """Return a hint with the name of a value inside an object."""
    names = [name for name, entry in value.items() if isinstance(entry, str | int)] if isinstance(value, dict) else []
    return f"; one inside of it has a name such as {column}.{names[-1]}"[:80] if names else ""


def _describe_type(value: object) -> str:
    return "a list" if isinstance(value, list) else "an object"


def clean_answer(value: object, subject: str) -> str:
    """Return a clean free-text answer. Raises UnusableRowError if it is not text, or is empty."""
    if value is not None and not isinstance(value, str):
        hint = "; data.columns.targets reads several answers" if isinstance(value, list) else ""
        raise UnusableRowError("bad_answer", f"the {subject} is no text: {to_text(value)[:40]}{hint}")
    check_characters(subject, value or "")
    if not (text := clean(value or "")):
        raise UnusableRowError("no_answer", f"the {subject} is empty")
    return text


def check_characters(subject: str, value: object) -> None:
    """Raise UnusableRowError if a text, or a text inside a list or object, cannot be stored.

    NUL bytes and lone surrogates cannot be stored.
    """
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            pending += [*node, *node.values()]
        elif isinstance(node, list):
            pending += node
        elif isinstance(node, str):
            _check_text(subject, node)


def _check_text(subject: str, text: str) -> None:
    if "\x00" in text:
        raise UnusableRowError("nul_byte", f"the {subject} holds a NUL byte")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableRowError("lone_surrogate", f"the {subject} holds half a character ({error.reason})") from None
