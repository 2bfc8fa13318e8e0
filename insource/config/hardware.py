"""Hardware of this machine, as far as training needs it: selects a file of `recipes/hardware/`.

Reads only /proc and `nvidia-smi`, so that it imports no heavy library.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

HARDWARE_DIR = Path(__file__).parents[2] / "recipes" / "hardware"
# Files of the folder that are for other programs.
NOT_HARDWARE_FILES = {"skypilot"}
# Requirement of PyTorch's CUDA 13 build in requirements/gpu.txt.
MIN_DRIVER_VERSION = 580
COMPILER_INSTALL_COMMAND = "apt install build-essential python3-dev python3-venv (Debian, Ubuntu)"
# {(hardware file, model.base): hardware file with the settings of that base}.
BASE_HARDWARE = {("cpu", "smollm2"): "cpu-smollm2"}

# Values of ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA that compute bfloat16 with float32 instructions.
ATEN_WITHOUT_BFLOAT16 = {"default", "avx2"}
ONEDNN_WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def list_names() -> list[str]:
    """Return the allowed values of HARDWARE."""
    return sorted({path.stem for path in HARDWARE_DIR.glob("*.yaml")} - NOT_HARDWARE_FILES)


def list_gpus() -> list[str]:
    """Return one line per GPU of the driver, such as "NVIDIA H200, 143771 MiB"."""
    return query_gpus("name,memory.total")


def count_gpus() -> int:
    """Return the number of GPUs that a process may use: all, or those in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list_gpus())
    devices = [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    return min(len(devices), len(list_gpus()))


def read_cpu_flags() -> set[str]:
    """Return the instruction sets of the processor, in Linux's names."""
    return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())


def cpu_has_bfloat16() -> bool:
    """Return whether the processor has bfloat16 multiplication; without it float32 is faster.

    Respects the variables that limit PyTorch and oneDNN to older instruction sets.
    """
    if os.environ.get("ATEN_CPU_CAPABILITY", "avx512").lower() in ATEN_WITHOUT_BFLOAT16:
        return False
    max_isa = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if max_isa.upper() in ONEDNN_WITHOUT_BFLOAT16:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & read_cpu_flags())


def read_driver_version() -> str | None:
    """Return the version of NVIDIA's driver, None if nvidia-smi does not report it."""
    return next(iter(query_gpus("driver_version")), None)


def query_gpus(fields: str) -> list[str]:
    """Return the line of each GPU by nvidia-smi, [] if that is missing or fails."""
    argv = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.strip().splitlines() if result.returncode == 0 else []


def driver_problem() -> str | None:
    """Return the problem of the installed driver, None if it is new enough or unknown."""
    version = read_driver_version()
    if version is None or not version[0].isdigit() or int(version.partition(".")[0]) >= MIN_DRIVER_VERSION:
        return None
    return (
        f"NVIDIA's driver is {version}, and the locked PyTorch (CUDA 13) needs {MIN_DRIVER_VERSION} or newer: update it"
    )


def compiler_problem() -> str | None:
    """Return the parts that Triton lacks to compile GPU kernels, None if it has all."""
    compiler = next(
        (name for name in (os.environ.get("CC"), "gcc", "clang", "cc") if name and shutil.which(name)), None
    )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = ([] if compiler else ["no C compiler (gcc, clang)"]) + ([] if header.exists() else [f"no {header}"])
    if not missing:
        return None
    return (
        f"PyTorch and vLLM compile kernels for a GPU (Triton), and there is {' and '.join(missing)}: "
        f"{COMPILER_INSTALL_COMMAND}"
    )


def uses_cpu(name: str) -> bool:
    """Return whether a hardware file computes on CPUs; an unknown file counts as a GPU's."""
    path = HARDWARE_DIR / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return any("use_cpu: true" in line.partition("#")[0] for line in lines)


def select_for_base(name: str, reason: str, base: object) -> tuple[str, str]:
    """Return hardware file and reason; if the base has settings of its own, those of that file."""
    # No dict lookup: `base` of an invalid recipe may be unhashable.
    override = next((file for key, file in BASE_HARDWARE.items() if key == (name, base)), None)
    return (override, f"{name}, with the settings of model.base {base}") if override else (name, reason)


def detect() -> tuple[str, str]:
    """Return the hardware file for this machine, and the reason."""
    gpus = list_gpus()
    if not gpus:
        return "cpu", "this machine shows no GPU"
    if len(gpus) == 1:
        return "gpu", f"this machine has one GPU ({gpus[0]})"
    return "multi-gpu", f"this machine has {len(gpus)} GPUs ({gpus[0]}, ...)"
