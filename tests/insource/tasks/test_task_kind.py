"""Conformance of every task module to the TaskKind protocols: members, constants and parameter names."""

import inspect
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from insource.config.metric_names import METRICS
from insource.tasks import TASKS
from insource.tasks.task_kind import (
    DecodedTaskKind,
    FreeTextTaskKind,
    LabelledTaskKind,
    MultiReferenceTaskKind,
    Objective,
    TaskKind,
)

CAPABILITIES: dict[type[Any], set[str]] = {
    LabelledTaskKind: {"classification", "multilabel"},
    FreeTextTaskKind: {"generation", "preference"},
    DecodedTaskKind: {"classification", "multilabel", "extraction", "generation"},
    MultiReferenceTaskKind: {"extraction", "generation"},
}
CONSTANTS = tuple(name for name in get_type_hints(TaskKind) if name != "Spec")


def list_functions(protocol: type[Any]) -> list[str]:
    return [name for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")]


def describe_parameters(function: Any) -> list[tuple[str, Any]]:
    """Return (name, default) of each parameter, without self."""
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.default) for parameter in parameters if parameter.name != "self"]


def protocols_of(kind: str) -> list[type[Any]]:
    return [TaskKind, *(protocol for protocol, kinds in CAPABILITIES.items() if kind in kinds)]


def test_protocol_lists_all_members() -> None:
    assert len(list_functions(TaskKind)) == 17 and len(CONSTANTS) == 6
    assert {*TASKS} == {*METRICS}


@pytest.mark.parametrize("kind", TASKS)
def test_functions_exist_with_the_parameters_of_the_protocol(kind: str) -> None:
    module = TASKS[kind]
    for protocol in protocols_of(kind):
        for name in list_functions(protocol):
            function = getattr(module, name)
            assert describe_parameters(function) == describe_parameters(getattr(protocol, name)), f"{kind}.{name}"


@pytest.mark.parametrize("kind", TASKS)
def test_constants_have_the_types_of_the_protocol(kind: str) -> None:
    module = TASKS[kind]
    for name in CONSTANTS:
        allowed = get_args(Objective) if name == "OBJECTIVE" else None
        value = getattr(module, name)
        assert value in allowed if allowed else type(value) is get_type_hints(TaskKind)[name], f"{kind}.{name}"


@pytest.mark.parametrize("kind", TASKS)
def test_spec_is_a_frozen_dataclass_with_an_instruction(kind: str) -> None:
    spec = TASKS[kind].Spec
    assert is_dataclass(spec) and spec.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert fields(spec)[0].name == "instruction"


@pytest.mark.parametrize("protocol", CAPABILITIES)
def test_capability_holds_for_exactly_its_kinds(protocol: type[Any]) -> None:
    assert {kind for kind, module in TASKS.items() if isinstance(module, protocol)} == CAPABILITIES[protocol]


def test_flags_agree_with_capabilities() -> None:
    for kind, module in TASKS.items():
        assert (kind in CAPABILITIES[LabelledTaskKind]) == module.HAS_LABELS
        assert (kind in CAPABILITIES[FreeTextTaskKind]) == module.IS_FREE_TEXT
        assert module.HAS_LABELS or not module.IS_MULTILABEL
