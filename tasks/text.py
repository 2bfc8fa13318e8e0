"""An input as the model sees it, and as it is compared with others.

    clean(" Where\\r\\nis  my card? ")            "Where\\nis my card?"
    duplicate_key("Where is my card?!")         "where is my card"

Preparation, serving and the gateway clean an input alike, because the model must see in use what it saw in training.
"""

import re
import unicodedata

DUPLICATE_KEY = "NFKC, lower case, punctuation and symbols as spaces, whitespace folded"

_NOT_WORDS = re.compile(r"[^\w]+|_+")
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
