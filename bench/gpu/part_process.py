"""The process of one part of the GPU bench: `python -m bench.gpu.part_process FOLDER/spec.json`.

A part in a process of its own gives all memory back at its end, and an out-of-memory error ends only its part.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.gpu import attention, beside_peers, decoding, environment, pipeline, training
from bench.gpu.spec import CaseLog, PartSpec, read_spec
from insource.config import cli
from insource.config.errors import StageError
from insource.system import child_processes
from train.device import out_of_memory

PART_FUNCTIONS: Mapping[str, Callable[[PartSpec, CaseLog], None]] = {
    "environment": environment.run,
    "attention": attention.run,
    "training": training.run,
    "decoding": decoding.run,
    "pipeline": pipeline.run,
    "peers": beside_peers.run,
}


def main() -> int:
    """Run the part of a spec. Raise StageError if it fails, which prints one line."""
    child_processes.set_parent_death_signal(os.getppid())
    parser = argparse.ArgumentParser(description="One part; `python -m bench.gpu` starts it.")
    parser.add_argument("spec", type=Path)
    spec = read_spec(parser.parse_args().spec)
    if spec.gib is not None:
        limit_gpu_memory(spec.gib)
    try:
        PART_FUNCTIONS[spec.part](spec, CaseLog(spec))
    except RuntimeError as error:
        if not out_of_memory.is_out_of_memory(error):
            raise
        raise StageError(f"out of memory: {str(error).splitlines()[0][:300]}", code="INS-X010") from error
    return cli.OK


def limit_gpu_memory(gib: float) -> None:
    """Let this process allocate only so many GiB of the GPU, as if it were a smaller one."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))


if __name__ == "__main__":
    cli.run_cli(main)
