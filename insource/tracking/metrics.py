"""metrics.jsonl: one object a logged step, the same names and figures that W&B gets.

{"step": 10, "epoch": 0.0885, "loss": 2.31, "learning_rate": 0.00071, "grad_norm": 1.9, "examples_per_second": 21.4,
 "tokens_per_second": 1512.0, "tokens_saved_per_second": 10844.5, "peak_memory_bytes": 1207959552}
{"step": 10, "epoch": 0.0885, "validation/accuracy": 0.873, "validation/macro_f1": 0.861, "validation/seconds": 4.2}

What is measured while training bears its plain name, what is measured on validation rows begins with `validation/`;
preference tuning adds `rewards/accuracies` and others of that kind, as TRL names them. The second row of a step is
an evaluation after it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insource.system import atomic_files

MetricRow = Mapping[str, float | int]


def append(path: Path, row: MetricRow) -> None:
    """Appends one line, flushed to disk. Raises ValueError on NaN and infinity."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(row), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows, without a last one that a kill cut short; [] where there is no file."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def read_last_value(path: Path, name: str) -> float | None:
    """Returns the newest figure of this name, None where there is none."""
    return next((float(row[name]) for row in reversed(read_rows(path)) if name in row), None)


def truncate_after(path: Path, step: int) -> None:
    """Drops what was logged after `step`, and a line that a kill cut short, before a resumed run logs it anew."""
    if path.exists():
        lines = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
        atomic_files.write_text(path, "".join(lines))
