"""What is sent to a closed model: what its family takes, by one table, and nothing that it refuses."""

from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.lib._parse._transform import transform_schema
from hypothesis import given
from hypothesis import strategies as st

from compare.systems import api_models
from insource.backends import api_requests
from insource.backends.types import Constraint, Request
from insource.backends.wire import anthropic_messages, json_schema, model_families, openai_chat
from insource.backends.wire.model_families import ANTHROPIC_KEYWORDS, FAMILIES, OPENAI_KEYWORDS, UNKNOWN
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, load
from insource.config.schema.compare import Baseline
from insource.tracking.prompt_spec import PromptSpec
from tests.helpers.errors import raises_error
from tests.helpers.provider.provider_rules import find_refusal

RECORD = {
    "type": "object",
    "properties": {
        "total": {"type": ["string", "null"], "maxLength": 16, "description": "with tax"},
        "kind": {"type": ["string", "null"], "enum": ["order", None]},
        "codes": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 3}},
    },
    "required": ["total", "kind", "codes"],
    "additionalProperties": False,
}
BODY = {"openai": openai_chat.build_body, "anthropic": anthropic_messages.build_body}


def sent(baseline: Baseline, schema: Any = RECORD, max_tokens: int = 64) -> dict[str, Any]:
    dataset = SimpleNamespace(prompt=PromptSpec(output_schema=schema, max_answer_tokens=16))
    backend = api_models.build_endpoint(baseline, dataset)  # type: ignore[arg-type]
    request = Request("T1", [{"role": "user", "content": "x"}], max_tokens, Constraint(None, schema))
    return BODY[backend.api_format](backend, request)


def test_a_fine_tune_takes_what_its_base_takes() -> None:
    for name, base in (("gpt-4o-mini-2024-07-18", "gpt-4"), ("o4-mini-2025-04-16", "o series")):
        assert model_families.find_family("openai", f"ft:{name}:acme:tickets:Bx1").name == base
    assert model_families.find_family("openai", "ft:some-model:acme::x") is UNKNOWN
    assert "temperature" in sent(Baseline(provider="openai", model="ft:gpt-4.1-2025-04-14:acme::x", temperature=0))


def test_every_row_of_the_table_has_a_source_and_a_date() -> None:
    for family in (UNKNOWN, *(row for rows in FAMILIES.values() for row in rows)):
        assert family.source and date.fromisoformat(family.checked), family.name
        assert family.default_effort is None or family.default_effort in family.efforts or not family.efforts


def test_every_baseline_of_the_recipes_is_of_a_known_family_and_gets_no_sampling_parameter() -> None:
    n_baselines = 0
    for path in RECIPES.glob("*.yaml"):
        for baseline in load(path.stem, (), "gpu").recipe.compare.baselines:
            if baseline.uses_decision_api:
                continue
            body = sent(baseline)
            assert (
                model_families.find_family(api_requests.lookup_api_format(baseline), baseline.model or "")
                is not UNKNOWN
            )
            assert not body.keys() & {"temperature", "top_p", "top_k", "logprobs"}
            n_baselines += 1
    assert n_baselines >= 8


@pytest.mark.parametrize(
    ("model", "effort", "thinking_tokens"),
    [
        ("gpt-6-luna", None, 8192), ("gpt-6-luna", "none", 0), ("gpt-6-luna", "low", 4096), ("gpt-5.1", None, 0),
        ("gpt-4o", None, 0), ("claude-haiku-5-5", None, 8192), ("us.anthropic.claude-sonnet-5-5", None, 16384),
        ("claude-haiku-4-5", None, 0), ("some-model-of-2027", None, 8192), ("some-model-of-2027", "none", 0),
    ],
)  # fmt: skip
def test_the_output_limit_leaves_room_to_think_where_a_model_thinks(
    model: str, effort: Any, thinking_tokens: int
) -> None:
    provider: Any = "anthropic" if "claude" in model else "openai"
    assert api_requests.thinking_tokens(Baseline(provider=provider, model=model, effort=effort)) == thinking_tokens


def test_an_unknown_model_on_this_machine_gets_no_room_that_its_context_may_lack() -> None:
    local_baseline = Baseline(provider="openai", model="our-own", base_url="http://127.0.0.1:8000/v1")
    assert api_requests.thinking_tokens(local_baseline) == 0
    assert api_requests.thinking_tokens(local_baseline.model_copy(update={"effort": "low"})) == 4096


