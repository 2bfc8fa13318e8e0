"""Requests that the providers of late 2026 refuse: one table of rules with sources, for the test provider.

    find_refusal("chat", headers, {"model": "gpt-6-luna", "temperature": 0, ...})
    Refusal(400, "Unsupported parameter: 'temperature' is not supported with this model.", param="temperature")

Written from documentation, the SDKs' types and public reports, independently of
`insource/backends/wire/model_families.py`, so that tests detect a mistake there. `CHECKED_WITH` has the versions that
the table was checked against: tests/insource/backends/test_provider_rules.py fails if the lock is newer. No rule was
tested against a real provider.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.helpers.provider import provider_checks as checks
from tests.helpers.provider.provider_checks import Headers, Json, Refusal

CHECKED_ON = "2026-11-29"
CHECKED_WITH = {"openai": "3.54.0", "anthropic": "2.12.0", "genai-prices": "0.2.3"}


@dataclass(frozen=True)
class Rule:
    """A requirement of an API, and the check that refuses requests without it."""

    api: str
    """chat, messages, decisions, systemone."""
    requirement: str
    source: str
    check: Callable[[Headers, Json], Refusal | None]


def find_refusal(api: str, headers: Headers, body: Json) -> Refusal | None:
    """Return the refusal by the first rule that a request breaks, None if it breaks none."""
    lowercase_headers = {name.lower(): value for name, value in headers.items()}
    return next(
        (refusal for rule in RULES if rule.api == api and (refusal := rule.check(lowercase_headers, body))), None
    )


OPENAI_REFERENCE = "openai SDK 3.54 types; developers.openai.com/api/docs: deployment checklist, structured outputs"
CLAUDE_REFERENCE = "anthropic SDK 2.12 types; platform.claude.com/docs: version 2026-10-21, model pages, thinking"
DECISIONS_REFERENCE = "openai SDK 3.54 types/decision_create_params.py; developers.openai.com/api/docs/guides/decisions"
SYSTEMONE_REFERENCE = "docs.ollama.com/api/systemone, abacus.ai/help/route-llm/systemone, docs.fireworks.ai"
RULES = (
    Rule("chat", "a key is needed", OPENAI_REFERENCE, checks.check_bearer),
    Rule("chat", "the model must exist", OPENAI_REFERENCE, checks.check_model),
    Rule("chat", "no field that the API does not have", OPENAI_REFERENCE, checks.check_chat_fields),
    Rule("chat", "messages with roles and content", OPENAI_REFERENCE, checks.check_chat_messages),
    Rule(
        "chat", "reasoning: no sampling or logprobs unless effort is none", OPENAI_REFERENCE, checks.check_chat_sampling
    ),
    Rule("chat", "efforts by model", OPENAI_REFERENCE, checks.check_chat_effort),
    Rule("chat", "reasoning models: max_completion_tokens, at most 128,000", OPENAI_REFERENCE, checks.check_chat_limit),
    Rule("chat", "strict schemas: keywords, all required, no other keys", OPENAI_REFERENCE, checks.check_chat_schema),
    Rule("messages", "a key is needed", CLAUDE_REFERENCE, checks.check_messages_key),
    Rule("messages", "a version is needed", CLAUDE_REFERENCE, checks.check_messages_version),
    Rule("messages", "the model must exist", CLAUDE_REFERENCE, checks.check_model),
    Rule("messages", "no field that the API does not have", CLAUDE_REFERENCE, checks.check_messages_fields),
    Rule("messages", "no sampling under 2026-10-21, nor from 4.7 on", CLAUDE_REFERENCE, checks.check_messages_sampling),
    Rule("messages", "turns of user and assistant, no prefill", CLAUDE_REFERENCE, checks.check_messages_turns),
    Rule("messages", "max_tokens is needed", CLAUDE_REFERENCE, checks.check_messages_limit),
    Rule("messages", "thinking and effort by model", CLAUDE_REFERENCE, checks.check_messages_thinking),
    Rule("messages", "schemas as the SDK's own helper leaves them", CLAUDE_REFERENCE, checks.check_messages_schema),
    Rule("decisions", "a key is needed", DECISIONS_REFERENCE, checks.check_bearer),
    Rule("decisions", "its fields, and gpt-6-luna alone", DECISIONS_REFERENCE, checks.check_decision_fields),
    Rule(
        "decisions", "1 to 400 questions, 2 to 255 unique choices", DECISIONS_REFERENCE, checks.check_decision_questions
    ),
    Rule("systemone", "a key is needed", SYSTEMONE_REFERENCE, checks.check_bearer),
    Rule(
        "systemone", "model, state and questions alone; 1 to 255 options", SYSTEMONE_REFERENCE, checks.check_systemone
    ),
)


# Batches


def find_openai_batch_refusal(body: Json, lines: list[Json], size: int) -> Refusal | None:
    """Return the refusal of a batch by OpenAI: endpoint, window, metadata, size, ids, one model.

    Source: batch guide; openai SDK 3.54 types/batch_create_params.py.
    """
    endpoints = ("/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/moderations")
    if body["endpoint"] not in endpoints or body["completion_window"] != "24h":
        return Refusal(400, "Invalid 'endpoint' or 'completion_window'", "endpoint")
    metadata = body.get("metadata") or {}
    if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        return Refusal(400, "Invalid 'metadata'", "metadata")
    if len(lines) > 50_000 or size > 200 * 2**20:
        return Refusal(400, "The file is too large", "input_file_id")
    if any(line["method"] != "POST" or line["url"] != body["endpoint"] for line in lines):
        return Refusal(400, "Each line needs method POST and the batch's endpoint as url", "input_file_id")
    if len({line["custom_id"] for line in lines}) < len(lines):
        return Refusal(400, "The custom_id of each line must be unique", "input_file_id")
    if len({line["body"]["model"] for line in lines}) > 1:
        return Refusal(400, "All lines must name one model", "input_file_id")
    return None


def find_anthropic_batch_refusal(entries: list[Json]) -> Refusal | None:
    """Return the refusal of a batch by Anthropic: number, size, format of the ids (batch processing guide)."""
    ids = [entry["custom_id"] for entry in entries]
    if len(ids) > 100_000 or len(json.dumps(entries)) > 256 * 2**20:
        return Refusal(413, "The batch is too large")
    if len(set(ids)) < len(ids) or not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", custom_id) for custom_id in ids):
        return Refusal(400, "custom_id: must be unique, of 1 to 64 letters, digits, - and _")
    return None
