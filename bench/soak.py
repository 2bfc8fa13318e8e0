"""The gateway under load and faults: `python -m bench.soak`.

It serves the pocket model with a real vLLM for half an hour, prints a table and writes bench/results/soak.json.

32 clients query without pause. A version is deployed or rolled back every minute. vLLM or one of its processes is
killed or frozen (SIGSTOP) at random moments. 200 connections send nothing and 50 send one byte a second.

Every answer is compared with the reference answer of the version that the gateway names. Only rows without close calls
count (margin of transformers at least 0.5). The bench fails on a wrong answer, and on a request that gets neither an
answer nor a 429 or 503 with Retry-After. It also fails if memory or descriptors grow.

    --minutes 3   a short run, which writes no file unless --results names one
"""

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout

from bench import machine
from bench.kills import write_recipe
from deploy import registry
from insource.config import cli
from insource.config.errors import StageError
from insource.system import atomic_files
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run
from serve.vllm.server_process import free_port

RESULTS = Path(__file__).parent / "results" / "soak.json"
N_CLIENTS, SILENT_CONNECTIONS, SLOW_CONNECTIONS = 32, 200, 50
DEPLOY_INTERVAL_SECONDS, SAMPLE_INTERVAL_SECONDS = 60.0, 2.0
# The gateway ends if vLLM fails four times within ten minutes: faults must be rarer.
FAULT_INTERVAL_SECONDS = (205.0, 260.0)
MIN_MARGIN = 0.5
MAX_UNANSWERED_SECONDS = 180.0
# The memory of a Python process under constant load varies by some MiB.
MAX_GROWTH_MIB, MAX_GROWTH_DESCRIPTORS = 32.0, 50
API_KEY = "soak-" + "0" * 16
TRAIN_SETTINGS = ("train.max_steps=4", "train.save_steps=4")


