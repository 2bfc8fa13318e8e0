"""JSON Schemas in the subset that providers accept: an object at the top, and no unsupported keywords.

{"type": "string", "enum": ["a", "b"]}   is sent as       {"type": "object", "properties": {"answer": {...}}, ...}
{"answer": "a"}                          is returned as   a
{"type": "string", "maxLength": 20}      is sent as       {"type": "string", "description": "at most 20 characters"}

Keywords that move into the description are still checked: the task's parser validates every answer by the full schema.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

ANSWER_KEY = "answer"
ANNOTATION_KEYWORDS = ("description", "title")
KEYWORD_DESCRIPTIONS = {
    "maxLength": "at most {} characters",
    "minLength": "at least {} characters",
    "maxItems": "at most {} entries",
    "minItems": "at least {} entries",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "uniqueItems": "no entry twice",
}


def wrap_in_object(schema: Mapping[str, object]) -> dict[str, object]:
    """Return a schema with an object at the top: the schema itself, or an object with the single key `answer`."""
    if schema.get("type") == "object":
        return dict(schema)
    return {
        "type": "object",
        "properties": {ANSWER_KEY: dict(schema)},
        "required": [ANSWER_KEY],
        "additionalProperties": False,
    }


def unwrap_answer(schema: Mapping[str, object], text: str) -> str:
    """Return the value of the single key as the task parses it.

    Other text is returned unchanged, and scores as wrong.
    """
    if schema.get("type") == "object":
        return text
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    answer = parsed.get(ANSWER_KEY) if isinstance(parsed, dict) and len(parsed) == 1 else None
    if isinstance(answer, list) and schema.get("type") == "array":
        return json.dumps(answer, ensure_ascii=False)
    return answer if isinstance(answer, str) else text


def restrict_keywords(
    schema: Mapping[str, Any], keywords: Collection[str] | None, one_type: bool = False
) -> dict[str, object]:
    """Return a schema with the keywords that a provider accepts (None: all); the others move into the description.

    `one_type`: a list of types becomes anyOf, and an enum has no type beside it. Anthropic's own helper writes this
    form (anthropic.lib._parse._transform.transform_schema leaves such a schema unchanged).
    """
    if keywords is None:
        return dict(schema)
    restricted, notes = dict[str, Any](), list[str]()
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            restricted[key] = {
                name: restrict_keywords(subschema, keywords, one_type) for name, subschema in value.items()
            }
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            restricted[key] = restrict_keywords(value, keywords, one_type)
        elif key in ("anyOf", "allOf") and key in keywords:
            restricted[key] = [restrict_keywords(subschema, keywords, one_type) for subschema in value]
        elif key in keywords or key in ANNOTATION_KEYWORDS:
            restricted[key] = value
        else:
            notes.append(KEYWORD_DESCRIPTIONS.get(key, key + ": {}").format(value))
    if "properties" in restricted and "required" in keywords:
        # Strict modes require every key; an optional key may be null.
        restricted["required"] = list(restricted["properties"])
    if notes:
        note = ", ".join(notes)
        restricted["description"] = f"{restricted['description']} ({note})" if restricted.get("description") else note
    return _split_type_union(restricted) if one_type else restricted


def _split_type_union(schema: dict[str, Any]) -> dict[str, object]:
    types = schema.get("type")
    if "enum" in schema or "const" in schema:
        schema.pop("type", None)
    elif isinstance(types, list):
        annotations = {key: schema.pop(key) for key in ANNOTATION_KEYWORDS if key in schema}
        shared = {key: value for key, value in schema.items() if key != "type"}
        null = [{"type": "null"}] if "null" in types else []
        return {
            "anyOf": [*({"type": type_name, **shared} for type_name in types if type_name != "null"), *null],
            **annotations,
        }
    return schema