def test_effort_goes_where_each_wire_has_it() -> None:
    assert sent(Baseline(provider="openai", model="gpt-6-luna", effort="low"))["reasoning_effort"] == "low"
    body = sent(Baseline(provider="anthropic", model="claude-haiku-5-5", effort="low"))
    assert body["output_config"]["effort"] == "low" and "thinking" not in body
    body = sent(Baseline(provider="anthropic", model="claude-haiku-5-5", effort="none"))
    assert body["thinking"] == {"type": "disabled"} and "effort" not in body["output_config"]


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"provider": "openai", "model": "gpt-6-luna", "effort": "minimal"}, "given minimal, .* supports none, low"),
        (
            {"provider": "anthropic", "model": "claude-opus-5-5", "effort": "none"},
            "given none, .* supports low, medium",
        ),
        ({"provider": "openai", "model": "gpt-4o", "effort": "low"}, "supports no effort"),
        ({"provider": "openai", "model": "gpt-6-luna", "temperature": 0}, 'supports none unless effort is "none"'),
        ({"provider": "anthropic", "model": "claude-haiku-5-5", "temperature": 1}, "supports none .*; leave it out"),
    ],
)
def test_what_a_family_does_not_take_is_refused_in_words(baseline: dict[str, Any], message: str) -> None:
    with raises_error(RecipeError, "INS-A004", match=message):
        sent(Baseline(**baseline))


@pytest.mark.parametrize(
    ("model", "effort", "available"),
    [("gpt-4o", None, True), ("gpt-5.1", None, True), ("gpt-6-luna", "none", True), ("gpt-6-luna", None, False),
     ("gpt-5", None, False), ("model-of-2028", None, False)],
)  # fmt: skip
def test_log_probabilities_are_asked_for_where_the_family_tells_them(model: str, effort: Any, available: bool) -> None:
    body = sent(Baseline(provider="openai", model=model, effort=effort))
    assert ("logprobs" in body) is available
    assert find_refusal("chat", {"Authorization": "Bearer x"}, body) is None, "the provider's own rules agree"


def test_a_model_that_is_not_known_is_not_asked_in_batches() -> None:
    sent(Baseline(provider="openai", model="gpt-6-luna", mode="batch"))
    with raises_error(
        RecipeError, "INS-A004", match=r"not known that model-of-2028 is served in batches .*; set mode: live"
    ):
        sent(Baseline(provider="openai", model="model-of-2028", mode="batch"))


def test_endpoints_that_decide_are_in_the_table_and_get_no_schema() -> None:
    for api in ("decisions", "systemone"):
        family = model_families.find_family(api, "any")  # type: ignore[arg-type]
        assert family.label_limits == (2, 255) and not family.supports_json_schema and not family.supports_batch
    baseline = Baseline(provider="openai", model="gpt-6-luna", api="decisions")
    dataset = SimpleNamespace(prompt=PromptSpec(output_schema=RECORD, max_answer_tokens=16))
    assert api_models.build_endpoint(baseline, dataset).structured == "none"  # type: ignore[arg-type]


def test_a_temperature_that_the_recipe_sets_is_sent_where_it_may_be() -> None:
    assert sent(Baseline(provider="openai", model="gpt-6-luna", effort="none", temperature=0))["temperature"] == 0
    assert sent(Baseline(provider="openai", model="mistral-large", temperature=0.3))["temperature"] == 0.3


scalars = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", "number", ["string", "null"]])},
    optional={"maxLength": st.integers(1, 99), "description": st.text(min_size=1, max_size=9), "minimum": st.just(3)},
)
fields = st.one_of(
    scalars,
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", "b", None]), min_size=1, unique=True)},
                          optional={"type": st.just(["string", "null"])}),
    st.fixed_dictionaries({"type": st.just("array"), "items": scalars, "maxItems": st.integers(1, 9)}),
)  # fmt: skip


@given(st.dictionaries(st.text("abc", min_size=1), fields, min_size=1))
def test_a_schema_sent_to_anthropic_is_one_that_its_own_helper_leaves_as_it_is(properties: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    restricted = json_schema.restrict_keywords(schema, ANTHROPIC_KEYWORDS, one_type=True)
    assert transform_schema(restricted) == restricted
    assert json_schema.restrict_keywords(schema, None) == schema


def test_keywords_that_are_not_taken_become_words() -> None:
    restricted = json_schema.restrict_keywords(RECORD, OPENAI_KEYWORDS)["properties"]
    assert restricted["total"] == {"type": ["string", "null"], "description": "with tax (at most 16 characters)"}
    assert (
        restricted["codes"]["maxItems"] == 5 and restricted["codes"]["items"]["description"] == "at most 3 characters"
    )
    restricted = json_schema.restrict_keywords(RECORD, ANTHROPIC_KEYWORDS, one_type=True)["properties"]
    assert restricted["codes"]["description"] == "at most 5 entries" and restricted["kind"] == {"enum": ["order", None]}
