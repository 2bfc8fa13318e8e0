"""metrics.jsonl: one object a logged step, the same fields that W&B gets.

{"step": 10, "epoch": 0.036, "loss": 2.31, "learning_rate": 0.00071, "grad_norm": 1.9, "examples_per_second": 21.0}
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from tracking import files

Figures = Mapping[str, float | int]


def append(path: Path, figures: Figures) -> None:
    """Appends one line, flushed to disk. Raises ValueError on NaN and infinity."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(figures), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def keep_up_to(path: Path, step: int) -> None:
    """Drops what was logged after `step`, and a line that a kill cut short, before a resumed run logs it anew."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    files.write_text(path, "".join(kept))
