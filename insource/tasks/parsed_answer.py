"""The result of parsing an answer: a value to score, or a problem."""

from dataclasses import dataclass
from typing import Any

# Problem of an answer that was cut off at the token limit, for every kind.
TRUNCATED = "unfinished"


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as its task parses it. If `problem` is not None, `value` is None and the answer counts as wrong."""

    value: Any
    problem: str | None = None
