"""Output constraint of a record: a grammar (EBNF for xgrammar and vLLM) of canonical answers.

field       {"type": ["string", "null"], "maxLength": 20}
rules       number ::= "\\"" char{1,20} "\\"" | "null"

With `absent: omit` a nullable field is left out instead of null. The fields after it then need two rules: one if no
field precedes them in their object (first), one if a field does (more).
"""

from collections.abc import Mapping

from insource.config.schema.json_schema_subset import is_nullable
from insource.tasks.records.json_fields import FieldSchema, canonical_json, field_type

# xgrammar's JSON Schema converter (0.2) is not used. For a string with maxLength it has no escapes, so a value with a
# quote or a line break is impossible. It allows raw control characters, which are invalid JSON, and unbounded numbers.
# Here each character has one spelling, that of json.dumps.
GRAMMAR_RULES = {
    "char": r'[ !#-\[\]-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\bfnrt] | "u00" [01] [0-9a-f])',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,17})',
    "number": 'integer fraction? | "-"? [1-9] fraction? "e" [+-] [0-9]{2}',
    "fraction": '"." [0-9]{1,20}',
    "boolean": '"true" | "false"',
}


def record_grammar(fields: Mapping[str, FieldSchema], absent: str) -> str:
    """Return the grammar of a record. `absent` is the form of a missing field: null, or omit to leave it out."""
    lines = _object_rules("root", fields, absent, may_be_empty=True)
    return "\n".join([*lines, *(f"{name} ::= {rule}" for name, rule in GRAMMAR_RULES.items())])


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
        return [f"{name} ::= {_scalar_rule(field)}{null}"]
    item, items = f"{name}_item", field["items"]
    item_rules = (
        _object_rules(item, items["properties"], absent, may_be_empty=False)
        if field_type(items) == "object"
        else [f"{item} ::= {_scalar_rule(items)}"]
    )
    entries = f'{item} (", " {item}){{0,{field["maxItems"] - 1}}}'
    # A nullable array is null if it has no entries, so that "no value" has one spelling.
    array_rule = f'"[" {entries} "]"' if may_be_null else f'"[" ({entries})? "]"'
    return [f"{name} ::= {array_rule}{null}", *item_rules]


def _scalar_rule(field: FieldSchema) -> str:
    if "enum" in field:
        return " | ".join(quote_literal(canonical_json(choice)) for choice in field["enum"] if choice is not None)
    kind = field_type(field)
    return rf'"\"" char{{1,{field["maxLength"]}}} "\""' if kind == "string" else kind
