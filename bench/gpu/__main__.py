"""The GPU path on this machine's GPU, in one command: `python -m bench.gpu`, or `make bench BENCH=gpu`.

Nothing is downloaded. Weights are random, in the shapes of Qwen3-4B and Llama-3.1-8B. Six kinds of parts:

    environment   versions, compiler, driver; the rate of matrix products by type
    attention     packs against separate rows: log-probabilities, gradients and time, by each implementation
    training      updates of a LoRA adapter on an NF4 base: rate and peak memory
    decoding      validation under the labels' grammar: rate and peak memory
    pipeline      train, export, serve by vLLM, compare, on the pocket model
    peers         TRL and Unsloth beside insource

Each part has a process of its own and a share of the time (8 minutes). A part that is not done in time is skipped from
there on, with the reason. bench/results/gpu.json is written after each part. Every rate has its share of the measured
rate of matrix products. Exit code 1: a part failed.

    --gib 24      allows so much GPU memory only, as a smaller card would have
    --small       tiny shapes, the same code paths; always so without a GPU, where results have `"device": "cpu"`
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import machine
from bench.gpu import parts, table
from bench.gpu.environment import MATMUL
from bench.gpu.parts import PARTS, Budget, Part
from bench.gpu.spec import PartSpec
from insource.config import cli, hardware
from insource.config.errors import RecipeError
from insource.system import atomic_files

RESULTS = Path(__file__).parent.parent / "results" / "gpu.json"
MINUTES, SMALL_MINUTES = 8.0, 15.0


def main() -> int:
    arguments = build_parser().parse_args()
    selected = select_parts(arguments.only)
    on_gpu = find_gpu()
    if arguments.gib and not on_gpu:
        raise RecipeError(
            f"--gib {arguments.gib:g} limits the memory of a GPU, and this machine has none", code="INS-R011"
        )
    path = arguments.out or (None if arguments.only else RESULTS)
    if path:
        check_device(path, "cuda" if on_gpu else "cpu")
    small = arguments.small or not on_gpu
    budget = Budget(
        time.monotonic(), 60 * (arguments.minutes or (SMALL_MINUTES if small else MINUTES)), selected, small
    )
    results = describe_call(on_gpu, small, arguments.gib, budget)
    with tempfile.TemporaryDirectory(prefix="insource-gpu-") as folder:
        for part in selected:
            machine.log(f"{part.name}: up to {max(budget.remaining(part), 0.0):.0f} s")
            spec = make_spec(part, Path(folder), results, budget)
            record = parts.run_part(part, spec)
            results["parts"].append(record)
            results["matmul_flops"] |= read_matmul_flops(record)
            results["seconds"] = round(time.monotonic() - budget.started_at, 1)
            machine.log(f"{part.name}: {record['status']}" + (f", {record['reason']}" if record["reason"] else ""))
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_files.write_json(path, results)
    print(*table.format_results(results), sep="\n")
    return cli.FAILED if any(part["status"] == parts.FAILED for part in results["parts"]) else cli.OK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="The GPU path on this machine's GPU.")
    parser.add_argument("--gib", type=float, help="GPU memory to use, in GiB: imitates a smaller card")
    parser.add_argument("--small", action="store_true", help="tiny shapes (always without a GPU)")
    parser.add_argument("--minutes", type=float, help=f"time of all parts ({MINUTES:g}; in small {SMALL_MINUTES:g})")
    parser.add_argument("--only", action="append", metavar="PART", help="a part whose name begins so; may be repeated")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes (results/{RESULTS.name}; --only: nowhere)")
    return parser


def select_parts(only: list[str] | None) -> tuple[Part, ...]:
    """Return the requested parts; `environment` is always one. Raise RecipeError for an unknown name."""
    names = ", ".join(part.name for part in PARTS)
    for name in only or ():
        if not any(part.name.startswith(name) for part in PARTS):
            raise RecipeError(f"--only {name}: there is no such part; there are {names}", code="INS-R011")
    prefixes = ("environment", *only) if only else ("",)
    return tuple(part for part in PARTS if part.name.startswith(prefixes))


def find_gpu() -> bool:
    """Return whether PyTorch can use a GPU here. Raise RecipeError if there is one that it cannot use."""
    import torch

    if torch.cuda.is_available():
        return True
    if hardware.count_gpus():
        raise RecipeError(
            f"this machine has a GPU ({hardware.list_gpus()[0]}) that PyTorch {torch.__version__} cannot use: see "
            '`make doctor`, or hide it with CUDA_VISIBLE_DEVICES="" for a small run on the CPU',
            code="INS-X005",
        )
    return False


def check_device(path: Path, device: str) -> None:
    """Raise RecipeError if a file has figures of a GPU and this run has none: they are never mixed."""
    if device == "cpu" and path.exists() and (previous := atomic_files.read_json(path))["device"] != "cpu":
        raise RecipeError(
            f"{path} has figures of a GPU ({previous['hardware']}), and this machine has none: name another file with "
            "--out",
            code="INS-R015",
        )


def describe_call(on_gpu: bool, small: bool, gib: float | None, budget: Budget) -> dict[str, Any]:
    """Return the results without parts."""
    return {
        "command": "python -m bench.gpu" + (f" --gib {gib:g}" if gib else "") + (" --small" if small else ""),
        "device": "cuda" if on_gpu else "cpu",
        "hardware": machine.describe_hardware(on_gpu),
        "small": small,
        "gib": gib,
        "dtype": "bfloat16" if on_gpu or hardware.cpu_has_bfloat16() else "float32",
        "commit": machine.git_commit(machine.ROOT),
        "date": machine.utc_date(),
        "budget_seconds": budget.seconds,
        "seconds": 0.0,
        "matmul_flops": {},
        "parts": [],
    }


def make_spec(part: Part, folder: Path, results: dict[str, Any], budget: Budget) -> PartSpec:
    """Return what a part's process gets."""
    return PartSpec(
        part=part.function,
        folder=str(folder / part.name.replace(" ", "-")),
        on_gpu=results["device"] == "cuda",
        small=results["small"],
        dtype=results["dtype"],
        seconds=budget.remaining(part),
        gib=results["gib"] if part.limits_memory else None,
        model=part.model,
        matmul_flops=results["matmul_flops"],
    )


def read_matmul_flops(record: dict[str, Any]) -> dict[str, float]:
    """Return the rates of matrix products by type that a part measured."""
    cases = (case for case in record["cases"] if case["name"].startswith(MATMUL))
    return {case["dtype"]: case["flops_per_second"] for case in cases}


if __name__ == "__main__":
    cli.run_cli(main)
