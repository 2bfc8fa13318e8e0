"""Normalizers of field values before comparison, as declared in a recipe.

    normalize("RM 1,234.50", ["amount"])            "1234.50", same for "1.234,50 €" and 1234.5
    normalize("02 APR 2018", ["date_dmy"])          "2018-04-02", same for "2/4/18"
    normalize("  Ho Trading ", ["whitespace", "case"])    "ho trading"

Only scores use normalized values; stored data and answers keep the original spelling. A value that is not an amount or
date stays unchanged, with its white space folded.

The module also parses numbers of tables, with the decimal sign that a recipe declares:

    parse_number("1.234,56", ",")                   1234.56
    parse_amount("EUR 1.234,56", ",")               (1234.56, "EUR")
"""

import re
import unicodedata
from collections.abc import Collection
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4}|[0-9]{2})"
_NAMED_DATES = tuple(
    re.compile(rf"(?:[a-z]+,? )?{pattern}", re.IGNORECASE)
    for pattern in (
        rf"{_DAY}[ .,/-]*{_MONTH}[ .,/-]*{_YEAR}",
        rf"{_MONTH}[ .,/-]*{_DAY}[ .,/-]+{_YEAR}",
        rf"(?P<year>[0-9]{{4}})[ .,/-]*{_MONTH}[ .,/-]*{_DAY}",
    )
)
_ISO_DATE = re.compile(r"([0-9]{4})([-/. ]?)([0-9]{1,2})\2([0-9]{1,2})")
_NUMERIC_DATE = re.compile(r"([0-9]{1,2}) ?[-/. ] ?([0-9]{1,2}) ?[-/. ] ?([0-9]{4}|[0-9]{2})")
_DIGIT_RUN = re.compile(r"([0-9]{2})([0-9]{2})([0-9]{4})")
_TIME = re.compile(r"[ T][0-9]{1,2}[:.][0-9]{2}.*$", re.IGNORECASE)

# A currency is a sign or at most four letters, before or after the number. Currencies are not compared.
_CURRENCY = r"(?:[^\W\d_]{1,4}\.?)? ?[$£¥\u0e3f\u20a0-\u20c0]?"
_AMOUNT = re.compile(
    rf"(?P<open>\()?(?P<sign>[-−+]?) ?(?P<before>{_CURRENCY}) ?(?P<inner>[-−+]?) ?"
    r"(?P<digits>[0-9][0-9.,'’ ]*(?<=[0-9])|[.,][0-9]+)"
    rf"(?P<behind>-?) ?(?P<after>{_CURRENCY})(?P<close>\))?"
)
# 129,- is 129.
_NO_CENTS = re.compile(r"(?<=[0-9])[.,][-–—]{1,2}(?=\D*$)")
_DIGITS, _SCIENTIFIC = (
    {sign: re.compile(pattern.replace("SIGN", re.escape(sign)).replace("GROUP", group)) for sign, group in (".,", ",.")}
    for pattern in (
        r"(?P<integer>[0-9]{1,40}|[1-9][0-9]{0,2}(?P<mark>[GROUP'’ ])[0-9]{3}(?:(?P=mark)[0-9]{3}){0,10}"
        r"|[1-9][0-9]?(?:[GROUP][0-9]{2}){1,10}[GROUP][0-9]{3})?(?:SIGN(?P<fraction>[0-9]{1,40}))?",
        r"[-+]?[0-9]{1,40}(?:SIGN[0-9]{1,40})?[eE][-+]?[0-9]{1,3}",
    )
)
_GROUPED = re.compile(r"[0-9]{1,3}(?:[.,' ][0-9]{2,3})*[.,' ][0-9]{3}")


def normalize(value: object, normalizers: Collection[str]) -> Any:
    """Return a value that equal values share: text for text; for a number, text if `amount` is declared.

    `normalizers` are whitespace, case, punctuation, amount, date_dmy (day first in ambiguous dates), date_mdy. Their
    order has no effect. The function is idempotent.
    """
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return _format_amount(Decimal(str(value))) if "amount" in normalizers else value
    if not isinstance(value, str) or not normalizers:
        return value
    return _normalize_text(value, frozenset(normalizers))


@lru_cache(maxsize=65536)
def _normalize_text(value: str, normalizers: frozenset[str]) -> str:
    """Return a text as `normalize` returns it. Cached, because entries of lists are compared pairwise."""
    text = _fold_spaces(value)
    normalized = _normalize_date(text, "date_dmy" in normalizers) if {"date_dmy", "date_mdy"} & {*normalizers} else None
    if normalized is None and "amount" in normalizers:
        normalized = _normalize_amount(text)
    if normalized is not None:
        return normalized
    folded = _fold_spaces(text.casefold()) if "case" in normalizers else text
    if "punctuation" in normalizers:
        # A text of only punctuation is its own value: "?" is not "!".
        folded = (
            _fold_spaces(
                "".join(" " if unicodedata.category(character)[0] in "PS" else character for character in folded)
            )
            or folded
        )
    # Without punctuation the text may be a date.
    return folded if folded == text else _normalize_text(folded, normalizers)


