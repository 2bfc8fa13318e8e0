"""Personal data and secrets in a text, found by their shape and replaced by placeholders.

    text        "I am Ann@example.org, call (415) 555-2671. Order 4829104 was paid with 4111 1111 1111 1111."
    redacted    "I am [EMAIL_1], call [PHONE_1]. Order 4829104 was paid with [CARD_1]."
    values      {"[EMAIL_1]": "Ann@example.org", "[PHONE_1]": "(415) 555-2671", "[CARD_1]": "4111 1111 1111 1111"}

    email    name@domain.tld in any alphabet that puts spaces between words
    card     13 to 19 digits that pass the Luhn check, with prefix and grouping of cards (a barcode seldom has them)
    iban     country, length, format and checksum of ISO 13616, with at least 7 digits
    phone    see phone_numbers.py: prefers false positives, except for order numbers, dates, times, amounts, addresses
    secret   key formats with a prefix, private keys, and secret-like values after "password:"

Names, street addresses and spelled-out values ("ann at example dot org") are not found. Preparation and the gateway
redact in the same way (inputs.py), so that the model reads inputs as in training. The gateway does not redact raw
requests (<recipe>:raw, or with the task's own prompt).
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b

from insource.tasks.pii import phone_numbers

PII_KINDS = ("email", "phone", "card", "iban", "secret")

Span = tuple[int, int]

_PLACEHOLDER = re.compile(r"\[(EMAIL|PHONE|CARD|IBAN|SECRET)(?:_([0-9]{1,9})|:[0-9a-f]{12})\]")
# Mask of spans that are already found. No pattern below matches it, so a text and its redacted form are read alike.
_BLANK = "\0"
# UTF-8 bytes that cannot be part of personal data: no digit in any script, no sign of a key or address.
_IRRELEVANT_BYTES = bytes(set(range(0xD9)) - set(b"0123456789@_-:"))
_SEVEN_DIGITS = re.compile(r"(?:\d\D*+){7}")
_SECRET_WORDS = ("key", "token", "pass", "pwd", "secret", "bearer", "akia", "asia", "aiza", "eyj")
_SECRET_SIGNS = (*_SECRET_WORDS, "_", "sk-", "://", "xox", "glpat")


@dataclass(frozen=True)
class Finding:
    """The span of personal data in a text: text[start:end]. The value itself is not stored here."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class RedactedText:
    """A redacted text, and {placeholder: value}, which stays in memory: nothing writes or shows it."""

    text: str
    values: dict[str, str] = field(repr=False)


def find_pii(text: str) -> list[Finding]:
    """Return all findings, ordered by start, without overlaps."""
    return _find_kinds(text, PII_KINDS)


def redact(text: str, kinds: Collection[str]) -> RedactedText:
    """Return the text with findings of these kinds as [EMAIL_1], [PHONE_1], ..., and the replaced values.

    Equal values get the same number, regardless of case and separators. Numbers follow the order of appearance and
    begin above those of placeholders in the text, so a redacted text stays unchanged.
    """
    last_numbers = dict.fromkeys(PII_KINDS, 0)
    findings = _find_kinds(text, kinds)
    for kind, number in _PLACEHOLDER.findall(text) if findings else ():
        last_numbers[kind.lower()] = max(last_numbers[kind.lower()], int(number or 0))
    placeholders: dict[tuple[str, str], str] = {}
    values: dict[str, str] = {}
    names = []
    for finding in findings:
        value = text[finding.start : finding.end]
        key = finding.kind, _canonical_value(finding.kind, value)
        if key not in placeholders:
            last_numbers[finding.kind] += 1
            placeholders[key] = f"[{finding.kind.upper()}_{last_numbers[finding.kind]}]"
            values[placeholders[key]] = value
        names.append(placeholders[key])
    return RedactedText(_replace_spans(text, ((finding.start, finding.end) for finding in findings), names), values)


