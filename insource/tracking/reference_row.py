"""The typed rows of reference.jsonl: answers of the trained weights, which a server must give.

<run>/reference.jsonl   {"id": "T000017", "prompt_ids": [...], "answer": "delivery_delay", "token_ids": [...], ...}
"""

from collections.abc import Iterator
from pathlib import Path

from insource.system import atomic_files
from insource.tracking.record import Number, StoredRecord


class ReferenceRow(StoredRecord):
    """The answer of the trained weights to a validation row."""

    id: str
    prompt_ids: list[int]
    examples: list[str] = []
    """Ids of the train rows in the prompt, in their order (train.shots)."""
    answer: str
    token_ids: list[int] = []
    log_probability: Number | None = None
    """Natural logarithm of the answer's probability."""
    field_log_probability: Number | None = None
    """Natural logarithm of the least certain field; None for a task without fields."""
    margin: Number | None = None
    """Smallest gap of the two most probable tokens (natural logarithm); None if no step had a choice."""


def read_references(path: Path) -> Iterator[ReferenceRow]:
    """Yield the rows of a reference.jsonl. Raise RecipeError if this version cannot read one."""
    for line in atomic_files.read_jsonl(path):
        yield ReferenceRow.parse(line, path)
