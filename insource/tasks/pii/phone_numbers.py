"""Phone numbers in a text, found by their shape, because the country of a text is seldom known.

"call 415-555-2671 or +44 20 7946 0958 about order 4829104 of 2026-03-14"    [(5, 17), (21, 37)]
"""

import re
from collections.abc import Iterator

_PHONE_RUN = re.compile(r"[0-9](?:[ ()./-]{0,4}[0-9]){6,}")
_SEPARATOR = r"(?:[ ]?-[ ]?|[./ ]|[ ]?\(|\)[ ]?-?[ ]?|\)[ ]?\()"
_GAP = r"(?:[ ]?-[ ]?|[/ ])"
# Digit groups of numbers without a leading 0: 3-3-4 in North America, 3-2-2-2 in Spain, 3-4-4 in China, ...
_GROUPS = "|".join(
    _GAP.join(f"[0-9]{{{size}}}" for size in str(shape))
    for shape in (1334, 13322, 12222, 11222, 3322, 3222, 2322, 2222, 344, 334, 323, 433, 254, 244, 154, 144, 55)
)
_PHONE = re.compile(
    rf"""(?<![0-9A-Za-z_])(?<![0-9][-.,()+])(?:
    (?P<plus>  # country code 1 has ten digits after it: what follows them is something else
        \(\+[1-9][0-9]{{0,3}}\)[ -]?[0-9](?:{_SEPARATOR}?[0-9]){{4,12}}
        |\+\(?(?:1(?:{_SEPARATOR}?[0-9]){{6,10}}|[2-9](?:{_SEPARATOR}?[0-9]){{6,14}})
    )|(?P<national>
        00{_SEPARATOR}?[1-9](?:{_SEPARATOR}?[0-9]){{6,14}}
        |0[1-9](?:[0-9]{{7,9}}|(?=[0-9]{{0,4}}{_SEPARATOR}[0-9])(?:(?:{_SEPARATOR}(?=[0-9]{{2}}))?[0-9]){{6,10}})
        |\((?!(?:19|20)[0-9]{{2}}\))(?:0[0-9]{{0,4}}|[1-9][0-9]{{1,4}})\)[ ]?-?[ ]?[0-9](?:{_SEPARATOR}?[0-9]){{4,8}}
        |(?<![€$£¥₹])(?<![€$£¥₹][ ])(?:{_GROUPS}
            |(?:1[-. ])?[0-9]{{3}}\.[0-9]{{3}}\.[0-9]{{4}}
            |[0-9]{{3}}{_GAP}[0-9]{{3}}{_GAP}(?!000)[0-9]{{3}}
            # These two might as well be a range: 2000-4000, 2018 2019.
            |[2-9](?![0-9]00-..00)[0-9]{{2}}-[0-9]{{4}}
            |(?!1|19|20|..00[ -]..00)[0-9]{{4}}[ -](?!19|20)[0-9]{{4}}
        )(?![ ]?[€$£¥₹%])
    )|(?P<labelled>[0-9](?:{_SEPARATOR}?[0-9]){{6,14}})
    )(?![0-9@])(?!(?!(?:[xX]|ext)[. ]?[0-9])[A-Za-z_])(?![-.,:][0-9]|-[A-Za-z])""",
    re.VERBOSE,
)
_LABEL_WORDS = re.compile(r"[^\W\d_]+(?:/[pPcC]\b)?|[0-9#\0]")
_FILLER = re.compile(r"#|is|at|on|no|nr|num|number|me|us|him|her|them|my|back|home|office|work|code")
_PHONE_LABEL = re.compile(
    r"tel|call|dial|cell|sms|ph|h/p|hp|viber|fax|(?:phone|telef|teleph|teléf|téléph|mobil|móvil|handy|whatsapp|hotline"
    r"|rufn).*|.*(?:phone|电话|電話|手机|手機|전화)"
)
_OTHER_LABEL = re.compile(
    r"ids?|inv|ref|gst|vat|tax|acct|a/c|reg|sku|slip|bill|doc|ean|upc|imei|item|article|(?:order|invoice|ticket|account|track"
    r"|booking|receipt|parcel|serial|isbn|reference|document|contract|version|bestell|rechnung|auftrag).*"
)
_NO_PHONE = re.compile(
    r"(?<![0-9A-Za-z_+])(?<![0-9][-./])(?:"
    r"(?:19|20)[0-9]{2}([-/.])(?:0?[1-9]|1[0-2])\1[0-3]?[0-9]"  # 2018-03-14
    r"|[0-3]?[0-9]([-/. ])[0-3]?[0-9]\2(?:19|20)[0-9]{2}"  # 14.03.2018
    r"|(?:0?[1-9]|1[0-2])[-/.](?:19|20)[0-9]{2}(?! [0-9])"  # 03/2018
    r"|[0-2]?[0-9]([.:])[0-5][0-9](?:\3[0-5][0-9])?(?:-[0-2]?[0-9]\3[0-5][0-9])?"  # 16:06
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3}"  # 192.168.10.1
    r"|[1-9][0-9]{0,2}([.,'])[0-9]{3}(?:\4[0-9]{3})*(?:[.,][0-9]{1,2})?"  # 1.234.567,89
    r"|[1-9][0-9]?(?: [0-9]{3}){2,}(?! [0-9])"  # 12 000 000
    r")(?![0-9])(?![-./:][0-9])"
)


