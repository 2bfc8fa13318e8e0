"""The vLLM server of a prediction: started as `make serve` starts it, and verified against the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from insource.config.errors import GateError, RecipeError, StageError
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files, environment
from serve import server
from serve.vllm import launch_plan, lifecycle, server_process
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess


@contextmanager
def vllm_server(served: ServedModel, serve: Serve, log_path: Path) -> Iterator[VllmProcess]:
    """Start a vLLM server, yield it, and stop it at the end.

    Raise RecipeError if the variant cannot be served here, StageError if vLLM ends, and GateError if the parity check
    fails.
    """
    vllm = _make_process(served, serve, log_path)
    with lifecycle.stop_on_exit(vllm):
        _start_and_check(vllm, served, serve)
        yield vllm


def start_server(served: ServedModel, serve: Serve, log_path: Path) -> VllmProcess:
    """Start a vLLM server, which ends with the thread that called. Raise as `vllm_server` does."""
    vllm = _make_process(served, serve, log_path)
    try:
        _start_and_check(vllm, served, serve)
    except (RecipeError, StageError):
        vllm.stop()
        raise
    return vllm


def _make_process(served: ServedModel, serve: Serve, log_path: Path) -> VllmProcess:
    plan = launch_plan.plan_launch([served], serve)
    if problem := launch_plan.memory_problem(plan, environment.available_memory_bytes()):
        raise RecipeError(problem, code="INS-X008")
    return VllmProcess(plan, Address("127.0.0.1", server_process.free_port()), log_path)


def _start_and_check(vllm: VllmProcess, served: ServedModel, serve: Serve) -> None:
    lifecycle.start_and_wait(vllm)
    parity = server.check_parity(served, vllm.address, None, serve)
    if failures := parity.failures(serve.parity):
        raise GateError(
            f"not predicted: the served model does not match the trained one: {'; '.join(failures)}", code="INS-E007"
        )


def identify_engine(served: ServedModel, plan: LaunchPlan) -> list[Any]:
    """Return the identity of an engine, independent of its address.

    It consists of base, trained base, weights, chat template, stop token, vLLM's version, dtype and context length.
    """
    prompt, vllm_version = served.prompt, environment.read_vllm_version()
    weights = atomic_files.sha256(served.folder / atomic_files.CHECKSUMS)
    trained_base = launch_plan.find_trained_base(served, plan.serve)
    base_identity = [prompt.base.to_json(), trained_base.digest if trained_base else "published"]
    settings = [plan.dtype, plan.serve.max_model_len]
    return [*base_identity, weights, prompt.chat_template_sha256, prompt.stop, vllm_version, *settings]
