"""The checks in the table of provider_rules.py: each returns the refusal of a request, None if it follows the rule."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

Json = dict[str, Any]
Headers = Mapping[str, str]


@dataclass(frozen=True)
class Refusal:
    """An error response of a provider."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    def body(self, api: str) -> Json:
        """Return the error body in the format of an API."""
        kind = {401: "authentication_error", 404: "not_found_error"}.get(self.status, "invalid_request_error")
        if api == "messages":
            return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": "r"}
        if self.status == 422:
            # As a server that validates with pydantic: Mistral puts the details into its message.
            details = [{"type": "extra_forbidden", "loc": ["body", self.param], "msg": self.message, "input": 64}]
            return {"object": "error", "message": {"detail": details}, "type": kind, "param": None, "code": None}
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


# Shared by several rules


@cache
def _request_fields(api: str) -> frozenset[str]:
    """Return the fields of a request in the SDK's types."""
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
    from openai.types.decision_create_params import DecisionCreateParams

    types: dict[str, Any] = {
        "chat": CompletionCreateParamsNonStreaming,
        "messages": MessageCreateParamsNonStreaming,
        "decisions": DecisionCreateParams,
    }
    return frozenset(get_type_hints(types[api]))


REASONING_MODEL = re.compile(r"^(gpt-[56]|o[134])(?!.*-chat)")
EFFORT_RULES = (
    (re.compile(r"^gpt-(6|5\.[2-6])"), ("none", "low", "medium", "high", "xhigh", "max"), "medium"),
    (re.compile(r"^gpt-5\.1"), ("none", "low", "medium", "high"), "none"),
    (re.compile(r"^gpt-5"), ("minimal", "low", "medium", "high"), "medium"),
    (re.compile(r"^o[134]"), ("low", "medium", "high"), "medium"),
)
CLAUDE_5 = re.compile(r"claude-(haiku|sonnet|opus|fable|mythos)-5|claude-opus-4-[78]|claude-mythos-preview")
CLAUDE_ALWAYS_THINKS = re.compile(r"claude-(opus-5-5|fable|mythos|opus-4-7)")
OPENAI_KEYWORDS = {
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs",
    "description", "title", "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minItems", "maxItems",
}  # fmt: skip


def _allowed_efforts(body: Json) -> tuple[tuple[str, ...], str | None]:
    """Return the efforts that a model accepts, and the effort of this request."""
    for pattern, allowed, default in EFFORT_RULES:
        if pattern.search(str(body.get("model"))):
            return allowed, body.get("reasoning_effort") or default
    return (), None


def check_bearer(headers: Headers, body: Json) -> Refusal | None:
    key = headers.get("authorization", "").removeprefix("Bearer ").strip()
    return None if key or headers.get("api-key") else Refusal(401, "You didn't provide an API key.")


def check_model(headers: Headers, body: Json) -> Refusal | None:
    if body.get("model") == "unknown":
        return Refusal(404, "The model `unknown` does not exist or you do not have access to it.", "model")
    return None


# Chat completions


def check_chat_fields(headers: Headers, body: Json) -> Refusal | None:
    extra = sorted(body.keys() - _request_fields("chat"))
    return Refusal(400, f"Unknown parameter: '{extra[0]}'.", extra[0], "unknown_parameter") if extra else None


def check_chat_messages(headers: Headers, body: Json) -> Refusal | None:
    messages = body.get("messages")
    roles = ("system", "developer", "user", "assistant", "tool")
    if not messages or any(message.get("role") not in roles or not message.get("content") for message in messages):
        return Refusal(400, "Invalid 'messages': each needs a role and content.", "messages")
    return None


def check_chat_sampling(headers: Headers, body: Json) -> Refusal | None:
    if not REASONING_MODEL.search(str(body.get("model"))) or _allowed_efforts(body)[1] == "none":
        return None
    for name in ("temperature", "top_p", "logprobs", "top_logprobs"):
        if name in body:
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            return Refusal(400, message, name, "unsupported_parameter")
    return None


