"""One field of a record: its schema in words and as a grammar rule, its values made canonical and checked.

field       {"type": ["string", "null"], "maxLength": 20, "description": "as printed"}
in_words    "text of at most 20 characters, or null"
rule        "\\"" char{1,20} "\\"" | "null"
canonical   " 20417 " -> "20417", "" -> null; for a number, "12.50" -> 12.5
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from recipes.schema_fields import nullable
from tasks.text import clean

Field = Mapping[str, Any]

LARGEST_INTEGER = 10**18 - 1
SMALLEST, LARGEST = 1e-99, 1e100
TRUTHS = {
    **dict.fromkeys(("true", "yes", "y", "t", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "n", "f", "0", "0.0"), False),
}
TYPES = {"string": "text", "number": "a number", "integer": "a whole number", "boolean": "true or false"}

# Written here and not by xgrammar's JSON Schema converter (0.2): in a string with maxLength that one knows no escape,
# so that no value with a quote or a line break could be answered, and lets raw control characters through, which are no
# JSON; its numbers need not end. Here a character has one spelling, that of json.dumps.
RULES = {
    "char": r'[ !#-\[\]-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\bfnrt] | "u00" [01] [0-9a-f])',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,17})',
    "number": 'integer fraction? | "-"? [1-9] fraction? "e" [+-] [0-9]{2}',
    "fraction": '"." [0-9]{1,20}',
    "boolean": '"true" | "false"',
}


def effective(field: Field, may_lack: bool) -> dict[str, Any]:
    """Returns the field's schema with null among its types where it may lack, and choices as clean as its values."""
    found = dict(field)
    kind = "string" if "enum" in field else kind_of(field)
    found["type"] = [kind, "null"] if may_lack else kind
    if "enum" in field:
        found["enum"] = [*dict.fromkeys(clean(one) for one in field["enum"] if one is not None), *[None] * may_lack]
    if "items" in field:
        found["items"] = effective(field["items"], may_lack=False)
    return found


def kind_of(field: Field) -> str:
    """Returns the field's type, null aside."""
    kinds = [field["type"]] if isinstance(field["type"], str) else field["type"]
    return next(str(kind) for kind in kinds if kind != "null")


def in_words(field: Field) -> str:
    """Returns what the field may hold, as the prompt says it."""
    if "enum" in field:
        words = "one of " + ", ".join(json_text(one) for one in field["enum"] if one is not None)
    elif kind_of(field) == "array":
        words = f"a list of at most {field['maxItems']}, each {in_words(field['items'])}"
    else:
        words = TYPES[kind_of(field)]
        words += f" of at most {field['maxLength']} characters" if "maxLength" in field else ""
    return words + (", or null" if nullable(field) else "")


def rule(field: Field) -> str:
    """Returns what stands for the field in the grammar (EBNF); it refers to RULES."""
    if "enum" in field:
        return " | ".join(literal(json_text(one)) for one in field["enum"])
    kind = kind_of(field)
    if kind == "array":
        item = f"({rule(field['items'])})"
        entries = f'{item} (", " {item}){{0,{field["maxItems"] - 1}}}'
        # No entries is null where the field may be null: one spelling for nothing.
        found = f'"[" {entries} "]"' if nullable(field) else f'"[" ({entries})? "]"'
    else:
        found = rf'"\"" char{{1,{field["maxLength"]}}} "\""' if kind == "string" else kind
    return found + (' | "null"' if nullable(field) else "")


def canonical(field: Field, value: Any) -> Any:
    """Returns the value as records hold it: clean text, text of a table as the field's type, null for nothing.

    What fits no better way stays as it is, for `check` to tell.
    """
    kind = kind_of(field)
    if kind == "boolean" and is_number(value):
        value = TRUTHS.get(str(value), value)
    if isinstance(value, str):
        value = clean(value)
        value = _read(value, kind) if value and kind != "string" else value
    if isinstance(value, list) and kind == "array":
        value = [one for one in (canonical(field["items"], given) for given in value) if one != ""]
    if isinstance(value, float) and value.is_integer() and (kind == "integer" or (kind == "number" and _exact(value))):
        value = int(value)
    if is_number(value) and isinstance(value, int) and kind == "number" and not _exact(value):
        value = float(value) if abs(value) < LARGEST else math.inf
    return None if value in ("", []) and nullable(field) else value


def check(field: Field, value: Any) -> None:
    """Returns nothing where a value fits its field. Raises ValueError saying what was given and what would do."""
    if value is None and nullable(field):
        return
    if value is None:
        raise ValueError("is missing, and it is required")
    kind = kind_of(field)
    is_kind = {"string": _is_text, "boolean": _is_boolean, "array": _is_list, "number": is_number, "integer": _is_whole}
    if not is_kind[kind](value) or ("enum" in field and value not in field["enum"]):
        raise ValueError(f"given {_short(value)}, allowed: {in_words(field)}{_hint(kind, value)}")
    if kind == "string" and len(value) > field.get("maxLength", math.inf):
        raise ValueError(f"given {len(value)} characters, allowed: {field['maxLength']} (maxLength): {_short(value)}")
    if kind == "number" and value and not SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(f"given {_short(value)}, which is too large or too small a number")
    if kind == "integer" and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"given {_short(value)}, which is too large a number")
    if kind == "array":
        if len(value) > field["maxItems"]:
            raise ValueError(f"given {len(value)} entries, allowed: {field['maxItems']} (maxItems)")
        for one in value:
            check(field["items"], one)


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_text(value: Any) -> str:
    """Returns a value as JSON, in the one spelling that answers have."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def literal(text: str) -> str:
    """Returns a text without line breaks as a literal of the grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _read(text: str, kind: str) -> Any:
    """Text of a table as the type it stands for; the text itself where it stands for none."""
    if kind == "boolean":
        return TRUTHS.get(text.casefold(), text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _hint(kind: str, value: Any) -> str:
    digits = isinstance(value, str) and any("0" <= one <= "9" for one in value)
    return "; data.formats tells how numbers are written" if digits and kind in ("number", "integer") else ""


def _exact(value: float) -> bool:
    return abs(value) < 1e15


def _is_text(value: Any) -> bool:
    # Half of a surrogate pair is no text: it cannot be written as UTF-8.
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_whole(value: Any) -> bool:
    return is_number(value) and (isinstance(value, int) or value.is_integer())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
