"""Numbers and dates as written in a source, to numbers and ISO 8601, by `data.formats`.

    decimal: ","                          "1.234,56" -> 1234.56, "12,5" -> 12.5
    amounts: {total: currency}            total "EUR 1.234,56" -> 1234.56; sets an empty currency to "EUR"
    dates: {issued: "%d.%m.%Y"}           issued "01.05.2026" -> "2026-05-01"

A value that does not fit the format makes its row unusable, because the model would learn a wrong value.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from data_prep.readers.dotted_paths import parse_json_text
from data_prep.readers.source_row import Digits
from insource.config.schema.data import Formats
from insource.tasks.records.normalizers import parse_amount, parse_number
from insource.tasks.source_record import UnusableRowError, columns_to_rows

# The strptime directives for a time of day.
TIME_DIRECTIVES = ("%H", "%I", "%M", "%S", "%f", "%p", "%X", "%c", "%z", "%Z")


def parse_record_values(
    record: Mapping[str, Any], json_schema: Mapping[str, Any], formats: Formats
) -> dict[str, object]:
    """Return the record with parsed numbers and dates. Raise UnusableRowError if one does not fit its format."""
    return _parse_object(record, json_schema["properties"], formats, "")


def parse_time(text: str, time_format: str) -> datetime | None:
    """Return the time of a text in this strptime format or in ISO 8601; None if it is in neither."""
    try:
        return datetime.strptime(text, time_format)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _parse_object(
    record: Mapping[str, Any], fields: Mapping[str, Any], formats: Formats, prefix: str
) -> dict[str, object]:
    """Return the object with parsed values; currencies found beside amounts fill empty currency fields."""
    parsed, currencies = dict(record), dict[str, str]()
    for name, value in record.items():
        if name in fields:
            parsed[name], currency_text = _parse_value(value, fields[name], formats, f"{prefix}{name}")
            currency = formats.amounts.get(f"{prefix}{name}")
            if currency is not None and currency_text:
                currencies.setdefault(currency, currency_text)
    return parsed | {name: currency_text for name, currency_text in currencies.items() if _is_empty(parsed.get(name))}


def _is_empty(value: object) -> bool:
    """Return whether a value is null or a blank text."""
    return value is None or (isinstance(value, str) and not value.strip())


def _parse_value(value: Any, field: Mapping[str, Any], formats: Formats, path: str) -> tuple[object, str]:
    """Return the value, and the currency found beside it ("" if none). Lists and objects may be JSON texts."""
    if {"array", "object"} & {*_field_types(field)} and not _is_empty(value):
        value = parse_json_text(value)
    if isinstance(value, dict) and "properties" in field.get("items", {}) and (rows := columns_to_rows(value)):
        value = rows
    if isinstance(value, list):
        return [_parse_value(item, field.get("items", {}), formats, path)[0] for item in value], ""
    if isinstance(value, dict) and "properties" in field:
        return _parse_object(value, field["properties"], formats, f"{path}."), ""
    if not isinstance(value, str) or not value.strip():
        return value, ""
    if path in formats.dates:
        return _parse_date(value.strip(), formats.dates[path], path), ""
    if formats.decimal and not isinstance(value, Digits) and {"number", "integer"} & {*_field_types(field)}:
        return _parse_number(value, formats.decimal, path in formats.amounts, path)
    return value, ""


def _parse_number(text: str, decimal: str, with_currency: bool, path: str) -> tuple[int | float, str]:
    """Return the number and its currency. Raise UnusableRowError if the text is no number."""
    amount = parse_amount(text, decimal)
    if amount is not None and (with_currency or not amount[1]):
        return amount
    number = parse_number(text, decimal)
    if number is not None:
        return number, ""
    message = f"field {path}: {text.strip()[:40]!r}"
    if amount is not None:
        message += f" names a currency or a unit, {amount[1]!r}; data.formats.amounts says what becomes of it"
    else:
        message += f" is no number with {decimal!r} before its decimals (data.formats.decimal)"
    raise UnusableRowError("bad_record", message)


def _parse_date(text: str, date_format: str, path: str) -> str:
    """Return a date, or a date with a time if the text or the format has a time of day."""
    parsed = parse_time(text, date_format)
    if parsed is None:
        raise UnusableRowError("bad_record", f"field {path}: {text[:40]!r} is no date of the format {date_format}")
    is_midnight = (parsed.hour, parsed.minute, parsed.second) == (0, 0, 0)
    return (
        f"{parsed:%Y-%m-%d}"
        if is_midnight and not any(code in date_format for code in TIME_DIRECTIVES)
        else parsed.isoformat()
    )


def _field_types(field: Mapping[str, Any]) -> list[str]:
    """Return the JSON types of a field."""
    types = field.get("type", [])
    return [types] if isinstance(types, str) else list(types)