def check_chat_effort(headers: Headers, body: Json) -> Refusal | None:
    if (effort := body.get("reasoning_effort")) is None:
        return None
    allowed = _allowed_efforts(body)[0]
    if not allowed:
        return Refusal(400, "Unrecognized request argument supplied: reasoning_effort", "reasoning_effort")
    if effort in allowed:
        return None
    message = (
        f"Unsupported value: 'reasoning_effort' does not support '{effort}' with this model. Supported values are: "
    )
    return Refusal(400, message + ", ".join(allowed), "reasoning_effort", "unsupported_value")


def check_chat_limit(headers: Headers, body: Json) -> Refusal | None:
    if "max_tokens" in body and REASONING_MODEL.search(str(body.get("model"))):
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        return Refusal(400, message, "max_tokens", "unsupported_parameter")
    if not 1 <= body.get("max_completion_tokens", 1) <= 128_000:
        return Refusal(400, "max_completion_tokens is too large or too small", "max_completion_tokens")
    return None


def check_chat_schema(headers: Headers, body: Json) -> Refusal | None:
    response_format = body.get("response_format")
    if response_format is None:
        return None
    json_schema = response_format.get("json_schema", {})
    if response_format.get("type") != "json_schema" or not re.fullmatch(r"[\w-]{1,64}", json_schema.get("name", "")):
        return Refusal(400, "Invalid 'response_format'", "response_format")
    if problem := _strict_schema_problem(json_schema["schema"], top=True):
        return Refusal(400, f"Invalid schema for response_format '{json_schema['name']}': {problem}", "response_format")
    return None


def _strict_schema_problem(schema: Json, top: bool = False, depth: int = 1) -> str | None:
    """Return the first part of a schema that OpenAI's strict mode refuses, None if it accepts the schema."""
    if top and schema.get("type") != "object":
        return "schema must be a JSON Schema of 'type: \"object\"'"
    if extra := sorted(schema.keys() - OPENAI_KEYWORDS):
        return f"'{extra[0]}' is not permitted."
    if depth > 10:
        return "more than 10 levels of nesting"
    if "type" not in schema and "anyOf" not in schema and "$ref" not in schema:
        return "schema must have a 'type' key."
    if len(schema.get("enum", ())) > 1000:
        return "enum has more than 1000 values"
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False:
            return "'additionalProperties' is required to be supplied and to be false."
        if set(schema.get("required", ())) != set(properties):
            return "'required' is required to be supplied and to be an array including every key in properties."
        for subschema in properties.values():
            if problem := _strict_schema_problem(subschema, depth=depth + 1):
                return problem
    for subschema in [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]:
        if problem := _strict_schema_problem(subschema, depth=depth + 1):
            return problem
    return None


# Messages


def check_messages_key(headers: Headers, body: Json) -> Refusal | None:
    bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
    return None if bearer or headers.get("x-api-key") else Refusal(401, "invalid x-api-key")


def check_messages_version(headers: Headers, body: Json) -> Refusal | None:
    version = headers.get("anthropic-version") or body.get("anthropic_version")
    if version in ("2023-06-01", "2026-10-21") or str(version).startswith(("bedrock-", "vertex-")):
        return None
    return Refusal(400, f"anthropic-version: {version!r} is not a valid version")


def check_messages_fields(headers: Headers, body: Json) -> Refusal | None:
    extra = sorted(body.keys() - _request_fields("messages") - {"anthropic_version", "temperature", "top_p", "top_k"})
    return Refusal(400, f"{extra[0]}: Extra inputs are not permitted") if extra else None


def check_messages_sampling(headers: Headers, body: Json) -> Refusal | None:
    unsupported = [name for name in ("temperature", "top_p", "top_k") if name in body]
    if unsupported and headers.get("anthropic-version") == "2026-10-21":
        return Refusal(400, f"{unsupported[0]}: Extra inputs are not permitted")
    if unsupported and CLAUDE_5.search(str(body.get("model"))):
        return Refusal(400, f"`{unsupported[0]}` is not supported for this model.")
    return None


def check_messages_turns(headers: Headers, body: Json) -> Refusal | None:
    messages = body.get("messages") or [{}]
    if any(message.get("role") not in ("user", "assistant") or not message.get("content") for message in messages):
        return Refusal(400, "messages: each needs a role of user or assistant, and content")
    if messages[-1]["role"] == "assistant" and CLAUDE_5.search(str(body.get("model"))):
        return Refusal(400, "This model does not support assistant message prefill.")
    return None


