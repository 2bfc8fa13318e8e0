"""What became of one answer: a value that can be scored, or the reason why there is none."""

from dataclasses import dataclass
from typing import Any

# An answer that was cut off at the token limit, whatever the task.
TRUNCATED = "unfinished"


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as its task reads it. Where `problem` is not None, `value` is None and the answer counts as wrong."""

    value: Any
    problem: str | None = None
