"""An API model of a recipe as an endpoint, and requests to it for the rows of a task.

    endpoint = build_endpoint(baseline, schema, "compare.baselines: openai:gpt-6-luna")
    make_chat_request("T000017", messages, baseline, schema, max_answer_tokens=6)    Request(..., max_tokens=8448)
    make_choice_request("T000017", "my parcel is late", spec)                        Request(..., choices=...)

Comparisons, the gateway and the teacher of data preparation build their requests here, so that equal settings give
equal request bodies.
"""

import os
from collections.abc import Mapping
from typing import Any

from insource.backends.types import DUMMY_API_KEY, ApiFormat, Backend, ChoiceQuestion, Constraint, Messages, Request
from insource.backends.wire import model_families
from insource.backends.wire.model_families import UNKNOWN, Family
from insource.config.errors import RecipeError
from insource.config.providers import PROVIDERS
from insource.config.schema.compare import Baseline

# Limits for answers of API models, whose tokenizers differ from the base's.
OUTPUT_TOKEN_FACTOR, MIN_OUTPUT_TOKENS = 4, 256


def lookup_api_format(baseline: Baseline) -> ApiFormat:
    """Return the API format of a baseline."""
    return PROVIDERS[baseline.provider].api_format if baseline.api == "chat" else baseline.api


def thinking_tokens(baseline: Baseline) -> int:
    """Return the output tokens reserved for an API model's reasoning, in addition to those for its answer.

    An unknown local model gets none: its context may be too short.
    """
    family = model_families.find_family(lookup_api_format(baseline), baseline.model or "")
    if family is model_families.UNKNOWN and baseline.is_loopback and baseline.effort is None:
        return 0
    return family.thinking_tokens(baseline.effort)


def make_chat_request(
    row_id: str, messages: Messages, baseline: Baseline, schema: Mapping[str, Any] | None, max_answer_tokens: int
) -> Request:
    """Return the request for a row with these messages.

    `schema` is the output schema of the task, and `max_answer_tokens` the limit of an answer in tokens of the base.
    """
    reserved_tokens = 0 if baseline.max_output_tokens else thinking_tokens(baseline)
    answer_tokens = max(MIN_OUTPUT_TOKENS, OUTPUT_TOKEN_FACTOR * max_answer_tokens)
    max_tokens = baseline.max_output_tokens or answer_tokens + reserved_tokens
    return Request(row_id, messages, max_tokens, Constraint(None, schema), reserved_tokens)


def make_choice_request(row_id: str, text: str, instruction: str, labels: Mapping[str, str]) -> Request:
    """Return the request for a row as a question with the labels as choices.

    `labels` is {label: description or ""}. No text is generated, so that no output tokens are reserved.
    """
    return Request(row_id, (), 0, choices=ChoiceQuestion(instruction, tuple(labels.items()), text))


def build_endpoint(
    baseline: Baseline, schema: Mapping[str, Any] | None, location: str, omitted_parameters: tuple[str, ...] = ()
) -> Backend:
    """Return the endpoint of a baseline, without the parameters that its provider rejected.

    `location` names the baseline in messages. Raise RecipeError if its model family does not take the settings of the
    recipe.
    """
    provider = PROVIDERS[baseline.provider]
    api_format = lookup_api_format(baseline)
    family = model_families.find_family(api_format, baseline.model or "")
    _check_model_family(baseline, family, location)
    return Backend(
        api_format=api_format,
        model=baseline.model or "",
        base_url=baseline.base_url or provider.default_base_url,
        api_key=(os.environ.get(baseline.key_env) if baseline.key_env else None) or DUMMY_API_KEY,
        cloud=provider.cloud,
        structured="json_schema" if baseline.structured_output and schema and family.supports_json_schema else "none",
        log_probabilities=family.supports_log_probabilities(baseline.effort),
        temperature=baseline.temperature,
        effort=baseline.effort,
        is_provider_api=True,
        omitted_parameters=omitted_parameters,
        timeout_seconds=baseline.timeout_seconds,
        retries=baseline.retries,
        concurrency=baseline.concurrency,
    )


def _check_model_family(baseline: Baseline, family: Family, location: str) -> None:
    if baseline.effort is not None and family is not UNKNOWN and baseline.effort not in family.efforts:
        allowed = f"{family.name} supports {', '.join(family.efforts) or 'no effort'}"
        raise RecipeError(f"{location}: effort: given {baseline.effort}, {allowed} ({family.source})", code="INS-A004")
    if baseline.temperature is not None and not family.supports_temperature(baseline.effort):
        condition = ' unless effort is "none"' if family.sampling == "without_reasoning" else ""
        raise RecipeError(
            f"{location}: temperature: given {baseline.temperature:g}, but {family.name} supports none{condition} "
            f"({family.source}); leave it out",
            code="INS-A004",
        )
    if baseline.mode == "batch" and not family.supports_batch:
        raise RecipeError(
            f"{location}: mode: given batch, but it is not known that {baseline.model} is served in batches "
            "(insource/backends/wire/model_families.py does not list it); set mode: live",
            code="INS-A004",
        )
