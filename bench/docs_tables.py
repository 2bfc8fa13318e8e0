"""Tables in the docs that a bench writes, between <!-- name:begin --> and <!-- name:end -->."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.system import atomic_files


def write_tables(docs: Path, name: str, results: Path, tables: Callable[[Any], str]) -> None:
    """Write `tables` of the last results into a page. Raise StageError if the results or the marks are missing."""
    if not results.exists():
        raise StageError(f"there is no bench/results/{results.name}; run python -m bench.{name} first", code="INS-X010")
    replace_section(docs, name, tables(atomic_files.read_json(results)))


def replace_section(docs: Path, name: str, text: str) -> None:
    """Write a text into a page, between its marks. Raise StageError if they are missing."""
    begin_mark, end_mark = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, begin, rest = docs.read_text(encoding="utf-8").partition(begin_mark)
    _, end, tail = rest.partition(end_mark)
    if not begin or not end:
        raise StageError(
            f"docs/{docs.name} has no marks for the tables; write {begin_mark} and {end_mark} where they belong",
            code="INS-X010",
        )
    atomic_files.write_text(docs, f"{head}{begin_mark}\n{text}\n{end_mark}{tail}")