def parse_number(text: str, decimal: str) -> int | float | None:
    """Return the number of a text with `decimal` ("." or ",") as decimal sign; None if it is not a number.

    The other sign, spaces and apostrophes may group thousands only: with a decimal comma, 1.5 and 0.123 are not
    numbers.
    """
    amount = parse_amount(text, decimal)
    if amount is not None:
        return None if amount[1] else amount[0]
    return float(text.replace(",", ".")) if _SCIENTIFIC[decimal].fullmatch(text.strip()) else None


def parse_amount(text: str, decimal: str) -> tuple[int | float, str] | None:
    """Return (number, currency in its spelling or "") of an amount of money; None if it is not one.

    The number follows the rules of parse_number.
    """
    match = _AMOUNT.fullmatch(_NO_CENTS.sub("", _fold_spaces(text)))
    if match is None or (match["open"] is None) != (match["close"] is None):
        return None
    currencies = [part.strip() for part in (match["before"], match["after"]) if part.strip()]
    digits, signs = _DIGITS[decimal].fullmatch(match["digits"]), _signs(match)
    if digits is None or len(signs) + bool(match["open"]) > 1 or len(currencies) > 1:
        return None
    integer_part = re.sub("[^0-9]", "", digits["integer"] or "0")
    size = float(f"{integer_part}.{digits['fraction']}") if digits["fraction"] else int(integer_part)
    return -size if signs or match["open"] else size, "".join(currencies)


def _fold_spaces(text: str) -> str:
    return " ".join(text.split())


def _normalize_amount(text: str) -> str | None:
    match = _AMOUNT.fullmatch(text)
    if match is None or (match["open"] is None) != (match["close"] is None):
        return None
    plain, signs = _plain_number(re.sub("[ ’]", "'", match["digits"])), _signs(match)
    if plain is None or len(signs) > 1:
        return None
    return _format_amount(-Decimal(plain) if signs or match["open"] else Decimal(plain))


def _signs(amount: re.Match[str]) -> str:
    return (amount["sign"] + amount["inner"] + amount["behind"]).replace("+", "")


def _plain_number(digits: str) -> str | None:
    """Return digits with at most one decimal point; None if the text is not a number.

    If there are two kinds of separator, the last one is decimal. A single separator is decimal, unless exactly three
    digits follow (1,234 and 1.234 are thousands).
    """
    index = max(digits.rfind("."), digits.rfind(","))
    integer_part, fraction = (digits[:index], digits[index + 1 :]) if index >= 0 else (digits, "")
    if index >= 0 and digits.count(digits[index]) > 1 and set(digits) & {".", ","} == {digits[index]}:
        integer_part, fraction = digits, ""  # 1,234,567
    elif len(fraction) == 3 and re.fullmatch(r"[1-9][0-9]{0,2}", integer_part):
        integer_part, fraction = digits, ""
    if not fraction.isdigit() and fraction:
        return None
    if re.search(r"\D", integer_part) and not _GROUPED.fullmatch(integer_part):
        return None
    return f"{re.sub(r'[^0-9]', '', integer_part) or '0'}.{fraction or '0'}"


def _format_amount(amount: Decimal) -> str:
    """Return the amount with two decimals, or all of them; never with three, which would look like thousands."""
    text = f"{amount:f}"
    integer_part, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0").ljust(2, "0")
    number = f"{integer_part}.{fraction + '0' if len(fraction) == 3 else fraction}"
    return number.removeprefix("-") if not amount else number


def _normalize_date(text: str, day_first: bool) -> str | None:
    text = _fold_spaces(_TIME.sub("", text.strip("()[] ")))
    for pattern in _NAMED_DATES:
        if match := pattern.fullmatch(text):
            month = _MONTHS.index(match["name"][:3].lower()) + 1
            return _iso_date(match["year"], month, int(match["day"]))
    if match := _ISO_DATE.fullmatch(text):
        year, separator, month_text, day_text = match.groups()
        if (separator or len(text) == 8) and (iso_text := _iso_date(year, int(month_text), int(day_text))):
            return iso_text
    if match := _NUMERIC_DATE.fullmatch(text) or _DIGIT_RUN.fullmatch(text):
        first, second = int(match[1]), int(match[2])
        day, month = (first, second) if (day_first or first > 12) and second <= 12 else (second, first)
        return _iso_date(match[3], month, day)
    return None


def _iso_date(year: str, month: int, day: int) -> str | None:
    # As in strptime, two digits are a year from 1969 to 2068.
    full_year = int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= 69 else 2000)
    if not 1900 <= full_year < 2100:
        return None
    try:
        return date(full_year, month, day).isoformat()
    except ValueError:
        return None
