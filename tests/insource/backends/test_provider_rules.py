"""The rules by which the tests' provider refuses: up to date with the lock, and really refusing."""

import re
from typing import Any

import pytest
from packaging.version import Version

from insource.backends.wire import model_families
from tests.conftest import ROOT
from tests.helpers.provider import provider_rules
from tests.helpers.provider.provider_rules import RULES, find_refusal

SIGNED = {"Authorization": "Bearer secret", "anthropic-version": "2026-10-21"}
TALK = [{"role": "user", "content": "where is it?"}]
CHAT = {"model": "gpt-6-luna", "messages": TALK, "max_completion_tokens": 64}
CLAUDE = {"model": "claude-haiku-5-5", "messages": TALK, "max_tokens": 64}
CHOICE = {"type": "choice", "instructions": "Choose.", "choices": [{"value": "a"}, {"value": "b"}]}
MANY = [{"value": str(number)} for number in range(256)]
DECISION = {"model": "gpt-6-luna", "input": "x", "questions": [CHOICE]}
JEV = {
    "model": "jev-1.14.0",
    "state": "x",
    "questions": {"q": {"type": "choice", "instructions": "?", "criteria": {"a": None}}},
}
STRICT = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 3}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt"])
def test_the_rules_were_checked_with_the_sdks_of_the_lock(lock: str) -> None:
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements" / lock).read_text(encoding="utf-8"), re.M))
    for versions in (provider_rules.CHECKED_WITH, model_families.CHECKED_WITH):
        for package, version in versions.items():
            assert Version(pins[package]) <= Version(version), (
                f"{lock} has {package} {pins[package]}; insource/backends/wire/model_families.py and "
                "tests/helpers/provider/provider_rules.py were "
                f"checked with {version}: read its release notes, correct both, then raise CHECKED_WITH and CHECKED_ON"
            )


def test_every_rule_has_a_source_and_every_api_has_rules() -> None:
    assert all(rule.source and rule.requirement for rule in RULES)
    assert {rule.api for rule in RULES} == {"chat", "messages", "decisions", "systemone"}


@pytest.mark.parametrize(
    ("api", "body"), [("chat", CHAT), ("messages", CLAUDE), ("decisions", DECISION), ("systemone", JEV)]
)
def test_a_right_request_is_taken_and_one_without_a_key_is_not(api: str, body: dict[str, Any]) -> None:
    assert find_refusal(api, SIGNED, body) is None
    unsigned = find_refusal(api, {"anthropic-version": "2026-10-21"}, body)
    assert unsigned is not None and unsigned.status == 401


def schema_of(api: str, schema: Any) -> dict[str, Any]:
    if api == "messages":
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}}


@pytest.mark.parametrize(
    ("api", "body", "message"),
    [
        ("chat", CHAT | {"temperature": 0}, "'temperature' is not supported with this model"),
        ("chat", CHAT | {"logprobs": True}, "'logprobs' is not supported"),
        ("chat", CHAT | {"max_tokens": 9}, "Use 'max_completion_tokens'"),
        ("chat", CHAT | {"reasoning_effort": "minimal"}, "does not support 'minimal'"),
        ("chat", CHAT | {"structured_outputs": {}}, "Unknown parameter"),
        ("chat", CHAT | schema_of("chat", STRICT), "'maxLength' is not permitted"),
        ("chat", CHAT | schema_of("chat", {"type": "string"}), "must be a JSON Schema of 'type"),
        ("chat", CHAT | {"model": "unknown"}, "does not exist"),
        ("messages", CLAUDE | {"temperature": 1.0}, "temperature: Extra inputs are not permitted"),
        ("messages", CLAUDE | {"reasoning_effort": "low"}, "Extra inputs are not permitted"),
        ("messages", {**CLAUDE, "model": "claude-opus-5-5", "thinking": {"type": "disabled"}}, "not supported"),
        ("messages", CLAUDE | {"thinking": {"type": "enabled", "budget_tokens": 2000}}, "not supported"),
        ("messages", CLAUDE | {"output_config": {"effort": "minimal"}}, "Input should be"),
        ("messages", CLAUDE | schema_of("messages", STRICT), "not supported"),
        ("messages", CLAUDE | {"messages": [*TALK, {"role": "assistant", "content": "It"}]}, "prefill"),
        ("decisions", DECISION | {"model": "gpt-6-astra"}, "not supported by this endpoint"),
        ("decisions", DECISION | {"temperature": 0}, "Unknown parameter"),
        ("decisions", DECISION | {"questions": [CHOICE | {"choices": MANY}]}, "2 to 255"),
        ("systemone", JEV | {"temperature": 0}, "unknown field"),
    ],
)  # fmt: skip
def test_what_the_providers_refuse_is_refused(api: str, body: dict[str, Any], message: str) -> None:
    refusal = find_refusal(api, SIGNED, body)
    assert refusal is not None and refusal.status in (400, 404, 422) and message in refusal.message


def test_sampling_is_taken_where_it_still_is() -> None:
    assert find_refusal("chat", SIGNED, CHAT | {"temperature": 0, "reasoning_effort": "none"}) is None
    assert find_refusal("chat", SIGNED, CHAT | {"model": "gpt-4o", "temperature": 0}) is None
    old_headers = {**SIGNED, "anthropic-version": "2023-06-01"}
    assert find_refusal("messages", old_headers, CLAUDE | {"model": "claude-haiku-4-5", "temperature": 0}) is None
    assert find_refusal("messages", old_headers, CLAUDE | {"temperature": 0}) is not None
