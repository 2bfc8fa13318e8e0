"""A served run under load: `python -m bench.serving classifier`.

It measures the newest run of a recipe with vLLM's own benchmark client, at 1, 8, 32 and 128 concurrent requests. It
writes bench/results/serving.json and prints the table.

    served   prefix caching   constraint   at a time   requests/s    p50      p95      p99
    adapter  on               grammar             32         41.7    0.74 s   0.91 s   1.02 s

It compares adapter and merged model, prefix caching on and off, with the output constraint and without. The requests
are rows of train in the form that clients send. No row is measured twice on a server: a repeated row would be in its
cache, while real messages share only their beginning.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.peers import vllm_client
from bench.peers.spec import RESULT_FILE
from insource.config import cli
from insource.config.errors import StageError
from insource.system import atomic_files, environment
from insource.system.console_log import log_line
from insource.tracking import run
from serve.vllm import launch_plan, lifecycle
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess, free_port

RESULTS = Path(__file__).parent / "results" / "serving.json"
CONCURRENCIES = (1, 8, 32, 128)
# Requests of one measurement: ROUNDS times the concurrency, so that the first and the last weigh little. If answers are
# slow, the number answered in MAX_SECONDS, and at least one round.
MIN_REQUESTS, ROUNDS, MAX_SECONDS = 64, 6, 30
WARMUP_REQUESTS = 8  # of the first row, before the clock starts
PERCENTILES = (50, 95, 99)


def main() -> int:
    parser = cli.build_parser("bench.serving", "Measure a served run under load.")
    cli.add_run_option(parser)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_intermixed_args()
    loaded, served_run = run.load_recipe_and_run(arguments)
    variants = [variant for variant in ("adapter", "merged") if (served_run.folder / variant).is_dir()]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for variant in variants:
            served = ServedModel(loaded.name, served_run, served_run.recipe(), variant)
            plan = launch_plan.plan_launch([served], loaded.recipe.serve)
            for caching in (True, False):
                vllm = VllmProcess(
                    replace(plan, prefix_caching=caching), Address("127.0.0.1", free_port()), Path(name) / "vllm.log"
                )
                with lifecycle.stop_on_exit(vllm):
                    seconds = lifecycle.start_and_wait(vllm)
                    for measured in measure_loads(served, vllm.address, Path(name)):
                        results.append({**measured, "prefix_caching": caching, "start_seconds": round(seconds, 1)})
                        log_measurement(measured)
                        arguments.results.parent.mkdir(parents=True, exist_ok=True)
                        atomic_files.write_json(arguments.results, results)
    print_table(results)
    return cli.OK


def measure_loads(served: ServedModel, address: Address, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of one server: with the constraint and without, at each concurrency."""
    rows = read_prompts(served)
    constraint = {"structured_outputs": {"grammar": served.prompt.grammar}}
    with bench_client(folder / "client.log") as client:
        for constraint_name, extra_body in (("grammar", constraint), ("none", {})):
            rate: float | None = None
            for concurrency in CONCURRENCIES:
                count = request_count(concurrency, rate)
                batch, rows = rows[:count], rows[count:]
                result = client.measure(served, address, batch, concurrency, extra_body)
                rate = result["request_throughput"]
                yield {
                    "shape": served.name,
                    "system": served.variant,
                    "version": environment.read_vllm_version(),
                    "command": f"python -m bench.serving {served.name}",
                    "constraint": constraint_name,
                    "concurrency": concurrency,
                    "requests": result["completed"],
                    "failed": result.get("failed", 0),
                    "requests_per_second": rate,
                    "output_tokens_per_second": result["output_throughput"],
                    **{f"p{p}_seconds": result[f"p{p}_e2el_ms"] / 1000 for p in PERCENTILES},
                    "hardware": machine.describe_hardware(not served.recipe.accelerate.use_cpu),
                    "date": machine.utc_date(),
                }


def read_prompts(served: ServedModel) -> list[str]:
    """Return the user message of each train row. Raise StageError if there are too few rows."""
    module, spec = served.prompt.load_task()
    rows = atomic_files.read_jsonl(served.run.folder / "data" / "train.jsonl")
    prompts = [module.messages(spec, row["input"])[0]["content"] for row in rows]
    n_needed = 2 * sum(request_count(concurrency, None) for concurrency in CONCURRENCIES)
    if len(prompts) < n_needed:
        raise StageError(
            f"{len(prompts):,} train rows are too few: {n_needed:,} different requests are needed", code="INS-X010"
        )
    return prompts


