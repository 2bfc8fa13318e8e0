"""The results of the GPU bench as a table in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADER = (
    "| part | case | rate | of the matmul peak | peak memory | seconds |",
    "|---|---|---|---|---|---|",
)


def format_results(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table, with the machine above it."""
    return [describe_run(results), "", *HEADER, *(line for part in results["parts"] for line in part_rows(part))]


def describe_run(results: Mapping[str, Any]) -> str:
    """Return a line with device, hardware and date. Figures of a small run say nothing about a GPU."""
    device = f"device: {results['device']} ({results['hardware']})"
    small = ", in small: these figures say nothing about a GPU" if results["small"] else ""
    limited = f", limited to {results['gib']:g} GiB" if results["gib"] else ""
    return f"{device}{limited}{small}; {results['seconds']:.0f} s of {results['budget_seconds']:.0f}, {results['date']}"


def part_rows(part: Mapping[str, Any]) -> list[str]:
    """Return a line for each case of a part, and for what was skipped or failed."""
    rows = [_row(part["name"], case["name"], *_figures(case)) for case in part["cases"]]
    rows += [_row(part["name"], skipped["name"], f"skipped: {skipped['reason']}") for skipped in part["skipped"]]
    if part["status"] != "done":
        rows.append(_row(part["name"], "", f"{part['status']}: {part['reason']}"))
    return rows


def _figures(case: Mapping[str, Any]) -> Sequence[str]:
    if "error" in case:
        return [f"failed: {case['error']}"]
    rate = "" if case["rate"] is None else f"{case['rate']:,.1f} {case['unit']}"
    share = "" if case["matmul_share"] is None else f"{case['matmul_share']:.1%}"
    memory = "" if case["peak_memory_bytes"] is None else f"{case['peak_memory_bytes'] / 2**30:.2f} GiB"
    return [rate, share, memory, f"{case['seconds']:.1f}"]


def _row(*cells: str) -> str:
    padded = [*cells, *[""] * (6 - len(cells))]
    return f"| {' | '.join(cell.replace('|', '/') for cell in padded)} |"
