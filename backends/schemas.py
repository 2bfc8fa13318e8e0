"""JSON Schemas as providers take them: an object at the top, and nothing that they refuse.

{"type": "string", "enum": ["a", "b"]}   goes as   {"type": "object", "properties": {"answer": {...}}, ...}
{"answer": "a"}                          comes back as   a
"""

import json
from collections.abc import Mapping
from typing import Any

ANSWER = "answer"


def wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a schema with an object at the top: itself, or one with the single key `answer`."""
    if schema.get("type") == "object":
        return dict(schema)
    return {
        "type": "object",
        "properties": {ANSWER: dict(schema)},
        "required": [ANSWER],
        "additionalProperties": False,
    }


def unwrapped(schema: Mapping[str, Any], text: str) -> str:
    """Returns an answer as the task reads it; text that does not hold the one key stays as it is, and will be wrong."""
    if schema.get("type") == "object":
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    answer = found.get(ANSWER) if isinstance(found, dict) and len(found) == 1 else None
    return answer if isinstance(answer, str) else text
