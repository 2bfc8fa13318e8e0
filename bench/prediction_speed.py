"""The same rows through vLLM in three ways, in turns: `make predict`, the comparison's requests, `vllm run-batch`.

Each way sends the same requests: prompt, grammar, log-probabilities. vLLM's prefix cache is emptied before each, so
that the first row computes the shared prefix and the others find it. Seconds are from the first request to the last
answer on disk, without the start of vLLM. predict and the comparison share one server process; run-batch has its
engine in its own process, with the same options, while that server is idle.
"""

import argparse
import asyncio
import csv
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from compare.systems import row_requests
from deploy.answers.task import LOCAL_SYSTEM
from insource.backends import collection
from insource.backends.types import Backend, RowRequest
from insource.backends.wire import openai_chat
from insource.config.errors import StageError
from insource.system import atomic_files
from insource.tasks.data_row import InputRow
from predict import stage
from predict.engines import clients, local_vllm
from predict.execution.job_execution import JobExecution
from predict.job import Job
from serve.vllm import launch_plan, server_process
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess

RUN_BATCH_MODULE = "vllm.entrypoints.launchers.run_batch"
BATCH_STARTED = "Running batch"
"""The label of its progress bar, which appears before the first request."""
SERVER_OPTIONS = ("--host", "--port", "--middleware")
"""Options of the server that run-batch does not have, each with a value."""
DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}
"""With it the server has POST /reset_prefix_cache."""


class Workload:
    """The rows, as a job of `make predict` and as the requests of the two other ways."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder, self._arguments = folder, arguments
        self.rows_path = folder / "rows.csv"
        self.texts = _write_rows(arguments.input, arguments.rows, self.rows_path)
        self.job = self.build_job("first")
        variant = launch_plan.rank_variants(self.job.run, self.job.run.recipe(), self.job.recipe.serve)[0]
        self.served: ServedModel = self.job.served_model(variant)
        self.task = clients.as_served(self.job.task(variant))
        self.concurrency = self.job.recipe.compare.concurrency

    def build_job(self, name: str) -> Job:
        """Return a job of these rows with an output of its own."""
        settings = {name: getattr(self._arguments, name) for name in ("recipe", "runs")}
        options: dict[str, Any] = {"set": [], "hardware": None, "run": None, "engine": "vllm"}
        options |= {"base_url": None, "workers": None}
        paths = {"input": str(self.rows_path), "output": str(self.folder / f"{name}.jsonl")}
        flags = {"probabilities": False, "fresh": True, "force": True}
        return stage.build_job(argparse.Namespace(**settings, **options, **paths, **flags))

    def requests(self) -> list[RowRequest]:
        """Return the requests of the comparison."""
        rows: list[InputRow] = [{"id": str(number), "input": {"text": text}} for number, text in enumerate(self.texts)]
        requests = row_requests.build_requests(LOCAL_SYSTEM, self.task.dataset, rows)
        return [RowRequest(request.id, 0, request) for request in requests]


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of each way in each repeat. Raise RecipeError and StageError."""
    os.environ.update(DEV_MODE)
    with tempfile.TemporaryDirectory() as name:
        workload = Workload(arguments, Path(name))
        serve = workload.job.recipe.serve
        with local_vllm.vllm_server(workload.served, serve, workload.folder / "vllm.log") as vllm:
            systems: dict[str, Callable[[Workload, VllmProcess, int], float]] = {
                "predict": time_predict,
                "the comparison's own requests": time_comparison,
                "vllm run-batch": time_run_batch,
            }
            for repeat in range(arguments.repeats):
                for system, time_system in systems.items():
                    _reset_prefix_cache(vllm)
                    seconds = time_system(workload, vllm, repeat)
                    yield {
                        "case": f"{system} {repeat}",
                        "system": system,
                        "rows": len(workload.texts),
                        "seconds": round(seconds, 2),
                        "variant": workload.served.variant,
                        "concurrency": workload.concurrency,
                    }


def time_predict(workload: Workload, vllm: VllmProcess, repeat: int) -> float:
    """Return the seconds of the queries of `make predict`; its output has an answer in each row."""
    job = workload.build_job(f"predict-{repeat}")
    execution = JobExecution(job, workload.job.task(workload.served.variant), ["bench", repeat], "bench")
    with execution.lock():
        started_at = time.monotonic()
        asyncio.run(stage.query_vllm(execution, _origin(vllm)))
        seconds = time.monotonic() - started_at
        execution.finish()
    rows = list(atomic_files.read_jsonl(job.output))
    _check_answers("predict", sum(row["answered_by"] is not None for row in rows), len(workload.texts))
    return seconds


