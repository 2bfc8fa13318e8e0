"""What a refusal is about: the row, or how every row is asked.

400 "temperature: Extra inputs are not permitted"       how it is asked: says nothing of the model
401, 402, 403, 404, 422                                 how it is asked: key, account, name of the model
400 "prompt is too long: 210000 tokens > 200000"        the row: the model cannot answer it, which is a wrong answer
400 code content_filter                                 the row: a refusal, which is a wrong answer

A reason that is not known to be about the row counts as the other: nobody is judged by it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

CONFIGURATION_STATUS = (400, 401, 402, 403, 404, 405, 422)
# Codes of OpenAI and Azure, types of Anthropic.
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
    """What a provider answers where it does not answer."""

    message: str
    code: str = ""
    """The error's code, or its type where it has none."""
    param: str = ""
    """The parameter that it names, where it names one in a field of its own."""

    @property
    def about_the_row(self) -> bool:
        """Returns whether the reason lies in what this one row says."""
        return self.code in _INPUT_ERROR_CODES or _INPUT_ERROR_PATTERN.search(self.message) is not None


def parse_api_error(body: object, default_message: str = "") -> ApiError:
    """Returns the refusal in the body of an answer: {"error": {...}} or that error itself; else the words given."""
    error: Any = body
    while isinstance(error, Mapping) and isinstance(error.get("error"), Mapping):
        error = error["error"]
    if not isinstance(error, Mapping) or not isinstance(error.get("message"), str):
        return ApiError(default_message or str(body))
    code = error.get("code") or error.get("type") or ""
    return ApiError(error["message"], str(code), str(error.get("param") or ""))


def is_configuration_error(status: int, error: ApiError) -> bool:
    """Returns whether a row was refused for how it was asked, and not for what it says."""
    return status in CONFIGURATION_STATUS and not error.about_the_row


def find_rejected_parameter(error: str, optional: Mapping[str, Collection[str]]) -> str | None:
    """Returns which optional parameter a 400 names first, None where it names none. `optional`: by parameter, the
    names that a provider gives it."""
    if not error.startswith("HTTP 400"):
        return None
    matches = [
        (match.start(), -len(name), parameter)
        for parameter, names in optional.items()
        for name in names
        if (match := re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", error))
    ]
    return min(matches)[2] if matches else None
