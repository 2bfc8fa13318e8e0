"""The tables of the docs that a bench writes, between <!-- name:begin --> and <!-- name:end -->."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.system import atomic_files


def write_tables(docs: Path, name: str, results: Path, tables: Callable[[Any], str]) -> None:
    """Writes what `tables` makes of the last results into the docs. Raises StageError where they, or their place, are
    missing."""
    if not results.exists():
        raise StageError(f"there is no bench/results/{results.name}; run python -m bench.{name} first")
    opened, closed = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin, rest = docs.read_text(encoding="utf-8").partition(opened)
    _, end, after = rest.partition(closed)
    if not begin or not end:
        raise StageError(f"docs/{docs.name} has no place for the tables; write {opened} and {closed} where they belong")
    atomic_files.write_text(docs, f"{before}{opened}\n{tables(atomic_files.read_json(results))}\n{closed}{after}")
