"""An input as the model sees it, and as it is compared with others.

    clean(" Where\\r\\nis  my card? ")            "Where\\nis my card?"
    duplicate_key("Where is my card?!")         "where is my card"
    duplicate_key("-5% of €90 👍")              "- 5 % of € 90 👍"
    label_key("Refund-Status ")                 "refund status"
    label_key("-1"), label_key("A+")            "-1", "a+"

Preparation and the gateway clean alike (inputs.py), so that the model sees what it saw in training. A request that
passes the gateway as it is (<recipe>:raw, or with the task's own prompt) is not cleaned.
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

# Characters that show nothing: soft hyphen, zero-width space, word joiner, byte order mark, marks of direction, the
# blanks of Hangul and Braille.
INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u2800\u3164\ufeff\uffa0]"
)
# These join or choose the shape of what stands beside them: part of how a text is written, not of what it says.
_JOINERS = re.compile("[\u034f\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# NFKC would read 10² and 10₂ as 102, and 1½ as 11⁄2.
_SUPERSCRIPTS = re.compile(
    "(?<=[0-9])(?=[\u00b2\u00b3\u00b9\u2070-\u208b\u00bc-\u00be\u2150-\u215f\u2189\u2460-\u249b])"
)

_DASH = "-\u2010\u2012\u2013\u2014\u2212"
_DASHES = re.compile(f"[{_DASH}]")
# Punctuation that carries meaning where it stands. It begins with one of a few characters, so that a search skips all
# others.
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
# The marks of a quoted mail, unless what follows is a number: "> 5 days".
_QUOTED = re.compile(r"(?:^|(?<=[\r\n]))[\s>]*>(?![ \t>]*[-+\u2212]?[$\u20ac\u00a3\u00a5]?\.?\d)")
# What _SIGNS found, until the other punctuation is gone. NFKC leaves none of these in a text but the smileys.
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
    """Returns the text in NFC, line ends as \\n, runs of spaces as one, blank lines as one, no blank edges."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def duplicate_key(text: str) -> str:
    """Returns what two texts share that say the same but for case, punctuation and spacing (see DUPLICATE_KEY).

    A text of punctuation alone, or of invisible characters, is its own key: "?" and "!" are not the same message.
    """
    folded = _fold(text)
    plain = _QUOTED.sub(" ", folded) if ">" in folded else folded
    key = " ".join(_SIGNS.sub(_protect_sign, plain).translate(_KEPT_CHARACTERS).split()) or " ".join(folded.split())
    return key or " ".join(unicodedata.normalize("NFC", text).split())


def split_key(key: str) -> str:
    """Returns what decides where the rows of a duplicate key go: its letters and digits.

    Keys once held no more than these. So rows stay in the splits that they had before keys knew signs and marks.
    """
    return _NOT_WORDS.sub(" ", key).strip() or key if _SIGN_OR_MARK.search(key) else key


def label_key(label: str) -> str:
    """Returns what spellings of one label share: "Refund-Status", "refund_status" and "refund status" are one.

    A hyphen or an underscore between two words is a space. Every other mark stays: -1 is not 1, A- is not A, C++ is not
    C. Quotation marks and dashes are the ones of the keyboard. A label of separators alone is its own key.
    """
    folded = _DASHES.sub("-", _fold(label.replace("\u00b4", "'")).translate(_STRAIGHT))
    spaced = " ".join(_UNDERSCORES.sub(" ", folded).split())
    return _HYPHENS.sub(" ", spaced) or folded


_STRAIGHT = str.maketrans("\u2018\u2019\u201b\u02bc\u201c\u201d\u201e\u201f", "'" * 4 + '"' * 4)
_UNDERSCORES = re.compile(r"(?<=[^\s_])_+(?=[^\s_])|(?<=\s)_+(?=\s)")
_HYPHENS = re.compile(r"(?<=[^\s-])-(?=[^\s-])| (?:- )+|(?<=[^\W\d])--+(?=[^\W\d])")


def _fold(text: str) -> str:
    """The text in NFKC and without case, without what cannot be seen."""
    if text.isascii():
        return text.lower()
    visible = _JOINERS.sub("", INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", _SUPERSCRIPTS.sub(" ", visible)).casefold())


def _protect_sign(match: re.Match[str]) -> str:
    return _PROTECTED_SIGNS.get(match[0]) or _PROTECTED_SIGNS.get(match[0][-1], _PROTECTED_SIGNS["-"])


class _KeptCharacters(dict[int, str]):
    """For str.translate: a letter, digit or combining mark as it is, a sign with spaces about it, else a space."""

    def __missing__(self, code: int) -> str:
        char, category = chr(code), unicodedata.category(chr(code))
        if category[0] in "LMN":
            replacement = char
        elif category in ("So", "Sm", "Sc") or char in "%\u2030" or 0x1F3FB <= code <= 0x1F3FF:
            # Frames of tables and marks of ownership say nothing.
            replacement = " " if 0x2500 <= code <= 0x259F or char in "|~¦©®\u2212\u2044\ufffd" else f" {char} "
        else:
            # The letters of a flag, of England or of Scotland, are invisible.
            replacement = char if 0xE0020 <= code <= 0xE007F else " "
        self[code] = replacement
        return replacement


_KEPT_CHARACTERS = _KeptCharacters({ord(_PROTECTED_SIGNS[sign]): f" {sign} " for sign in "-.#*/^"})
