"""Detect personal data in a text, also in spellings that hide it from a plain search.

    ann@example.org      ann＠example．org     ann&#64;example.org     ann%40example.org     ann (at) example [dot] org
    +44 20 7946 0958     ٠٢٠٧٩٤٦٠٩٥٨           4111 1111​1111 1111 with a zero-width space in it

The redactor of data preparation (insource/tasks/pii/redaction.py) searches each normalized reading of the text. An
input with a match is answered on this machine. Personal data is replaced only where the redactor finds it in the
original text. Names and street addresses are not detected.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

from insource.tasks.pii import redaction
from insource.text.text_keys import INVISIBLE

_JOINERS = re.compile("[\u034f\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f\u20e3\U000e0100-\U000e01ef]")
# For texts with single spaces, so that the running time is linear in the text.
_OPEN, _CLOSE = r" ?[\[({<*_|~'\"-] ?", r" ?[\])}>*_|~'\"-] ?"
_AT_WORD, _DOT_WORD = r"(?:at|ät|arroba|chez)", r"(?:dot|punkt|punto|point)"
_MAIL_HOSTS = r"(?:gmail|googlemail|hotmail|outlook|yahoo|icloud|proton(?:mail)?|gmx|aol|live)\b"
# The word "at" is part of an address only before "dot" or a mail host: one may order at example.com.
_AT = re.compile(
    rf"{_OPEN}(?:{_AT_WORD}|@){_CLOSE}| ?@ ?"
    rf"|(?<=\w) {_AT_WORD} (?=[\w-]++(?: {_DOT_WORD} |{_OPEN}{_DOT_WORD}{_CLOSE})|{_MAIL_HOSTS})",
    re.IGNORECASE,
)
_DOT = re.compile(rf"{_OPEN}(?:{_DOT_WORD}|\.){_CLOSE}|(?<=\w) {_DOT_WORD} (?=\w)|(?<=\w) \. ?(?=\w)", re.IGNORECASE)
_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_DIGIT_WORDS)}|oh)\b", re.IGNORECASE)
_MAX_ORDINARY_NUMBER_WORDS = 6
_MAX_TRIMMED_GROUPS = 3
# Digits one by one or in pairs: 4 1 1 1 1 1, 4-1-1-1-1-1.
_SEPARATED_DIGITS = re.compile(r"(?<!\d)\d{1,2}(?:[ ._,*/|\\-]{1,3}\d{1,2}){6,}(?!\d)")
# Groups of four, as cards and accounts are written: 4111.1111.1111.1111, DE89/3704/0044/0532/0130/00.
_GROUPED_IN_FOURS = re.compile(r"(?<=[0-9A-Za-z]{4})[._/,|*](?=[0-9A-Za-z]{1,4}(?![0-9A-Za-z]))")
# An address may have been escaped more than once.
_UNESCAPE_PASSES = 2


def find_kinds(text: str) -> frozenset[str]:
    """Return the kinds of personal data found in any reading of a text."""
    return frozenset(
        match.kind for reading in dict.fromkeys(iter_readings(text)) for match in redaction.find_pii(reading)
    )


def iter_readings(text: str) -> Iterator[str]:
    """Yield a text and its normalized readings."""
    yield text
    plain = unicodedata.normalize("NFKC", _JOINERS.sub("", INVISIBLE.sub("", text)))
    yield plain
    normalized = plain.replace("\u3002", ".")
    for _ in range(_UNESCAPE_PASSES):
        normalized = html.unescape(unquote(normalized)) if "%" in normalized or "&" in normalized else normalized
    normalized = re.sub(r"\s+", " ", normalized)
    yield normalized
    yield _GROUPED_IN_FOURS.sub(" ", normalized)
    if _AT.search(normalized):
        yield _DOT.sub(".", _AT.sub("@", normalized))
    if len(_NUMBER_WORD.findall(normalized)) > _MAX_ORDINARY_NUMBER_WORDS:
        normalized = _NUMBER_WORD.sub(_parse_digit, normalized)
    yield "\n".join(_join_digits(re.findall(r"\d+", run)) for run in _SEPARATED_DIGITS.findall(normalized))


def _join_digits(groups: list[str]) -> str:
    """Return separated digits as numbers, also without the outer groups, which may belong to another number."""
    starts = range(_MAX_TRIMMED_GROUPS + 1)
    stops = range(len(groups), len(groups) - _MAX_TRIMMED_GROUPS - 1, -1)
    return "\n".join("".join(groups[start:stop]) for start in starts for stop in stops)


def _parse_digit(match: re.Match[str]) -> str:
    word = match[0].lower()
    return "0" if word == "oh" else str(_DIGIT_WORDS.index(word))