def redact_values(values: Mapping[str, str], text: str) -> str:
    """Return the text with each of the values (see Redacted) as its placeholder, longest value first.

    A value also matches in another case (email, iban) and with other separators (phone, card, iban), because a target
    seldom repeats an input verbatim. It does not match inside a longer word or number.
    """
    ascii_text = _to_ascii(text)
    squeezed = _without_separators(ascii_text)
    present = [name for name, value in values.items() if _without_separators(_to_ascii(value)) in squeezed]
    if not present:
        return text
    present.sort(key=lambda name: -len(values[name]))
    pattern = re.compile("|".join(f"({_value_pattern(name, values[name])})" for name in present))
    matches = [(match.span(), present[(match.lastindex or 1) - 1]) for match in pattern.finditer(ascii_text)]
    return _replace_spans(text, [span for span, _ in matches], [name for _, name in matches])


def pseudonymize(text: str, kinds: Collection[str]) -> str:
    """Return the text, such as a row id or a group, with findings of these kinds as [EMAIL:<12 hex digits>].

    Equal values get the same digits in every run, so that rows of one customer stay together. This is a pseudonym, not
    anonymization: anyone with a list of addresses or numbers can hash them and compare.
    """
    findings = _find_kinds(text, kinds) if kinds else []
    names = []
    for finding in findings:
        value = f"{finding.kind}:{_canonical_value(finding.kind, text[finding.start : finding.end])}"
        digest = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        names.append(f"[{finding.kind.upper()}:{digest}]")
    return _replace_spans(text, ((finding.start, finding.end) for finding in findings), names)


def _find_kinds(text: str, kinds: Collection[str]) -> list[Finding]:
    """Find all kinds and return the requested ones, so that part of an IBAN is never reported as a card.

    Only secrets are not searched unless requested, because they may contain other kinds.
    """
    relevant = text.encode("utf-8", "replace").translate(None, _IRRELEVANT_BYTES)
    digit_bytes = relevant.translate(None, b"@_-:")
    has_digits = len(digit_bytes) >= 7 and (digit_bytes.isdigit() or _SEVEN_DIGITS.search(text) is not None)
    markers = _SECRET_SIGNS if len(digit_bytes) < len(relevant) else _SECRET_WORDS
    has_secret_signs = "secret" in kinds and any(map(text.lower().__contains__, markers))
    if not (has_digits or has_secret_signs or b"@" in relevant or "＠" in text):
        return []
    masked = _to_ascii(text)
    if "[" in masked:
        masked = _blank_out(masked, [match.span() for match in _PLACEHOLDER.finditer(masked)])
    searched = {
        "secret": has_secret_signs,
        "email": "@" in masked,
        "iban": has_digits,
        "card": len(digit_bytes) >= 13,
        "phone": has_digits,
    }
    findings: list[Finding] = []
    # Restart with the first kind after each finding, so that the redacted text has no finding that the text lacks.
    spans: list[Span] | None = None
    while spans is None or spans:
        for kind, finder in _FINDERS.items():
            spans = list(finder(masked)) if searched[kind] else []
            findings += (Finding(kind, start, end) for start, end in spans)
            if spans:
                masked = _blank_out(masked, spans)
                break
    return sorted((finding for finding in findings if finding.kind in kinds), key=lambda finding: finding.start)


# Characters with an ASCII equivalent: digits of other scripts, spaces, dashes, full-width forms.
_NON_ASCII_FORMS = re.compile(r"[^\D0-9]|[\u00a0\u2000-\u200a\u202f\u205f\u3000\u2010-\u2015\u2212\uff01-\uff5e]")


def _to_ascii(text: str) -> str:
    """Return the text with ASCII digits, spaces, hyphens and signs; positions stay the same."""
    return text if text.isascii() else _NON_ASCII_FORMS.sub(_ascii_character, text)


def _ascii_character(match: re.Match[str]) -> str:
    char = str(unicodedata.decimal(match[0], "")) or unicodedata.normalize("NFKC", match[0])
    return char if char.isascii() else "-"


def _without_separators(text: str) -> str:
    return re.sub(r"[\s()+./-]", "", text).upper()


