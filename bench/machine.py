"""The machine that measures: it starts a system as a process of its own, and is named beside the figures."""

import json
import os
import platform
import subprocess
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
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores, {name}"


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