def request_count(concurrency: int, rate: float | None) -> int:
    """Return the number of requests to measure; `rate`: requests a second of the previous measurement, or None."""
    count = max(MIN_REQUESTS, ROUNDS * concurrency)
    return count if rate is None else min(count, max(concurrency, round(rate * MAX_SECONDS)))


@dataclass(frozen=True)
class BenchClient:
    """vLLM's client as a process that waits for measurements."""

    process: "subprocess.Popen[str]"
    log_path: Path

    def measure(
        self,
        served: ServedModel,
        address: Address,
        prompts: Sequence[str],
        concurrency: int,
        extra_body: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the client's figures for these prompts. Raise StageError if it fails."""
        rows, result = self.log_path.with_name("rows.jsonl"), self.log_path.with_name(RESULT_FILE)
        rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
        result.unlink(missing_ok=True)
        argv = ["--backend", "openai-chat", "--base-url", str(address), "--endpoint", "/v1/chat/completions"]
        argv += ["--model", served.name, "--tokenizer", str(served.folder), "--skip-chat-template"]
        argv += ["--dataset-name", "custom", "--dataset-path", str(rows), "--disable-shuffle"]
        argv += ["--custom-output-len", str(served.prompt.max_answer_tokens)]
        argv += ["--num-prompts", str(len(prompts)), "--num-warmups", str(WARMUP_REQUESTS)]
        argv += ["--max-concurrency", str(concurrency), "--temperature", "0", "--seed", "17", "--disable-tqdm"]
        argv += ["--percentile-metrics", "e2el", "--metric-percentiles", ",".join(map(str, PERCENTILES))]
        argv += ["--save-result", "--result-dir", str(result.parent), "--result-filename", result.name]
        if extra_body:
            argv += ["--extra-body", json.dumps(dict(extra_body))]
        self._send(json.dumps(argv))
        if not result.exists():
            log_tail = self.log_path.read_text(encoding="utf-8").strip()[-500:]
            raise StageError(f"vLLM's client ended with {self.process.wait()}: {log_tail}", code="INS-X010")
        return atomic_files.read_json(result)  # type: ignore[no-any-return]

    def _send(self, line: str) -> None:
        """Send a measurement to the client, and wait until it has finished or the client has ended."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a client is started with pipes")
        stdin.write(line + "\n")
        stdin.flush()
        for reply in stdout:
            if reply.strip() == vllm_client.MEASURED_LINE:
                return


@contextmanager
def bench_client(log: Path) -> Iterator[BenchClient]:
    """Start the client, which takes the time of vLLM's import; yield it, and kill it at the end of the block."""
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.vllm_client"],
            cwd=machine.ROOT,
            env={**os.environ, **machine.OFFLINE_ENV},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield BenchClient(process, log)
    finally:
        process.kill()
        process.wait()


def log_measurement(measured: Mapping[str, object]) -> None:
    """Print a measurement to stderr."""
    log_line(
        f"measured  {measured['system']}, {measured['constraint']}, {measured['concurrency']} at a time: "
        f"{measured['requests_per_second']:.1f} requests/s"
    )


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Serving under load", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("served", "prefix caching", "constraint"):
        table.add_column(name, no_wrap=True)
    for name in ("at a time", "requests", "failed", "requests/s", *(f"p{p}" for p in PERCENTILES)):
        table.add_column(name, justify="right", no_wrap=True)
    previous_group: tuple[object, ...] = ()
    for result in results:
        group = (result["system"], result["prefix_caching"], result["constraint"])
        if previous_group and group != previous_group:
            table.add_section()
        previous_group = group
        table.add_row(
            result["system"],
            "on" if result["prefix_caching"] else "off",
            result["constraint"],
            str(result["concurrency"]),
            str(result["requests"]),
            str(result["failed"]),
            f"{result['requests_per_second']:.1f}",
            *(f"{result[f'p{p}_seconds']:.2f} s" for p in PERCENTILES),
        )
    Console(width=None if Console().is_terminal else 120).print(table)
    for result in results[:1]:
        print(f"{result['hardware']}, vLLM {result['version']}, {result['date']}")


if __name__ == "__main__":
    cli.run_cli(main)
