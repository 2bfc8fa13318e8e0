"""Cost of the gateway under load: `python -m bench.gateway_load`.

It writes bench/results/gateway_load.json and prints a table for each part.

    engine      32 requests in flight to a real vLLM with the pocket model, directly and through the gateway, in turns
    stand_in    the same with a stand-in that answers after a fixed time, so that the gateway's own time is visible
    memory      memory of the gateway over 20,000 requests, and with 200 clients that read slowly
    api_faults  the API model is stopped, slowed to 30 s and brought back under load; every request must get an answer

Direct requests go to the same process as those of the gateway, over its Unix socket. The load generator, the gateway
and vLLM share the processors. Exit code 1: a target is missed.

    --only engine memory   these parts; the file keeps the others
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine
from bench.gateway_load import api_faults, engine, stand_in
from insource.config import cli
from insource.system import atomic_files, environment

RESULTS = Path(__file__).parent.parent / "results" / "gateway_load.json"
PARTS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "engine": engine.measure,
    "stand_in": stand_in.measure_overhead,
    "memory": stand_in.measure_memory,
    "api_faults": api_faults.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway_load", description="Cost of the gateway under load.")
    parser.add_argument("--only", choices=list(PARTS), nargs="+", help="these parts; the file keeps the others")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all durations and numbers of requests")
    parser.add_argument("--results", type=Path, help=f"where the JSON goes (with --scale 1: {RESULTS})")
    arguments = parser.parse_args()
    path = arguments.results or (RESULTS if arguments.scale == 1 else None)
    results = atomic_files.read_json(path) if path and path.exists() else {}
    missed, scale_option = [], "" if arguments.scale == 1 else f" --scale {arguments.scale:g}"
    for name in arguments.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            result = PARTS[name](Path(folder), arguments.scale)
        missed += [f"{name}: {target}" for target in result["missed"]]
        results[name] = result | {
            "command": f"python -m bench.gateway_load --only {name}{scale_option}",
            "hardware": machine.describe_hardware(on_gpu=False),
            "vllm": environment.read_vllm_version(),
            "date": machine.utc_date(),
        }
        if path:
            atomic_files.write_json(path, results)
    print(*(f"missed    {target}" for target in missed), sep="\n", end="\n" if missed else "")
    return cli.FAILED if missed else cli.OK


if __name__ == "__main__":
    cli.run_cli(main)
