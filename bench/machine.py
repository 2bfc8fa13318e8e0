"""The measuring machine: run a system in its own process, and name the hardware beside the figures."""

import json
import os
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.peers.spec import RESULT_FILE, PeerSpec
from insource.config.errors import StageError
from insource.system import environment
from insource.system.console_log import log_line

ROOT = Path(__file__).parent.parent
# While it is timed, a peer must not download, send telemetry or start tokenizer threads.
OFFLINE_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
PEER_TIMEOUT_SECONDS = 3 * 3600


def run_peer(python: Path, module: str, spec: PeerSpec) -> dict[str, Any]:
    """Return result.json of a peer's process. Raise StageError with its last line of stderr if it fails."""
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
        raise StageError(f"{module} was not done after {PEER_TIMEOUT_SECONDS} s", code="INS-X010") from None
    path = Path(spec.folder) / RESULT_FILE
    if process.returncode or not path.exists():
        (Path(spec.folder) / "stderr.txt").write_text(process.stdout + process.stderr, encoding="utf-8")
        raise StageError(f"{module} ended with {process.returncode}: {last_line(process.stderr)}", code="INS-X010")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def describe_hardware(on_gpu: bool) -> str:
    """Return the hardware: `2 cores, AMD EPYC`, or the name of the GPU."""
    if on_gpu:
        import torch

        return str(torch.cuda.get_device_name())
    return f"{os.cpu_count()} cores, {environment.cpu_name()}"


def describe_call(command: str, on_gpu: bool = False) -> dict[str, str]:
    """Return what a result has beside its figures: command, hardware and date."""
    return {"command": command, "hardware": describe_hardware(on_gpu), "date": utc_date()}


def log(message: str) -> None:
    """Print a line of progress to stderr."""
    log_line(f"bench     {message}")


def last_line(stderr: str) -> str:
    """Return the last line of a process's stderr, its first 300 characters."""
    return (stderr.strip().splitlines() or ["nothing said"])[-1].strip()[:300]


def measure_matmul_flops(on_gpu: bool, precision: str) -> float:
    """Return the floating-point operations a second of a large matrix product, the best of five.

    `precision`: float32 or bfloat16.
    """
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


def git_commit(checkout: Path) -> str:
    """Return the commit of a checkout."""
    process = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    return process.stdout.strip()


def utc_date() -> str:
    """Return the current date in UTC, such as 2026-11-29."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


class PeakMemory:
    """Peak memory of a process and its descendants together, sampled five times a second.

    It is a sum of proportional set sizes, so that a page of two processes counts once. Pages of mapped files count too,
    though the system may reclaim them.
    """

    def __init__(self, pid: int) -> None:
        self.bytes, self._pid = 0, pid
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while (current_bytes := sum(map(proportional_set_bytes, process_tree(self._pid)))) or psutil.pid_exists(
            self._pid
        ):
            self.bytes = max(self.bytes, current_bytes)
            time.sleep(0.2)


def process_tree(pid: int) -> list[int]:
    """Return the process id and those of all descendants."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def proportional_set_bytes(pid: int) -> int:
    """Return the proportional set size of a process, 0 if it has ended."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0
