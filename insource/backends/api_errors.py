"""Classification of API errors: caused by one row's input, or by how every row is requested.

400 "temperature: Extra inputs are not permitted"       configuration: not an answer of the model
401, 402, 403, 404, 422                                 configuration: key, account, model name
400 "prompt is too long: 210000 tokens > 200000"        input: the model cannot answer this row, a wrong answer
400 code content_filter                                 input: a refusal, a wrong answer

A reason that is not known to be an input error counts as a configuration error. It never counts against the model.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

CONFIGURATION_STATUS = (400, 401, 402, 403, 404, 405, 422)
# Error codes of OpenAI and Azure; error types of Anthropic.
_INPUT_ERROR_CODES = frozenset(
    ("context_length_exceeded", "string_above_max_length", "content_filter", "content_policy_violation",
     "invalid_prompt", "request_too_large")
)  # fmt: skip
_INPUT_ERROR_PATTERN = re.compile(
    r"context (length|window|limit)|prompt is too long|input is too long|too many (input )?tokens|string too long|"
    r"content (filter|management|policy)|usage polic|flagged",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ApiError:
    """The error object of a provider's error response."""

    message: str
    code: str = ""
    """The error's code, or its type if it has no code."""
    param: str = ""
    """The rejected parameter, if the error has a field for it."""

    @property
    def is_input_error(self) -> bool:
        """Whether the cause is the input of this row."""
        return self.code in _INPUT_ERROR_CODES or _INPUT_ERROR_PATTERN.search(self.message) is not None


def parse_api_error(body: object, default_message: str = "") -> ApiError:
    """Return the error in a response body: `{"error": {...}}` or the error object itself.

    Servers that validate with pydantic give `{"detail": [...]}`, Mistral `{"message": {"detail": [...]}}`; such
    details are the message, as JSON. `default_message` is the message if the body has none.
    """
    error: Any = body
    while isinstance(error, Mapping) and isinstance(error.get("error"), Mapping):
        error = error["error"]
    if not isinstance(error, Mapping):
        return ApiError(default_message or str(body))
    message = error.get("message") or error.get("detail") or error.get("error") or default_message or str(body)
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    return ApiError(text, str(error.get("code") or error.get("type") or ""), str(error.get("param") or ""))


def is_configuration_error(status: int, error: ApiError) -> bool:
    """Return whether a request was refused because of its configuration, not because of the row's input."""
    return status in CONFIGURATION_STATUS and not error.is_input_error


def find_rejected_parameter(error: str, optional: Mapping[str, Collection[str]]) -> str | None:
    """Return the optional parameter that an HTTP 400 or 422 error names first, None if it names none.

    `optional` maps each parameter to the names that a provider uses for it. 422 is what servers answer that validate
    bodies with pydantic, Mistral's among them.
    """
    if not error.startswith(("HTTP 400", "HTTP 422")):
        return None
    matches = [
        (match.start(), -len(name), parameter)
        for parameter, names in optional.items()
        for name in names
        if (match := re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", error))
    ]
    return min(matches)[2] if matches else None