def check_messages_limit(headers: Headers, body: Json) -> Refusal | None:
    if "max_tokens" not in body:
        return Refusal(400, "max_tokens: Field required")
    return None if 0 <= body["max_tokens"] <= 128_000 else Refusal(400, f"max_tokens: {body['max_tokens']} > 128000")


def check_messages_thinking(headers: Headers, body: Json) -> Refusal | None:
    thinking, model = body.get("thinking", {}), str(body.get("model"))
    kind = thinking.get("type")
    effort = body.get("output_config", {}).get("effort")
    if kind == "enabled" and CLAUDE_5.search(model):
        return Refusal(400, '"thinking.type.enabled" is not supported for this model.')
    if kind == "disabled" and CLAUDE_ALWAYS_THINKS.search(model):
        return Refusal(400, '"thinking.type.disabled" is not supported for this model.')
    if kind == "disabled" and effort in ("xhigh", "max"):
        return Refusal(400, f"output_config.effort: {effort} needs thinking")
    if effort is not None and effort not in ("low", "medium", "high", "xhigh", "max"):
        return Refusal(
            400, f"output_config.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max', {effort}"
        )
    return None


def check_messages_schema(headers: Headers, body: Json) -> Refusal | None:
    from anthropic.lib._parse._transform import transform_schema

    output_format = body.get("output_config", {}).get("format")
    if output_format is None:
        return None
    try:
        transformed = transform_schema(output_format["schema"])
    except (ValueError, AssertionError) as error:
        return Refusal(400, f"output_config.format.schema: {error}")
    if output_format.get("type") != "json_schema" or transformed != output_format["schema"]:
        return Refusal(400, "output_config.format.schema: holds keywords that are not supported")
    return None


# Decisions and System One


def check_decision_fields(headers: Headers, body: Json) -> Refusal | None:
    if extra := sorted(body.keys() - _request_fields("decisions")):
        return Refusal(400, f"Unknown parameter: '{extra[0]}'.", extra[0], "unknown_parameter")
    if body.get("model") != "gpt-6-luna":
        return Refusal(400, f"The model `{body.get('model')}` is not supported by this endpoint.", "model")
    return None if isinstance(body.get("input"), str | list) else Refusal(400, "'input' is required", "input")


def check_decision_questions(headers: Headers, body: Json) -> Refusal | None:
    questions = body.get("questions", [])
    if not 1 <= len(questions) <= 400:
        return Refusal(400, f"Invalid 'questions': 1 to 400 are taken, given {len(questions)}", "questions")
    for question in questions:
        if question.get("type") not in ("predicate", "choice", "score") or not question.get("instructions"):
            return Refusal(400, "Invalid 'questions': each needs a type and instructions", "questions")
        values = [choice.get("value") for choice in question.get("choices", [])]
        if question["type"] == "choice" and (not 2 <= len(values) <= 255 or len(set(values)) < len(values)):
            return Refusal(400, f"Invalid 'choices': 2 to 255 unique ones are taken, given {len(values)}", "questions")
        if any(
            not isinstance(description := choice.get("description", ""), str) for choice in question.get("choices", [])
        ):
            return Refusal(400, f"Invalid 'description': {description!r}", "questions")
    return None


def check_systemone(headers: Headers, body: Json) -> Refusal | None:
    if extra := sorted(body.keys() - {"model", "state", "questions"}):
        return Refusal(422, f"{extra[0]}: unknown field")
    if not body.get("model") or not isinstance(body.get("questions"), dict) or not body["questions"]:
        return Refusal(422, "model and questions are required")
    for name, question in body["questions"].items():
        if question.get("type") not in ("noul", "choice", "score") or not question.get("instructions"):
            return Refusal(422, f"questions.{name}: type and instructions are required")
        if question["type"] == "choice" and not 1 <= len(question.get("criteria", {})) <= 255:
            return Refusal(422, f"questions.{name}.criteria: 1 to 255 options are taken")
    return None
