"""Conformance of every task module to the TaskKind protocols: members, constants and parameter names."""

import inspect
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from insource.config.metric_names import FIRST_METRICS, METRICS, ROW_METRICS, select_metrics
from insource.config.schema.data import Task
from insource.stats import metric_stats
from insource.tasks import TASKS
from insource.tasks.parsed_answer import ParsedAnswer
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
PAIR = {"chosen": "a", "rejected": "b"}
REWARDED = {"chosen": -1.0, "rejected": -2.0, "reference_chosen": -3.0, "reference_rejected": -1.0} | dict.fromkeys(
    ("chosen_tokens", "rejected_tokens"), 1
)
SEEN: dict[str, tuple[Any, Any]] = {
    "classification": ("late", "late"),
    "multilabel": (["late"], ["late"]),
    "extraction": ({"seller": "Ho"}, {"seller": "Ho"}),
    "generation": ("The hub is silent.", "The hub is silent."),
    "preference": (PAIR, REWARDED),
}
"""{kind: (target, value of a right answer)}."""
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
    assert len(list_functions(TaskKind)) == 16 and len(CONSTANTS) == 7
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
        assert kind == module.NAME
        assert (kind in CAPABILITIES[LabelledTaskKind]) == module.HAS_LABELS
        assert (kind in CAPABILITIES[FreeTextTaskKind]) == module.IS_FREE_TEXT
        assert module.HAS_LABELS or not module.IS_MULTILABEL


@pytest.mark.parametrize("kind", TASKS)
def test_a_kind_computes_the_metrics_that_are_declared_for_it(kind: str) -> None:
    schema = {"type": "object", "properties": {"seller": {"type": "string", "maxLength": 12}}}
    task = Task(
        kind="classification" if kind == "multilabel" else kind,
        instruction="Read the document.",
        json_schema=schema if kind == "extraction" else None,
        labels_per_row="many" if kind == "multilabel" else "one",
    )
    module, (target, value) = TASKS[kind], SEEN[kind]
    arguments = module.make_spec(task, {"late": "", "lost": ""}), [target], [ParsedAnswer(value)]
    stats, score = module.compute_metric_stats(*arguments), module.score(*arguments)
    assert list(stats) == list(METRICS[kind])
    assert select_metrics(kind, score) == dict.fromkeys(METRICS[kind], 1.0)
    for name, metric in METRICS[kind].items():
        assert score[name] == stats[name].compute_value()
        assert (stats[name].from_sums is metric_stats.mean) is metric.is_row_mean, name
    assert FIRST_METRICS[kind] == next(iter(stats)) and METRICS[kind][ROW_METRICS[kind]].is_row_mean


@pytest.mark.parametrize("kind", METRICS)
def test_a_score_of_a_run_before_a_metric_was_added_is_shown_without_it(kind: str) -> None:
    *older, newest = METRICS[kind]
    assert select_metrics(kind, dict.fromkeys(older, 0.5)) == dict.fromkeys(older, 0.5)
    assert newest not in select_metrics(kind, {})
