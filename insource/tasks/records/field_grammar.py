"""Output constraint of a record: a grammar (EBNF for xgrammar and vLLM) of canonical answers.

field       {"type": ["string", "null"], "maxLength": 20}
rules       root_0 ::= text_20 | "null"
            text_20 ::= Regex("\\"(...){1,20}\\"")

With `absent: omit` a nullable field is left out instead of null. The fields after it then need two rules: one if no
field precedes them in their object (first), one if a field does (more).
"""

import re
from collections.abc import Mapping

from insource.config.schema.json_schema_subset import is_nullable
from insource.tasks.records.json_fields import FieldSchema, canonical_json, field_type

# xgrammar's JSON Schema converter (0.2) is not used. For a string with maxLength it has no escapes, so a value with a
# quote or a line break is impossible. It allows raw control characters, which are invalid JSON, and unbounded numbers.
# Here each character has one spelling, that of json.dumps.
# Classes of characters with one, two, three (before and after the surrogates) and four bytes in UTF-8: in a class with
# characters of different lengths xgrammar 0.2.8 allows bytes that are not UTF-8.
UNESCAPED = r"[ !#-\[\]-\u007F]|[\u0080-\u07FF]|[\u0800-\uD7FF]|[\uE000-\uFFFF]|[\U00010000-\U0010FFFF]"
CHARACTER_REGEX = rf'({UNESCAPED}|\\(["\\bfnrt]|u00[01][0-9a-f]))'
# xgrammar computes the tokens allowed in each state of a regular expression when it compiles it. A repeated rule has no
# such states: xgrammar 0.2.8 then checks most of 49,152 tokens at each step of a text, which takes up to a second.
# A regular expression can repeat 128 times at most.
MAX_REPEAT = 128
SCALAR_RULES = {
    "integer": '"-"? ("0" | [1-9] [0-9]{0,17})',
    "number": 'integer fraction? | "-"? [1-9] fraction? "e" [+-] [0-9]{2}',
    "fraction": '"." [0-9]{1,20}',
    "boolean": '"true" | "false"',
}


def record_grammar(fields: Mapping[str, FieldSchema], absent: str) -> str:
    """Return the grammar of a record. `absent` is the form of a missing field: null, or omit to leave it out."""
    lines = _object_rules("root", fields, absent, may_be_empty=True)
    lines += [f"{name} ::= {rule}" for name, rule in SCALAR_RULES.items()]
    # Texts of the same length share a rule.
    return "\n".join(dict.fromkeys(lines))


def quote_literal(text: str) -> str:
    """Return a text without line breaks as a literal of the grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _object_rules(name: str, fields: Mapping[str, FieldSchema], absent: str, may_be_empty: bool) -> list[str]:
    """Return the rule of an object, and the rules of its fields."""
    keys = [quote_literal(f"{canonical_json(field)}: ") for field in fields]
    rules = [f"{name}_{index}" for index in range(len(keys))]
    field_lines = [
        line for rule, field in zip(rules, fields.values(), strict=True) for line in _field_rules(rule, field, absent)
    ]
    omittable = [absent == "omit" and is_nullable(field) for field in fields.values()]
    if not any(omittable):
        parts = ' ", " '.join(f"{key} {rule}" for key, rule in zip(keys, rules, strict=True))
        return [f'{name} ::= "{{" {parts} "}}"', *field_lines]
    first_rule, more_rule, n_fields = f"{name}_first", f"{name}_more", len(keys)
    lines = [f'{name} ::= "{{" {first_rule}_0']
    for index, (key, rule) in enumerate(zip(keys, rules, strict=True)):
        body = f"{key} {rule} {more_rule}_{index + 1}"
        if all(omittable[:index]):
            can_skip = omittable[index] and (may_be_empty or index + 1 < n_fields)
            lines.append(f"{first_rule}_{index} ::= {body}" + (f" | {first_rule}_{index + 1}" if can_skip else ""))
        if index:
            lines.append(
                f'{more_rule}_{index} ::= ", " {body}' + (f" | {more_rule}_{index + 1}" if omittable[index] else "")
            )
    lines += [f'{first_rule}_{n_fields} ::= "}}"'] if may_be_empty and all(omittable) else []
    return [*lines, f'{more_rule}_{n_fields} ::= "}}"', *field_lines]


def _field_rules(name: str, field: FieldSchema, absent: str) -> list[str]:
    """Return the rule of a field, and the rules of its content. An omittable field is never null."""
    kind, may_be_null = field_type(field), is_nullable(field)
    null = ' | "null"' if may_be_null and absent == "null" else ""
    if kind == "object":
        object_rule = f"{name}_object"
        return [
            f"{name} ::= {object_rule}{null}",
            *_object_rules(object_rule, field["properties"], absent, may_be_empty=not may_be_null),
        ]
    if kind != "array":
        return [f"{name} ::= {_scalar_rule(field)}{null}", *_text_rules(field)]
    item, items = f"{name}_item", field["items"]
    item_rules = (
        _object_rules(item, items["properties"], absent, may_be_empty=False)
        if field_type(items) == "object"
        else [f"{item} ::= {_scalar_rule(items)}", *_text_rules(items)]
    )
    entries = f'{item} (", " {item}){{0,{field["maxItems"] - 1}}}'
    # A nullable array is null if it has no entries, so that "no value" has one spelling.
    array_rule = f'"[" {entries} "]"' if may_be_null else f'"[" ({entries})? "]"'
    return [f"{name} ::= {array_rule}{null}", *item_rules]


def _scalar_rule(field: FieldSchema) -> str:
    if "enum" in field:
        return " | ".join(quote_literal(canonical_json(choice)) for choice in field["enum"] if choice is not None)
    kind = field_type(field)
    return f"text_{field['maxLength']}" if kind == "string" else kind


def _text_rules(field: FieldSchema) -> list[str]:
    """Return the rule that `_scalar_rule` names for a text; [] for any other field."""
    if "enum" in field or field_type(field) != "string":
        return []
    return [f"{_scalar_rule(field)} ::= Regex({_quote_regex(_text_regex(field['maxLength']))})"]


def _text_regex(max_length: int) -> str:
    """Return the regular expression of a JSON string with at least one and at most `max_length` characters."""
    regex = f"{CHARACTER_REGEX}{{1,{(max_length - 1) % MAX_REPEAT + 1}}}"
    for _ in range((max_length - 1) // MAX_REPEAT):
        # Either fewer characters than one repetition can have, or so many and then the rest. Two repetitions in a row,
        # {0,128} and {1,n}, would mean the same; compiling them takes time quadratic in the length.
        regex = f"({CHARACTER_REGEX}{{1,{MAX_REPEAT - 1}}}|{CHARACTER_REGEX}{{{MAX_REPEAT}}}({regex})?)"
    return f'"{regex}"'


def _quote_regex(regex: str) -> str:
    r"""Return a regular expression as a literal of the grammar, which reads \\u and \\U itself."""
    escaped = re.sub(r"\\(?![uU][0-9A-F])", r"\\\\", regex).replace('"', '\\"')
    return f'"{escaped}"'