def find_phone_numbers(text: str) -> list[tuple[int, int]]:
    """Return the spans of phone numbers.

    Digits and separators (space, hyphen, dot, slash, brackets) are a phone number if

    1. they begin with "+" or "00", and 7 to 15 digits follow, or
    2. they are grouped as in some country: (415) 555-2671, 020 7946 0958, 016-5498845, 612 345 678, 555-2671, or
    3. they are 9 to 11 digits without separators, and begin with a single 0, or
    4. they are 7 to 15 digits after a word such as tel, phone, call, mobile, fax, whatsapp.

    Parts of a code (ORD-415-555-2671), dates, times, amounts, IPv4 addresses and versions are excluded. So are numbers
    after a word such as order, invoice or id, except for rule 1 with a plus and rule 4.
    """
    spans = list(_find_spans(text))
    # Few texts need this second, slower pass without dates, times, amounts and addresses.
    return list(_find_spans(_NO_PHONE.sub(lambda match: "\0" * len(match[0]), text))) if spans else []


def _find_spans(text: str) -> Iterator[tuple[int, int]]:
    for run in _PHONE_RUN.finditer(text):
        position, label = max(0, run.start() - 2), _classify_label(text, run.start())
        is_plain_number = (run[0].isdigit() and run[0][0] != "0") or (label == "other" and " " not in run[0])
        if is_plain_number and label != "phone" and "+" not in text[position : run.start()]:
            continue  # an order number, most of the time
        while (match := _PHONE.search(text, position, run.end() + 6)) and match.start() < run.end():
            position, label = match.start(), _classify_label(text, match.start())
            is_code = text[position - 1 : position] == "-" and text[position - 2 : position - 1].isalnum()
            if match["plus"] or label == "phone" or (match["national"] and not label and not is_code):
                yield match.span()
            position = match.end() if match["plus"] or match["national"] or label == "phone" else position + 1


def _classify_label(text: str, start: int) -> str:
    """Return the type that the words before a number suggest: "phone", "other" (an order, an id), or ""."""
    # The window may begin inside a word (the "tel" of hotel), so its first word is dropped.
    words = _LABEL_WORDS.findall(text, max(0, start - 32), start)[start > 32 :]
    for word in map(str.lower, reversed(words[-4:])):
        if _PHONE_LABEL.fullmatch(word):
            return "phone"
        if _OTHER_LABEL.fullmatch(word):
            return "other"
        if not _FILLER.fullmatch(word):
            break
    return "other" if words[-1:] == ["#"] else ""
