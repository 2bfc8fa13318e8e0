"""An input as the model sees it, and as it is compared with others.

    clean(" Where\\r\\nis  my card? ")            "Where\\nis my card?"
    duplicate_key("Where is my card?!")         "where is my card"
    label_key("Refund-Status ")                 "refund status"

Preparation cleans. What serves does not: a client cleans what it sends, so that the model sees what it saw in training.
"""

import re
import unicodedata

DUPLICATE_KEY = "NFKC, lower case, punctuation and symbols as spaces, whitespace folded"

_NOT_WORDS = re.compile(r"[^\w]+|_+")
_SEPARATORS = re.compile(r"[\s_-]+")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(text: str) -> str:
    """Returns the text in NFC, line ends as \\n, runs of spaces as one, blank lines as one, no blank edges."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def duplicate_key(text: str) -> str:
    """Returns what two texts share that say the same but for case, punctuation and spacing (see DUPLICATE_KEY).

    A text of punctuation alone is its own key: "?" and "!" are not the same message.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_WORDS.sub(" ", folded).strip() or " ".join(folded.split())


def label_key(label: str) -> str:
    """Returns what spellings of one label share: "Refund-Status", "refund_status" and "refund status" are one.

    Punctuation stays, as in "C" and "C++", and a label of separators alone is its own key.
    """
    folded = unicodedata.normalize("NFKC", label).casefold()
    return _SEPARATORS.sub(" ", folded).strip() or folded
