"""Servers of a comparison that start ahead: side by side where memory allows."""

from pathlib import Path

import pytest

from compare.records import System
from compare.systems import catalog, collect
from compare.systems.vllm_servers import PROCESS_OVERHEAD_BYTES, VllmServers
from insource.config.errors import StageError
from insource.config.schema.serving_and_cost import Serve
from insource.system import environment
from serve.vllm import launch_plan
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess, free_port

POCKET = Path(__file__).parents[2] / "pocket" / "model"


def engine(folder: Path, name: str, use_cpu: bool = True, gib: float = 0.5) -> VllmProcess:
    asked = LaunchPlan(str(POCKET), name, Serve(cpu_cache_gib=gib), use_cpu)
    return VllmProcess(asked, Address("127.0.0.1", free_port()), folder / f"{name}.log")


def alive(engines: list[VllmProcess]) -> list[bool]:
    return [one.alive() for one in engines]


def test_a_form_with_examples_goes_with_the_form_and_gives_way_with_it() -> None:
    tuned, adapter = System("tuned", "tuned", "tuned (merged)", "merged"), System("adapter", "tuned", "", "adapter")
    shown, base = catalog.with_examples(tuned, 3), System("base", "base", "untuned base")
    assert (shown.name, shown.title) == ("tuned:3-shot", "tuned (merged), 3 similar examples")
    assert collect.group_by_server([tuned, shown, adapter, base]) == [[tuned, shown], [adapter, base]]
    assert collect.group_by_server([tuned, shown, base]) == [[tuned, shown], [base]]
    # The merged model could not be served: the adapter takes its place, with examples too.
    (together,) = collect.group_by_server(catalog.replace_tuned([shown, adapter, base], "adapter"))
    assert [(one.name, one.which) for one in together] == [
        ("tuned", "adapter"),
        ("tuned:3-shot", "adapter"),
        ("base", None),
    ]
    assert together[1].title == "tuned (adapter), 3 similar examples"
    assert tuned.on_tuned_scale and not shown.on_tuned_scale


def test_those_that_fit_start_side_by_side_and_all_are_stopped(tmp_path: Path) -> None:
    ours, two = VllmServers(), [engine(tmp_path, "merged"), engine(tmp_path, "int8")]
    try:
        for one in two:
            ours.start(one.plan.name, one)
        assert alive(two) == [True, True]
    finally:
        ours.stop()
    assert alive(two) == [False, False]


def test_one_that_does_not_fit_beside_the_first_waits_for_its_turn(tmp_path: Path) -> None:
    first = engine(tmp_path, "merged")
    free = (
        environment.available_memory_bytes()
        - (launch_plan.required_memory_bytes(first.plan) or 0)
        - PROCESS_OVERHEAD_BYTES
    )
    ours, three = VllmServers(), [first, engine(tmp_path, "int8", gib=free / 2**30), engine(tmp_path, "small")]
    try:
        for one in three:
            ours.start(one.plan.name, one)
        assert alive(three) == [True, False, False]
    finally:
        ours.stop()


def test_what_failed_beside_others_is_tried_alone(tmp_path: Path) -> None:
    """The memory, or the time, may not have sufficed for both."""
    ours = VllmServers()
    failing, given = (
        VllmProcess(
            LaunchPlan(str(tmp_path / "none"), name, Serve(), True), Address("127.0.0.1", free_port()), tmp_path / name
        )
        for name in ("failing", "given")
    )
    try:
        ours.start("failing", failing)
        with pytest.raises(StageError, match="none"), ours.take("failing", given):
            pass
        assert failing.log.exists() and given.log.exists() and not failing.alive()
    finally:
        ours.stop()


def test_on_a_gpu_the_first_alone_starts_ahead(tmp_path: Path) -> None:
    ours, two = VllmServers(), [engine(tmp_path, name, use_cpu=False) for name in ("merged", "int8")]
    try:
        for one in two:
            ours.start(one.plan.name, one)
        assert alive(two) == [True, False]
    finally:
        ours.stop()
