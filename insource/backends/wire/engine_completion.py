"""A chat completion of an engine in OpenAI's format, with only the fields that `openai_chat.parse_completion` reads.

The SDK's class fills every token of the log-probabilities by reflection, which takes 80 times as long.
"""

from typing import Any

import msgspec


class EngineToken(msgspec.Struct):
    """A token of the answer with its log-probability (natural logarithm)."""

    token: str
    logprob: float


class EngineLogprobs(msgspec.Struct):
    """The tokens of the answer."""

    content: list[EngineToken] | None = None


class EngineMessage(msgspec.Struct):
    """The answer."""

    content: str | None = None
    refusal: str | None = None


class EngineChoice(msgspec.Struct):
    """The answer, and why it ended."""

    message: EngineMessage
    finish_reason: str | None = None
    logprobs: EngineLogprobs | None = None


class EnginePromptDetails(msgspec.Struct):
    """Input tokens that the engine had computed before."""

    cached_tokens: int | None = None


class EngineCompletionDetails(msgspec.Struct):
    """Output tokens that are not part of the answer."""

    reasoning_tokens: int | None = None


class EngineUsage(msgspec.Struct):
    """Input and output tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: EnginePromptDetails | None = None
    completion_tokens_details: EngineCompletionDetails | None = None


class EngineCompletion(msgspec.Struct):
    """A chat completion."""

    choices: list[EngineChoice]
    model: str = ""
    usage: EngineUsage | None = None


def convert_completion(payload: Any) -> EngineCompletion:
    """Return the completion in a JSON payload. Raise ValueError if a field is missing or of another type."""
    try:
        return msgspec.convert(payload, EngineCompletion)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