def _canonical_value(kind: str, value: str) -> str:
    """Return a text that spellings of one value share."""
    value = _to_ascii(value)
    if kind == "email":
        return value.casefold()
    if kind == "secret":
        return value
    return re.sub(r"^00(?=[1-9])", "+", re.sub(r"[^0-9A-Z+]", "", value.upper()))


def _value_pattern(placeholder: str, value: str) -> str:
    """Return the pattern of a value in the spellings that a target may use."""
    value = _to_ascii(value)
    if placeholder.startswith("[SECRET"):
        return re.escape(value)
    if placeholder.startswith("[EMAIL"):
        return rf"(?<![\w.+-])(?i:{re.escape(value)})(?![\w-])"
    characters = r"[ ()./-]{0,3}".join(map(re.escape, re.sub(r"[^0-9A-Za-z]", "", value)))
    return rf"(?<![0-9A-Za-z])(?i:[+(]{{0,2}}{characters})(?![0-9A-Za-z])"


def _blank_out(text: str, spans: list[Span]) -> str:
    return _replace_spans(text, spans, [_BLANK * (end - start) for start, end in spans])


def _replace_spans(text: str, spans: Iterable[Span], replacements: Iterable[str]) -> str:
    pieces, position = [], 0
    for (start, end), replacement in zip(spans, replacements, strict=True):
        pieces += [text[position:start], replacement]
        position = end
    return "".join([*pieces, text[position:]])


# Letters and digits of alphabets with spaces between words. In other scripts, a match would span a sentence.
_LETTER = r"0-9A-Za-z_\u00c0-\u037d\u037f-\u060b\u0610-\u061a\u0620-\u0963\u0966-\u0dff\u10a0-\u177f\u1800-\u1fff"
# A name is matched only from the start of its run of characters, so time is linear in the text.
_ADDRESS = (
    rf"[{_LETTER}][{_LETTER}.%+'-]*+@(?:[{_LETTER}-]++\.)+(?:[xX][nN]--[0-9A-Za-z]+|(?:(?![0-9_])[{_LETTER}]){{2,24}})"
)
_EMAIL = re.compile(rf"(?<![{_LETTER}.%+'-])[.%+'-]*+({_ADDRESS}(?:[.%+'-]*+{_ADDRESS})*)")
# These patterns begin with a digit, because the search for a character set is fast.
_IBAN_HEAD = re.compile(r"[0-9](?<=[A-Za-z]{2}[0-9])(?<![0-9A-Za-z_][A-Za-z]{2}[0-9])[0-9]")


def _find_ibans(text: str) -> Iterator[Span]:
    position = 0
    while head := _IBAN_HEAD.search(text, position):
        from stdnum import iban

        position, start = head.end(), head.start() - 2
        rest = _iban_pattern(text[start : start + 2].upper()).match(text, position)
        # Without the national checks: an account number with a typo is still personal data.
        if rest and iban.is_valid(text[start : rest.end()], check_country=False):
            position = rest.end()
            if len(re.findall("[0-9]", text[start:position])) >= 7:
                yield start, position


@cache
def _iban_pattern(country: str) -> re.Pattern[str]:
    """Return the pattern of an IBAN after country and check digits; it matches nothing for a country without IBANs."""
    from stdnum import numdb

    structure = numdb.get("iban").info(country)[0][1].get("bban", "")
    length = sum(map(int, re.findall(r"([0-9]+)!", structure)))
    return re.compile(rf"(?:[ -]?[0-9A-Za-z]){{{length}}}(?![0-9A-Za-z_])" if length else r"(?!)")


_CARD_START = re.compile(r"[234568](?<![\w+]\d)(?<!(?<!\d)\d\.\d)(?!(?<=2)[0189])(?=(?:[ -]?\d){12})", re.ASCII)
# Longest first: digits after a space may be the last group of a card or its expiry date.
_CARD_SHAPES = (
    re.compile(r"(?:\d{4}[ -]){4}\d{1,3}(?!\w)", re.ASCII),
    re.compile(r"(?:4\d{12}|3\d{13,14}|\d{16,19}|\d{6}[ -]\d{13}|(?:\d{4}[ -]){3}\d{1,4})(?!\w)", re.ASCII),
    re.compile(r"\d{4}[ -](?:\d{6}[ -]\d{4,5}|\d{4}[ -]\d{5}|(?:\d{3}[ -]){2}\d{3})(?!\w)", re.ASCII),
)


