"""Conversion of pydantic's errors to messages for the author of a recipe.

[RecipeMistake(("train", "learning_rat"), "unknown key; did you mean learning_rate?", "INS-R002"),
 RecipeMistake(("lora", "r"), "given 600, allowed: at most 512", "INS-R004")]
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from insource.config.recipe import Recipe
from insource.config.schema import lora, train
from insource.config.schema.section import ConflictError

if TYPE_CHECKING:
    from insource.config.error_codes.codes import ErrorCode

KeyPath = tuple[str | int, ...]

# {section: {key of upstream that a recipe refuses: reason}}.
UNSUPPORTED_KEYS = {
    "lora": lora.UNSUPPORTED_KEYS,
    "train": train.UNSUPPORTED_KEYS,
    "export": {"replay_nf4": "the merged model is always made of the dequantized base (serve.base: trained)"},
}

BOUNDS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}
TYPE_LABELS = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number", "string_type": "text",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "model_attributes_type": "a mapping", "finite_number": "a finite number",
}  # fmt: skip


@dataclass(frozen=True)
class RecipeMistake:
    """What is wrong with one key of a recipe."""

    key: KeyPath
    message: str
    code: "ErrorCode"


def describe_errors(error: ValidationError, values: dict[str, object]) -> list[RecipeMistake]:
    """Return the mistake of each wrong key. The branches of a union are one mistake."""
    by_key: dict[KeyPath, list[object]] = {}
    conflicts: list[RecipeMistake] = []
    for mistake in error.errors(include_url=False):
        key, raised = _find_recipe_key(mistake, values), mistake.get("ctx", {}).get("error")
        if isinstance(raised, ConflictError):
            conflicts += [RecipeMistake((*key, *subkey), message, "INS-R006") for subkey, message in raised.mistakes]
        else:
            by_key.setdefault(key, []).append(mistake)
    return [_describe_key(key, mistakes) for key, mistakes in by_key.items()] + conflicts


def _find_recipe_key(mistake: Any, values: Any) -> KeyPath:
    """Return the part of pydantic's location that exists in the recipe, without names of union branches."""
    key: list[str | int] = []
    for part in mistake["loc"]:
        if (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]
        else:
            continue
        key.append(part)
    if mistake["type"] == "missing":
        key.append(mistake["loc"][-1])
    return tuple(key)


def _describe_key(key: KeyPath, mistakes: list[Any]) -> RecipeMistake:
    """Return the mistake of a key from all of pydantic's errors about it."""
    error_types = {mistake["type"] for mistake in mistakes}
    if "extra_forbidden" in error_types:
        return _describe_unknown_key(key)
    if error_types == {"missing"}:
        return RecipeMistake(key, "is missing, and has no default", "INS-R003")
    if value_errors := [mistake for mistake in mistakes if mistake["type"] == "value_error"]:
        return RecipeMistake(key, str(value_errors[0]["ctx"]["error"]), "INS-R004")
    return RecipeMistake(key, _describe_value(key, mistakes), "INS-R004")


def _describe_value(key: KeyPath, mistakes: list[Any]) -> str:
    value = mistakes[0]["input"]
    allowed = list(dict.fromkeys(map(_describe_allowed, mistakes)))
    if "a number" in allowed:
        allowed = [description for description in allowed if description != "a whole number"]
    # A bound of the branch with the given type is more useful than "a number" of the other branches.
    bounds = [_describe_allowed(mistake) for mistake in mistakes if mistake["type"] in BOUNDS]
    suggestion = ""
    if isinstance(value, str):
        names = [name for mistake in mistakes for name in _list_literals(mistake)]
        match = get_close_matches(value, names, 1)
        suggestion = f"; did you mean {match[0]}?" if match else ""
    display = (
        repr(value) if not isinstance(value, dict | list) else f"a {'mapping' if isinstance(value, dict) else 'list'}"
    )
    reason = " (vLLM serves no larger rank)" if key[:2] in (("lora", "r"), ("lora", "rank_pattern")) and bounds else ""
    return f"given {display}, allowed: {' or '.join(bounds or allowed)}{reason}{suggestion}"


def _describe_allowed(mistake: Any) -> str:
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind in BOUNDS:
        return BOUNDS[kind].format(**context)
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind == "string_pattern_mismatch":
        return f"text like {context['pattern']}"
    if kind == "string_too_short":
        return f"text of at least {context['min_length']} characters"
    if kind == "too_short":
        return f"at least {context['min_length']} entries"
    return TYPE_LABELS.get(kind) or str(mistake["msg"])


def _list_literals(mistake: Any) -> list[str]:
    if mistake["type"] != "literal_error":
        return []
    return [name.strip(" '") for name in str(mistake["ctx"]["expected"]).replace(" or ", ", ").split(",")]


def _describe_unknown_key(key: KeyPath) -> RecipeMistake:
    if reason := UNSUPPORTED_KEYS.get(str(key[0]), {}).get(str(key[-1])) if len(key) == 2 else None:
        return RecipeMistake(key, f"not supported: {reason}", "INS-R005")
    return RecipeMistake(key, _suggest_key(key), "INS-R002")


def _suggest_key(key: KeyPath) -> str:
    allowed = _list_keys(key[:-1])
    matches = get_close_matches(str(key[-1]), allowed, 1)
    if matches:
        return f"unknown key; did you mean {matches[0]}?"
    locations = [dotted for dotted in _list_dotted_keys(Recipe) if dotted.split(".")[-1] == key[-1]]
    if locations:
        return f"unknown key here; it belongs at {' or '.join(locations)}"
    return f"unknown key; allowed here: {', '.join(allowed)}"


def _list_keys(key: KeyPath) -> list[str]:
    """Return the keys that the schema allows at this place."""
    sections: list[type[BaseModel]] = [Recipe]
    for part in key:
        fields = [section.model_fields[part].annotation for section in sections if part in section.model_fields]
        sections = [nested for annotation in fields for nested in _find_sections(annotation)] or sections
    return sorted({name for section in sections for name in section.model_fields})


def _find_sections(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _find_sections(argument)]


def _list_dotted_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in section.model_fields.items():
        names.append(prefix + name)
        for nested in _find_sections(field.annotation):
            names += _list_dotted_keys(nested, f"{prefix}{name}.")
    return names
