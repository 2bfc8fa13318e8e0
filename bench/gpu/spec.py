"""The spec of one part of the GPU bench, and the record of its cases, as two JSON files of a part's process.

    spec.json     {"part": "training", "model": "Qwen3-4B", "on_gpu": true, "small": false, "seconds": 58.0, ...}
    result.json   {"cases": [{"name": "updates of 64 rows", "rate": 81.2, "unit": "examples/s", "dtype": "bfloat16",
                              "matmul_share": 0.41, "peak_memory_bytes": 9700000000, "seconds": 21.3, ...}],
                   "skipped": [{"name": "...", "reason": "..."}]}

result.json is written again after each case, so that a part that is stopped or fails keeps its finished cases.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import decode_rows
from insource.system import atomic_files

SPEC_FILE, RESULT_FILE = "spec.json", "result.json"


@dataclass(frozen=True)
class PartSpec:
    """What a part's process gets."""

    part: str
    """A key of `PART_FUNCTIONS` in part_process.py."""
    folder: str
    """An empty folder for everything that the part writes."""
    on_gpu: bool
    small: bool
    """Tiny shapes, and the same code paths."""
    dtype: str
    """The type of matrix products: bfloat16 on a GPU and on processors that have it, else float32."""
    seconds: float
    """The time after which the process is stopped."""
    gib: float | None = None
    """Memory of an imitated smaller GPU; None for all memory."""
    model: str = ""
    """A key of `bench.gpu_memory.BASES`, for parts that have a model."""
    matmul_flops: Mapping[str, float] = field(default_factory=dict)
    """{type: operations a second of a large matrix product}, measured by the first part."""

    def save(self) -> Path:
        """Write spec.json and return its path."""
        path = Path(self.folder) / SPEC_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(path, asdict(self))
        return path

    @property
    def device(self) -> str:
        """The device by torch's name."""
        return "cuda" if self.on_gpu else "cpu"


def read_spec(path: Path) -> PartSpec:
    """Return the spec in a file."""
    return PartSpec(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Measurement:
    """The figures of one case."""

    rate: float | None = None
    unit: str = ""
    flops_per_second: float | None = None
    """Operations of matrix products a second that the rate corresponds to."""
    dtype: str | None = None
    """The type of the products, if it is not that of the part."""
    peak_memory_bytes: int | None = None
    """Peak memory of another process; None for the peak of this one."""
    measures_memory: bool = True
    """False if other processes did the work, and their memory is not known."""
    details: Mapping[str, Any] = field(default_factory=dict)


class CaseLog:
    """The cases of a part, written to result.json one by one."""

    def __init__(self, spec: PartSpec) -> None:
        self.spec, self.ends_at = spec, time.monotonic() + spec.seconds
        self.cases: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self._write()

    def run(self, name: str, measure: Callable[[], Measurement], min_seconds: float = 0.0) -> None:
        """Run a case and record its figures; record it as skipped if less than `min_seconds` are left for the part."""
        left = self.ends_at - time.monotonic()
        if left <= min_seconds:
            self.skip(name, f"{max(left, 0.0):.0f} s of the part's {self.spec.seconds:.0f} s are left")
            return
        decode_rows.reset_peak_memory()
        started_at = time.monotonic()
        measurement = measure()
        self.cases.append(self._describe(name, measurement, time.monotonic() - started_at))
        self._write()

    def skip(self, name: str, reason: str) -> None:
        """Record a case that is not run."""
        self.skipped.append({"name": name, "reason": reason})
        self._write()

    def _describe(self, name: str, measurement: Measurement, seconds: float) -> dict[str, object]:
        dtype = measurement.dtype or self.spec.dtype
        peak, flops = self.spec.matmul_flops.get(dtype), measurement.flops_per_second
        memory = measurement.peak_memory_bytes or decode_rows.peak_memory_bytes()
        return {
            "name": name,
            "rate": measurement.rate,
            "unit": measurement.unit,
            "dtype": dtype,
            "matmul_share": flops / peak if flops is not None and peak else None,
            "peak_memory_bytes": memory if measurement.measures_memory else None,
            "seconds": round(seconds, 3),
            **measurement.details,
        }

    def _write(self) -> None:
        result = {"cases": self.cases, "skipped": self.skipped}
        atomic_files.write_json(Path(self.spec.folder) / RESULT_FILE, result)
