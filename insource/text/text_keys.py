"""Cleaning of inputs, and keys that compare texts and labels.

    clean(" Where\\r\\nis  my card? ")            "Where\\nis my card?"
    duplicate_key("Where is my card?!")         "where is my card"
    duplicate_key("-5% of €90 👍")              "- 5 % of € 90 👍"
    label_key("Refund-Status ")                 "refund status"
    label_key("-1"), label_key("A+")            "-1", "a+"

Preparation and the gateway clean in the same way (pii/inputs.py), so that the model reads inputs as in training. The
gateway does not clean raw requests (<recipe>:raw, or with the task's own prompt).
"""

import re
import unicodedata

DUPLICATE_KEY_RULE = (
    "NFKC, lower case, invisible characters removed, punctuation as spaces, whitespace folded; letters, digits, "
    "combining marks, emoji and smileys, currency and mathematical signs kept, the signs of numbers and percentages, "
    "and *, / and ^ between numbers"
)

_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")

# Invisible characters: soft hyphen, zero-width space, word joiner, byte order mark, direction marks, the blanks of
# Hangul and Braille.
INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u2800\u3164\ufeff\uffa0]"
)
# Joiners and variation selectors change the shape of adjacent characters, not the meaning of the text.
_JOINERS = re.compile("[\u034f\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# NFKC turns 10² and 10₂ into 102, and 1½ into 11⁄2.
_SUPERSCRIPTS = re.compile(
    "(?<=[0-9])(?=[\u00b2\u00b3\u00b9\u2070-\u208b\u00bc-\u00be\u2150-\u215f\u2189\u2460-\u249b])"
)

_DASH = "-\u2010\u2012\u2013\u2014\u2212"
_DASHES = re.compile(f"[{_DASH}]")
# Punctuation with a meaning in its context. The pattern begins with a small character set, which makes search fast.
_SIGNS = re.compile(
    rf"[{_DASH}.#!*^/\u2044:;](?:"
    rf"(?<=[{_DASH}])(?<![\w.].)(?=\.?\d)"  # -5
    r"|(?<=\.)(?<![\w.]\.)(?=\d)"  # .5
    r"|(?<=[^\W\d_]#)(?!\w)"  # C#
    rf"|(?<=[a-f]-)(?<!\w[a-f]-)(?![{_DASH}\w])"  # the grade B-
    r"|(?<=!)="
    r"|(?<=[*^/\u2044])(?:(?<=[\d)].)|(?<=[\d)] .))(?= ?[\d(])"  # 12 * 3, 12/3
    r"|(?<=[:;])(?:(?<!\w.)['\u2019]?-?[()]|['\u2019]?-?[()](?!\S)))"  # :-)
)
_NOT_WORDS = re.compile(r"[^\w]+|_+")
_SIGN_OR_MARK = re.compile(r"[^\w ]|_")
# Quotation marks of a mail, unless a number follows: "> 5 days".
_QUOTED = re.compile(r"(?:^|(?<=[\r\n]))[\s>]*>(?![ \t>]*[-+\u2212]?[$\u20ac\u00a3\u00a5]?\.?\d)")
# Placeholders of _SIGNS matches while other punctuation is removed. After NFKC a text has none of them but smileys.
_PROTECTED_SIGNS = {
    "-": "\uff0d",
    ".": "\uff0e",
    "#": "\uff03",
    "!=": "\u2260",
    "*": "\uff0a",
    "/": "\uff0f",
    "^": "\uff3e",
    "\u2044": "\uff0f",
    ")": "\u263a",
    "(": "\u2639",
}


def clean(text: str) -> str:
    """Return the text in NFC, with \\n line ends, single spaces, at most one blank line in a row, no blank edges."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def duplicate_key(text: str) -> str:
    """Return a key that texts share if they differ only in case, punctuation and spacing (see DUPLICATE_KEY_RULE).

    A text of only punctuation or invisible characters is its own key: "?" and "!" are different messages.
    """
    folded = _fold(text)
    plain = _QUOTED.sub(" ", folded) if ">" in folded else folded
    key = " ".join(_SIGNS.sub(_protect_sign, plain).translate(_KEPT_CHARACTERS).split()) or " ".join(folded.split())
    return key or " ".join(unicodedata.normalize("NFC", text).split())


def split_key(key: str) -> str:
    """Return the letters and digits of a duplicate key, which decide the split of its rows.

    Older versions of duplicate_key kept only letters and digits. With this key, rows stay in their earlier splits.
    """
    return _NOT_WORDS.sub(" ", key).strip() or key if _SIGN_OR_MARK.search(key) else key


def label_key(label: str) -> str:
    """Return a key that spellings of one label share: "Refund-Status", "refund_status" and "refund status".

    A hyphen or underscore between two words is a space. Every other mark stays: -1 is not 1, A- is not A, C++ is not C.
    Typographic quotes and dashes become ASCII. A label of only separators is its own key.
    """
    folded = _DASHES.sub("-", _fold(label.replace("\u00b4", "'")).translate(_TYPOGRAPHIC_TO_ASCII))
    spaced = " ".join(_UNDERSCORES.sub(" ", folded).split())
    return _HYPHENS.sub(" ", spaced) or folded


_TYPOGRAPHIC_TO_ASCII = str.maketrans("\u2018\u2019\u201b\u02bc\u201c\u201d\u201e\u201f", "'" * 4 + '"' * 4)
_UNDERSCORES = re.compile(r"(?<=[^\s_])_+(?=[^\s_])|(?<=\s)_+(?=\s)")
_HYPHENS = re.compile(r"(?<=[^\s-])-(?=[^\s-])| (?:- )+|(?<=[^\W\d])--+(?=[^\W\d])")


def _fold(text: str) -> str:
    """Return the text in NFKC, case-folded, without invisible characters."""
    if text.isascii():
        return text.lower()
    visible = _JOINERS.sub("", INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", _SUPERSCRIPTS.sub(" ", visible)).casefold())


def _protect_sign(match: re.Match[str]) -> str:
    return _PROTECTED_SIGNS.get(match[0]) or _PROTECTED_SIGNS.get(match[0][-1], _PROTECTED_SIGNS["-"])


class _KeptCharacters(dict[int, str]):
    """Mapping for str.translate: letters, digits and combining marks unchanged, signs surrounded by spaces, else a
    space.
    """

    def __missing__(self, code: int) -> str:
        char, category = chr(code), unicodedata.category(chr(code))
        if category[0] in "LMN":
            replacement = char
        elif category in ("So", "Sm", "Sc") or char in "%\u2030" or 0x1F3FB <= code <= 0x1F3FF:
            # Table frames and trademark signs have no meaning here.
            replacement = " " if 0x2500 <= code <= 0x259F or char in "|~¦©®\u2212\u2044\ufffd" else f" {char} "
        else:
            # Tag characters (in the flags of England and Scotland) are kept.
            replacement = char if 0xE0020 <= code <= 0xE007F else " "
        self[code] = replacement
        return replacement


_KEPT_CHARACTERS = _KeptCharacters({ord(_PROTECTED_SIGNS[sign]): f" {sign} " for sign in "-.#*/^"})