@dataclass
class SoakState:
    """Settings, counts and samples of a soak."""

    model: str
    port: int
    gateway_pid: int
    references: dict[str, dict[str, Any]]
    """{version: {row id: its reference}}."""
    grammar: str | None
    rows: Sequence[str]
    deadline: float
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    """(seconds, MiB, descriptors) of the gateway's own process."""
    latencies_seconds: list[float] = field(default_factory=list)
    """Latencies of answers."""

    def is_over(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() >= self.deadline


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description="The gateway while everything goes wrong."
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--results", type=Path, help=f"where the JSON goes (of 30 minutes and more: {RESULTS})")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder, 400)
        runs = [train_and_deploy(folder, recipe, seed) for seed in (1, 2)]
        result = run_soak(folder, recipe, runs, 60 * arguments.minutes, rng)
    print_result(result)
    path = arguments.results or (RESULTS if arguments.minutes >= 30 else None)
    if path:
        atomic_files.write_json(path, result)
    return cli.OK if not result["broken"] else cli.FAILED


def train_and_deploy(folder: Path, recipe: Path, seed: int) -> Run:
    """Train a run with a seed, deploy its adapter and return the run."""
    run_command(folder, "train", recipe, f"train.seed={seed}", *TRAIN_SETTINGS)
    run = Run((folder / "runs" / recipe.stem / "latest").resolve())
    run_command(folder, "deploy", recipe, "--run", run.id, "--force")
    return run


def command_env(folder: Path) -> dict[str, str]:
    """Return the environment of all commands."""
    variables = {"RUNS": str(folder / "runs"), "REGISTRY": str(folder / "registry"), "INSOURCE_API_KEY": API_KEY}
    return {**os.environ, "HF_HUB_OFFLINE": "1", **variables}


def run_command(folder: Path, *args: object) -> None:
    """Run `python -m <args>` to its end. Raise StageError if it fails."""
    argv = [sys.executable, "-m", *map(str, args), "--hardware", "cpu"]
    process = subprocess.run(
        argv, cwd=machine.ROOT, env=command_env(folder), capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise StageError(
            f"{' '.join(argv)} ended with {process.returncode}:\n{process.stderr[-2000:]}", code="INS-X010"
        )


def run_soak(folder: Path, recipe: Path, runs: Sequence[Run], seconds: float, rng: random.Random) -> dict[str, Any]:
    """Return the figures of a soak of so many seconds. Raise StageError if the gateway does not start, or ends."""
    port, log = free_port(), folder / "gateway.log"
    argv = [sys.executable, "-m", "deploy.gateway", str(recipe), f"serve.port={port}", "--hardware", "cpu"]
    with log.open("wb") as log_file:
        process = subprocess.Popen(argv, cwd=machine.ROOT, env=command_env(folder), stdout=log_file, stderr=log_file)
    try:
        while b"ready     " not in log.read_bytes():
            if process.poll() is not None:
                raise StageError(f"the gateway ended:\n{log.read_text(encoding='utf-8')[-3000:]}", code="INS-X010")
            time.sleep(0.5)
        references = {
            registry.compute_version(run.folder / "adapter"): {
                reference["id"]: reference for reference in atomic_files.read_jsonl(run.references_path)
            }
            for run in runs
        }
        rows = rows_with_margin(references)
        grammar = PromptSpec.read(runs[0].folder / "adapter").grammar
        state = SoakState(recipe.stem, port, process.pid, references, grammar, rows, time.monotonic() + seconds)
        asyncio.run(run_load(state, folder, recipe, runs, rng))
        if process.poll() is not None:
            raise StageError(f"the gateway ended:\n{log.read_text(encoding='utf-8')[-3000:]}", code="INS-X010")
        process.send_signal(signal.SIGTERM)
        started_at = time.monotonic()
        process.wait(60)
        return summarize(state, seconds, time.monotonic() - started_at, log.read_text(encoding="utf-8"))
    finally:
        for pid in machine.process_tree(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def rows_with_margin(references: dict[str, dict[str, Any]]) -> list[str]:
    """Return the rows that are a close call for no version: batching and kernels may change close calls."""
    common_rows = set.intersection(*(set(rows) for rows in references.values()))
    return sorted(
        row
        for row in common_rows
        if all(rows[row]["margin"] is None or rows[row]["margin"] >= MIN_MARGIN for rows in references.values())
    )


async def run_load(state: SoakState, folder: Path, recipe: Path, runs: Sequence[Run], rng: random.Random) -> None:
    """Run clients, deployments, faults and idle connections until the time is over."""
    timeout = ClientTimeout(total=MAX_UNANSWERED_SECONDS)
    async with ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}, timeout=timeout) as session:
        clients = [run_client(state, session, random.Random(number)) for number in range(N_CLIENTS)]
        idle = [hold_silent(state) for _ in range(SILENT_CONNECTIONS)] + [
            send_slowly(state) for _ in range(SLOW_CONNECTIONS)
        ]
        await asyncio.gather(
            *clients,
            *idle,
            deploy_in_turns(state, folder, recipe, runs),
            inject_faults(state, rng),
            sample_resources(state),
        )


async def run_client(state: SoakState, session: ClientSession, rng: random.Random) -> None:
    """Query one row after the other; wait as long as Retry-After requires."""
    while not state.is_over():
        row = rng.choice(state.rows)
        body = {
            "model": state.model,
            "prompt": next(iter(state.references.values()))[row]["prompt_ids"],
            "max_tokens": 64,
        }
        body |= {"structured_outputs": {"grammar": state.grammar}} if state.grammar else {}
        started_at, wait = time.monotonic(), 0.0
        try:
            async with session.post(f"http://127.0.0.1:{state.port}/v1/completions", json=body) as response:
                payload = await response.json()
                if response.status == 200:
                    expected = state.references[response.headers["X-Insource-Version"]][row]["answer"]
                    state.outcomes["right" if payload["choices"][0]["text"] == expected else "wrong"] += 1
                    state.latencies_seconds.append(time.monotonic() - started_at)
                elif response.status in (429, 503) and "Retry-After" in response.headers:
                    state.outcomes[f"{response.status} with Retry-After"] += 1
                    wait = float(response.headers["Retry-After"])
                else:
                    state.outcomes[f"{response.status}"] += 1
        except (ClientError, TimeoutError, KeyError, ValueError) as error:
            state.outcomes[f"no answer: {type(error).__name__}"] += 1
            wait = 1.0
        await asyncio.sleep(wait)


async def hold_silent(state: SoakState) -> None:
    """Hold a connection that sends nothing, and reopen it when it is closed."""
    while not state.is_over():
        await hold_connection(state, b"", 0.0)


async def send_slowly(state: SoakState) -> None:
    """Send a request at one byte a second."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n"
    head += "Content-Length: 100\r\n\r\n"
    while not state.is_over():
        await hold_connection(state, head.encode(), 1.0)


async def hold_connection(state: SoakState, head: bytes, byte_seconds: float) -> None:
    """Send `head` on a new connection, and hold it until it is closed.

    Send a further byte every `byte_seconds`, unless that is 0.
    """
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", state.port)
    except OSError:
        await asyncio.sleep(1.0)
        return
    with suppress(OSError):
        writer.write(head)
        reading = asyncio.create_task(reader.read())
        while not reading.done() and not state.is_over():
            await asyncio.wait({reading}, timeout=byte_seconds or 1.0)
            if byte_seconds and not reading.done():
                writer.write(b" ")
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    writer.close()


async def deploy_in_turns(state: SoakState, folder: Path, recipe: Path, runs: Sequence[Run]) -> None:
    """Deploy the first run and roll back, in turns."""
    number = 0
    while not state.is_over():
        await asyncio.sleep(min(DEPLOY_INTERVAL_SECONDS, max(0.0, state.deadline - time.monotonic())))
        args = ("deploy", recipe, "--rollback") if number % 2 else ("deploy", recipe, "--run", runs[0].id, "--force")
        await asyncio.to_thread(run_command, folder, *args)
        state.faults["rolled back" if number % 2 else "deployed"] += 1
        number += 1


async def inject_faults(state: SoakState, rng: random.Random) -> None:
    """Kill or freeze vLLM, or a process that it started."""
    # A short run has one fault, too.
    wait = min(rng.uniform(*FAULT_INTERVAL_SECONDS), (state.deadline - time.monotonic()) / 3)
    while True:
        if time.monotonic() + wait > state.deadline - 10:
            return
        await asyncio.sleep(wait)
        child_pids = machine.process_tree(state.gateway_pid)[1:]
        if not child_pids:
            continue
        signal_number, pid = rng.choice((signal.SIGKILL, signal.SIGSTOP)), rng.choice(child_pids)
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            name = psutil.Process(pid).name()
            os.kill(pid, signal_number)
            state.faults[f"{signal_number.name} {name}"] += 1
        wait = rng.uniform(*FAULT_INTERVAL_SECONDS)


async def sample_resources(state: SoakState) -> None:
    """Sample memory and descriptors of the gateway."""
    started_at = time.monotonic()
    while not state.is_over():
        with suppress(psutil.Error):
            process = psutil.Process(state.gateway_pid)
            resident_mib = process.memory_info().rss / 2**20
            state.samples.append((time.monotonic() - started_at, resident_mib, process.num_fds()))
        await asyncio.sleep(SAMPLE_INTERVAL_SECONDS)


def summarize(state: SoakState, seconds: float, stop_seconds: float, log: str) -> dict[str, Any]:
    """Return the figures and the broken promises."""
    n_samples = max(1, len(state.samples) // 5)
    early, late = state.samples[n_samples : 2 * n_samples] or state.samples, state.samples[-n_samples:]
    growth = [median(sample[index] for sample in late) - median(sample[index] for sample in early) for index in (1, 2)]
    allowed = {"right", "429 with Retry-After", "503 with Retry-After"}
    broken = [f"{count:,} {name}" for name, count in state.outcomes.items() if name not in allowed]
    broken += [f"memory grew by {growth[0]:.0f} MiB"] if growth[0] > MAX_GROWTH_MIB else []
    broken += [f"descriptors grew by {growth[1]:.0f}"] if growth[1] > MAX_GROWTH_DESCRIPTORS else []
    broken += [f"it took {stop_seconds:.0f} s to stop"] if stop_seconds > 10 else []
    broken += [] if state.outcomes["right"] else ["nothing was answered"]
    ordered = sorted(state.latencies_seconds)
    return {
        "minutes": seconds / 60,
        "clients": N_CLIENTS,
        "silent": SILENT_CONNECTIONS,
        "slow": SLOW_CONNECTIONS,
        "outcomes": dict(state.outcomes),
        "faults": dict(state.faults),
        "vllm_restarts": log.count("vllm      died") + log.count("vllm      hangs"),
        "change_overs": log.count("current   "),
        "memory_mib": [round(median(sample[1] for sample in samples), 1) for samples in (early, late)],
        "descriptors": [round(median(sample[2] for sample in samples)) for samples in (early, late)],
        "p50_seconds": round(ordered[len(ordered) // 2], 3) if ordered else None,
        "p99_seconds": round(ordered[int(len(ordered) * 0.99)], 3) if ordered else None,
        "stop_seconds": round(stop_seconds, 1),
        "broken": broken,
        "hardware": machine.describe_hardware(on_gpu=False),
        "date": machine.utc_date(),
    }


def print_result(result: dict[str, object]) -> None:
    """Print the figures."""
    for name, value in result.items():
        text = ", ".join(f"{key} {count:,}" for key, count in value.items()) if isinstance(value, dict) else value
        print(f"{name:16} {text}")


if __name__ == "__main__":
    cli.run_cli(main)
