"""The machine that measures: it starts a system as a process of its own, and is named beside the figures."""

import json
import os
import platform
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.peers.spec import RESULT_FILE, PeerSpec
from insource.config.errors import StageError

ROOT = Path(__file__).parent.parent
# No peer may fetch, report home, or fork a tokenizer's threads while it is timed.
OFFLINE_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
PEER_TIMEOUT_SECONDS = 3 * 3600


def run_peer(python: Path, module: str, spec: PeerSpec) -> dict[str, Any]:
    """Returns what a process left in result.json. Raises StageError with the last line it said where it failed."""
    argv = [str(python), "-m", module, str(spec.save())]
    try:
        process = subprocess.run(
            argv,
            cwd=ROOT,
            env={**os.environ, **OFFLINE_ENV},
            capture_output=True,
            text=True,
            timeout=PEER_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StageError(f"{module} was not done after {PEER_TIMEOUT_SECONDS} s") from None
    path = Path(spec.folder) / RESULT_FILE
    if process.returncode or not path.exists():
        (Path(spec.folder) / "stderr.txt").write_text(process.stdout + process.stderr, encoding="utf-8")
        stderr_lines = process.stderr.strip().splitlines() or ["nothing said"]
        raise StageError(f"{module} ended with {process.returncode}: {stderr_lines[-1].strip()[:300]}")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def describe_hardware(on_gpu: bool) -> str:
    """Returns what was measured on: 2 cores, AMD EPYC; or the GPU's name."""
    if on_gpu:
        import torch

        return str(torch.cuda.get_device_name())
    return f"{os.cpu_count()} cores, {cpu_name()}"


def cpu_name() -> str:
    """Returns the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure_matmul_flops(on_gpu: bool, precision: str) -> float:
    """Returns how many floating-point operations a second a large matrix product reaches in float32 or bfloat16, the
    best of five."""
    import torch

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    size, device = (8192, "cuda") if on_gpu else (1536, "cpu")
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(5):
        started_at = time.perf_counter()
        # Reading one number waits for the device.
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - started_at)
    return 2 * size**3 / min(seconds)


def utc_date() -> str:
    """Returns the day, UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


class PeakMemory:
    """The most memory that a process and its children held together, sampled five times a second.

    Proportional set sizes are summed, so that a page which two processes share counts once. Pages of files that are
    mapped count too, though the system may take them back.
    """

    def __init__(self, pid: int) -> None:
        self.bytes, self._pid = 0, pid
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while (current_bytes := sum(map(proportional_set_bytes, process_tree(self._pid)))) or Path(
            f"/proc/{self._pid}"
        ).exists():
            self.bytes = max(self.bytes, current_bytes)
            time.sleep(0.2)


def process_tree(pid: int) -> list[int]:
    """Returns a process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return [pid]
    return [pid, *(descendant for child in children for descendant in process_tree(int(child)))]


def proportional_set_bytes(pid: int) -> int:
    """Returns the proportional set size of a process, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
