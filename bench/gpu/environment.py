"""Part 1 of the GPU bench: what is installed, what the GPU path needs, and the rate of matrix products by type."""

import sys
from functools import partial
from typing import Any

from bench import machine
from bench.gpu.spec import CaseLog, Measurement, PartSpec
from insource.config import hardware
from insource.config.errors import StageError
from insource.system import environment
from train.device import gpu

MATMUL = "matrix product"


def run(spec: PartSpec, log: CaseLog) -> None:
    """Measure. Raise StageError if this machine lacks something that the GPU path needs."""
    problems = find_problems() if spec.on_gpu else []
    log.run("machine", lambda: Measurement(details={**describe_machine(spec.on_gpu), "problems": problems}))
    for dtype in ("float32", "bfloat16"):
        log.run(f"{MATMUL}, {dtype}", partial(measure_matmul, spec, dtype))
    if problems:
        raise StageError("; ".join(problems), code="INS-X010")


def measure_matmul(spec: PartSpec, dtype: str) -> Measurement:
    """Return the rate of a large matrix product, by which all other rates are divided."""
    flops = machine.measure_matmul_flops(spec.on_gpu, dtype)
    return Measurement(flops / 1e9, "GFLOP/s", flops, dtype, details={"flops_per_second": flops})


def describe_machine(on_gpu: bool) -> dict[str, Any]:
    """Return hardware and versions."""
    import torch

    facts: dict[str, Any] = {
        "hardware": machine.describe_hardware(on_gpu),
        "python": sys.version.split()[0],
        "packages": environment.read_package_versions(),
        "processor": environment.cpu_name(),
        "processor_has_bfloat16": hardware.cpu_has_bfloat16(),
        "threads": torch.get_num_threads(),
    }
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "cuda": torch.version.cuda,
            "driver": hardware.read_driver_version(),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
            "memory_bytes": int(properties.total_memory),
            "shared_memory_bytes": int(getattr(properties, "shared_memory_per_block_optin", 0)),
        }
    return facts


def find_problems() -> list[str]:
    """Return what the GPU path lacks here: a driver, a capability, a compiler."""
    import torch

    candidates = (
        hardware.driver_problem(),
        hardware.compiler_problem(),
        gpu.explain_old_gpu(torch.cuda.get_device_name(), torch.cuda.get_device_capability()),
    )
    return [problem for problem in candidates if problem]