def _find_cards(text: str) -> Iterator[Span]:
    position = 0
    for start in _CARD_START.finditer(text):
        from stdnum import luhn

        for shape in _CARD_SHAPES:
            card = shape.match(text, max(position, start.start()))
            if card and card.start() == start.start() and luhn.is_valid(re.sub("[ -]", "", card[0])):
                position = card.end()
                yield card.span()


_KEY_FORMATS = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:(?!-----)[^\0])*+-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----|(?:(?:\s|\\n)*+[A-Za-z0-9+/=]{16,})++)"
    r"|(?<![0-9A-Za-z])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"  # AWS
    r"|gh[opsur]_[0-9A-Za-z]{30,}|github_pat_[0-9A-Za-z_]{22,}|glpat-[0-9A-Za-z_-]{20,}"
    r"|xox[a-z]-[0-9A-Za-z-]{10,}|AIza[0-9A-Za-z_-]{30,}|hf_[0-9A-Za-z]{30,}"
    r"|[prs]k_(?:live|test)_[0-9A-Za-z]{10,}|sk-(?=[A-Za-z_-]{0,99}+[0-9])[0-9A-Za-z_-]{20,}"
    r"|eyJ[0-9A-Za-z_-]{8,999}+\.[0-9A-Za-z_-]{8,}(?:\.[0-9A-Za-z_-]*)?)"  # JSON Web Token
)
_LOGIN = re.compile(r"://[^\s/@:\0]+:([^\s/@\0]+)@")
_NAMED_SECRET = re.compile(
    r"(?:(pass ?(?:word|wort|phrase|code)|passwd|pwd)|secret(?:[ _-]?key)?|api[ _-]?key|access[ _-]?key|token)"
    r"[\"']?(?:\s{0,3}(?:[:=]|=>|:=)\s{0,3}|\s{1,3}is:?\s{1,3})[\"'`]?([^\s\0\"'`<>]+)"
    r"|(?<![a-z])bearer\s{1,3}([^\s\0\"'`<>]+)",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"\$?\{|\$[A-Za-z_]\w*$|%[(A-Z]|\w+://|[\w.]+\(")


def _find_secrets(text: str) -> list[Span]:
    spans = [match.span() for match in _KEY_FORMATS.finditer(text)]
    text = _blank_out(text, spans)
    logins = [match.span(1) for match in _LOGIN.finditer(text)]
    text = _blank_out(text, logins)
    for match in _NAMED_SECRET.finditer(text):
        group = 2 if match[2] else 3
        value = match[group].rstrip(".,;:!?)]}")
        if _looks_secret(value, password=bool(match[1])):
            spans.append((match.start(group), match.start(group) + len(value)))
    return sorted(spans + logins)


def _looks_secret(value: str, password: bool) -> bool:
    """Return whether the value after "password:" or "token:" is a secret, and not the next word of a sentence."""
    if len(value) < (6 if password else 8) or _REFERENCE.match(value) or _EMAIL.fullmatch(value):
        return False
    letters, digits = any(map(str.isalpha, value)), any(map(str.isdigit, value))
    if letters and (digits or any(char in "!@#$%^&*+=~" for char in value)):
        return True
    if digits:
        return value.isdigit() and (password or len(value) >= 16)
    # GetMyPassword is a secret, Forgotten and FORGOTTEN are not.
    return letters and len(value) >= 12 and value.isalnum() and not (value[1:].islower() or value.isupper())


# If two kinds match the same characters, the first kind wins.
_FINDERS: dict[str, Callable[[str], Iterable[Span]]] = {
    "secret": _find_secrets,
    "email": lambda text: [match.span(1) for match in _EMAIL.finditer(text)],
    "iban": _find_ibans,
    "card": _find_cards,
    "phone": phone_numbers.find_phone_numbers,
}
