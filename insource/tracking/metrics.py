"""metrics.jsonl: one object for each logged step, with the names and values that W&B gets.

{"step": 10, "epoch": 0.0885, "loss": 2.31, "learning_rate": 0.00071, "grad_norm": 1.9, "examples_per_second": 21.4,
 "tokens_per_second": 1512.0, "tokens_saved_per_second": 10844.5, "peak_memory_bytes": 1207959552}
{"step": 10, "epoch": 0.0885, "validation/accuracy": 0.873, "validation/macro_f1": 0.861, "validation/seconds": 4.2}

Training metrics have plain names; metrics on validation rows begin with `validation/`. Preference tuning adds
`rewards/accuracies` and similar names of TRL. The second row of a step is an evaluation after it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insource.system import atomic_files

MetricRow = Mapping[str, float | int]


def append(path: Path, row: MetricRow) -> None:
    """Append one line and flush it to disk. Raise ValueError on NaN and infinity."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(row), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows, without a last line that a kill cut short; [] if there is no file."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def read_last_value(path: Path, name: str) -> float | None:
    """Return the newest value of this name, None if there is none."""
    return next((float(row[name]) for row in reversed(read_rows(path)) if name in row), None)


def truncate_after(path: Path, step: int) -> None:
    """Drop the rows after `step` and a line that a kill cut short, before a resumed run logs them again."""
    if path.exists():
        lines = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
        atomic_files.write_text(path, "".join(lines))