def time_comparison(workload: Workload, vllm: VllmProcess, repeat: int) -> float:
    """Return the seconds of the requests as the comparison sends them."""
    backend = Backend(
        "openai",
        workload.task.name,
        base_url=f"{_origin(vllm)}/v1",
        structured="grammar" if workload.task.grammar else "none",
        log_probabilities=True,
        timeout_seconds=600,
        retries=2,
        concurrency=workload.concurrency,
    )
    cache_path = workload.folder / f"answers-{repeat}.jsonl"
    collected = collection.collect(backend, ["bench"], workload.requests(), cache_path, budget=None, price=None)
    n_answers = sum(response.output is not None for response in collected.answers.values())
    _check_answers("the comparison", n_answers, len(workload.texts))
    return collected.wall_seconds


def time_run_batch(workload: Workload, vllm: VllmProcess, repeat: int) -> float:
    """Return the seconds from the first request to the written output."""
    output_path = workload.folder / f"batch-{repeat}.jsonl"
    input_path = _write_batch(workload)
    argv = [sys.executable, "-m", RUN_BATCH_MODULE, "-i", str(input_path), "-o", str(output_path)]
    process = subprocess.Popen(
        [*argv, *_engine_options(vllm)],
        env={**os.environ, **server_process.vllm_environment(vllm.plan, None)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    started_at, last_lines = None, list[str]()
    assert process.stdout is not None
    for line in process.stdout:
        last_lines = [*last_lines[-20:], line]
        if started_at is None and BATCH_STARTED in line:
            started_at = time.time()
    if process.wait() or started_at is None:
        raise StageError(f"vllm run-batch ended with {process.returncode}: {''.join(last_lines)}", code="INS-X010")
    lines = list(atomic_files.read_jsonl(output_path))
    n_answers = sum((line["response"] or {}).get("status_code") == 200 for line in lines)
    _check_answers("vllm run-batch", n_answers, len(workload.texts))
    return output_path.stat().st_mtime - started_at


def _write_batch(workload: Workload) -> Path:
    """Write the requests in the format of run-batch, and return the path."""
    task, path = workload.task, workload.folder / "batch.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(workload.texts):
            body = openai_chat.build_body(task.backend(), task.request(task.prepare(text)))
            request = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(request) + "\n")
    return path


def _engine_options(vllm: VllmProcess) -> list[str]:
    """Return the options of the server's command that the engine of run-batch has too."""
    _, _, _, *options = server_process.vllm_command(vllm.plan, Address("127.0.0.1", 1))
    positions = [index for name in SERVER_OPTIONS for index, option in enumerate(options) if option == name]
    dropped = {*positions, *(index + 1 for index in positions)}
    kept = [option for index, option in enumerate(options) if index not in dropped]
    return [option for option in kept if option != "--disable-uvicorn-access-log"]


def _write_rows(names: Sequence[str], count: int, path: Path) -> list[str]:
    """Write different texts of the column `text` of CSV files to a CSV file, and return them."""
    texts: dict[str, None] = {}
    for name in names:
        with Path(name).open(encoding="utf-8", newline="") as file:
            texts |= dict.fromkeys(row["text"].strip() for row in csv.DictReader(file))
    chosen = [*texts][:count]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text"], *([text] for text in chosen)])
    return chosen


def _origin(vllm: VllmProcess) -> str:
    return f"http://{vllm.address.host}:{vllm.address.port}"


def _reset_prefix_cache(vllm: VllmProcess) -> None:
    connection = http.client.HTTPConnection(vllm.address.host, vllm.address.port)
    with closing(connection):
        connection.request("POST", "/reset_prefix_cache")
        status = connection.getresponse().status
    if status != 200:
        raise StageError(f"POST /reset_prefix_cache: vLLM answers {status}", code="INS-X010")


def _check_answers(system: str, answers: int, rows: int) -> None:
    if answers < 0.99 * rows:
        raise StageError(f"{system} answered {answers:,} of {rows:,} rows", code="INS-X010")
