"""Servers of a comparison that start ahead: side by side where memory allows."""

from pathlib import Path

from compare.records import System
from compare.systems import catalog, collect
from compare.systems.vllm_servers import PROCESS_OVERHEAD_BYTES, VllmServers
from insource.config.errors import StageError
from insource.config.schema.serving_and_cost import Serve
from insource.system import environment
from serve.vllm import launch_plan
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess, free_port
from tests.helpers.errors import raises_error

POCKET = Path(__file__).parents[2] / "pocket" / "model"


def engine(folder: Path, name: str, use_cpu: bool = True, gib: float = 0.5) -> VllmProcess:
    plan = LaunchPlan(str(POCKET), name, Serve(cpu_cache_gib=gib), use_cpu)
    return VllmProcess(plan, Address("127.0.0.1", free_port()), folder / f"{name}.log")


def alive(engines: list[VllmProcess]) -> list[bool]:
    return [process.is_alive() for process in engines]


def test_a_form_with_examples_goes_with_the_form_and_gives_way_with_it() -> None:
    tuned, adapter = System("tuned", "tuned", "tuned (merged)", "merged"), System("adapter", "tuned", "", "adapter")
    with_shots, base = catalog.with_examples(tuned, 3), System("base", "base", "untuned base")
    assert (with_shots.name, with_shots.title) == ("tuned:3-shot", "tuned (merged), 3 similar examples")
    assert collect.group_by_server([tuned, with_shots, adapter, base]) == [[tuned, with_shots], [adapter, base]]
    assert collect.group_by_server([tuned, with_shots, base]) == [[tuned, with_shots], [base]]
    # The merged model could not be served: the adapter takes its place, with examples too.
    (group,) = collect.group_by_server(catalog.replace_tuned([with_shots, adapter, base], "adapter"))
    assert [(system.name, system.variant) for system in group] == [
        ("tuned", "adapter"),
        ("tuned:3-shot", "adapter"),
        ("base", None),
    ]
    assert group[1].title == "tuned (adapter), 3 similar examples"
    assert tuned.uses_tuned_scale and not with_shots.uses_tuned_scale


def test_those_that_fit_start_side_by_side_and_all_are_stopped(tmp_path: Path) -> None:
    servers, processes = VllmServers(), [engine(tmp_path, "merged"), engine(tmp_path, "int8")]
    try:
        for process in processes:
            servers.start(process.plan.name, process)
        assert alive(processes) == [True, True]
    finally:
        servers.stop()
    assert alive(processes) == [False, False]


def test_one_that_does_not_fit_beside_the_first_waits_for_its_turn(tmp_path: Path) -> None:
    first = engine(tmp_path, "merged")
    free = (
        environment.available_memory_bytes()
        - (launch_plan.required_memory_bytes(first.plan) or 0)
        - PROCESS_OVERHEAD_BYTES
    )
    servers, processes = VllmServers(), [first, engine(tmp_path, "int8", gib=free / 2**30), engine(tmp_path, "small")]
    try:
        for process in processes:
            servers.start(process.plan.name, process)
        assert alive(processes) == [True, False, False]
    finally:
        servers.stop()


def test_what_failed_beside_others_is_tried_alone(tmp_path: Path) -> None:
    """The memory, or the time, may not have sufficed for both."""
    servers = VllmServers()
    failing, retried = (
        VllmProcess(
            LaunchPlan(str(tmp_path / "none"), name, Serve(), True), Address("127.0.0.1", free_port()), tmp_path / name
        )
        for name in ("failing", "given")
    )
    try:
        servers.start("failing", failing)
        with raises_error(StageError, "INS-E005", match="none"), servers.acquire("failing", retried):
            pass
        assert failing.log.exists() and retried.log.exists() and not failing.is_alive()
    finally:
        servers.stop()


def test_on_a_gpu_the_first_alone_starts_ahead(tmp_path: Path) -> None:
    servers, processes = VllmServers(), [engine(tmp_path, name, use_cpu=False) for name in ("merged", "int8")]
    try:
        for process in processes:
            servers.start(process.plan.name, process)
        assert alive(processes) == [True, False]
    finally:
        servers.stop()
