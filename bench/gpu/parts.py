"""The parts of the GPU bench, their shares of the time, and the start of a part's process."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.gpu.spec import RESULT_FILE, PartSpec
from insource.system import atomic_files
from train.device.environment import GPU_ALLOCATOR_ENV

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
# Seconds below which a part is not started: Python and torch take that long to import.
MIN_SECONDS = 10


@dataclass(frozen=True)
class Part:
    """A part and its share of the time."""

    name: str
    function: str
    """A key of `PART_FUNCTIONS` in part_process.py."""
    share: float
    small_share: float
    """The share of a small run, where processes cost more time than passes."""
    model: str = ""
    limits_memory: bool = False
    """Whether --gib applies: the other parts start processes of their own."""


PARTS = (
    Part("environment", "environment", 0.05, 0.08),
    Part("attention", "attention", 0.13, 0.10, limits_memory=True),
    Part("training Qwen3-4B", "training", 0.12, 0.08, "Qwen3-4B", limits_memory=True),
    Part("decoding Qwen3-4B", "decoding", 0.08, 0.06, "Qwen3-4B", limits_memory=True),
    Part("training Llama-3.1-8B", "training", 0.12, 0.06, "Llama-3.1-8B", limits_memory=True),
    Part("decoding Llama-3.1-8B", "decoding", 0.08, 0.06, "Llama-3.1-8B", limits_memory=True),
    Part("pipeline", "pipeline", 0.26, 0.46),
    Part("peers", "peers", 0.16, 0.10, "Qwen3-4B"),
)


@dataclass(frozen=True)
class Budget:
    """The time of a call. A part may use its own share and what earlier parts have left of theirs."""

    started_at: float
    seconds: float
    parts: tuple[Part, ...]
    small: bool

    def remaining(self, part: Part) -> float:
        """Return the seconds until the end of a part's share."""
        shares = [each.small_share if self.small else each.share for each in self.parts]
        end = sum(shares[: self.parts.index(part) + 1]) / sum(shares) * self.seconds
        return self.started_at + end - time.monotonic()


def run_part(part: Part, spec: PartSpec) -> dict[str, Any]:
    """Run a part in a process of its own and return its record: name, status, reason, seconds, cases, skipped cases.

    A part that is not done in its time is stopped with all its processes. It keeps the cases that it has finished.
    """
    record: dict[str, Any] = {"name": part.name, "model": spec.model or None, "gib": spec.gib}
    if spec.seconds < MIN_SECONDS:
        left = f"{max(spec.seconds, 0.0):.0f} s of its time are left"
        return record | {"status": SKIPPED, "reason": left, "seconds": 0.0, "cases": [], "skipped": []}
    started_at, folder = time.monotonic(), Path(spec.folder)
    status, reason = run_process([sys.executable, "-m", "bench.gpu.part_process", str(spec.save())], folder, spec)
    result: dict[str, Any] = {"cases": [], "skipped": []}
    if (folder / RESULT_FILE).exists():
        result = atomic_files.read_json(folder / RESULT_FILE)
    return record | {"status": status, "reason": reason, "seconds": round(time.monotonic() - started_at, 1), **result}


def run_process(argv: list[str], folder: Path, spec: PartSpec) -> tuple[str, str | None]:
    """Return the status of a process and the reason if it is not done; its output goes to files in `folder`."""
    stderr_path = folder / "stderr.txt"
    with stderr_path.open("wb") as stderr, (folder / "stdout.txt").open("wb") as stdout:
        process = subprocess.Popen(
            argv,
            cwd=machine.ROOT,
            env=part_environment(spec),
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = process.wait(spec.seconds)
        except subprocess.TimeoutExpired:
            return SKIPPED, f"its {spec.seconds:.0f} s were used up"
        finally:
            _kill_group(process)
    if code == 0:
        return DONE, None
    lines = stderr_path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing said"]
    return FAILED, f"ended with {code}: {lines[-1].strip()[:400]}"


def part_environment(spec: PartSpec) -> dict[str, str]:
    """Return the environment of a part's process, with the allocator settings that training has on a GPU."""
    allocator = GPU_ALLOCATOR_ENV if spec.on_gpu else {}
    return {**allocator, **os.environ, **machine.OFFLINE_ENV}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
