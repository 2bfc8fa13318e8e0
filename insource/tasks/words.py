"""The words of a text, in scripts with and without spaces between words.

    split_words(duplicate_key("Where's my card?"))     ["where", "s", "my", "card"]
    split_words(duplicate_key("我的卡 VISA 5%"))        ["我", "的", "卡", "visa", "5"]

ROUGE, word shingles of near-duplicates, the linear baseline and the search for label errors use these words.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from insource.text.text_keys import duplicate_key

# Scripts without spaces between words: Thai to Tibetan, Burmese, Khmer, Tai Lue, kana and Han.
_UNSPACED = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3005\u3040-\u30ff\u31f0-\u31ff"
    r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Scripts in which one character carries the information of two or three letters: kana, Han, Hangul.
_DENSE = r"\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_HAS_UNSPACED = re.compile(rf"[{_UNSPACED}]")
_RUN = re.compile(rf"[{_DENSE}]+|[^{_DENSE}]+")
_HAS_DENSE = re.compile(rf"[{_DENSE}]")
_LONG_WORD = re.compile(r"\b\w\w+\b")
# Hebrew and Arabic upwards: scripts with vowel marks, scripts without spaces, and emoji.
_OTHER_SCRIPT = re.compile("[\u0300-\u036f\u0590-\u10ff\u1200-\u1dff\u2e80-\U000fffff]")
# Signs (smileys too) that a duplicate key keeps and that are not words in Google's rouge-score.
_SIGNS = frozenset("-+<>=$%#.*/^\u2639\u263a")


def split_words(key: str) -> list[str]:
    """Return the words of a duplicate key; each character of a script without spaces is a word.

    ASCII signs are not words, unless there is nothing else.
    """
    words = key.split() if key.isascii() or not _HAS_UNSPACED.search(key) else _WORD.findall(key)
    return [word for word in words if word not in _SIGNS] or words


def extract_terms(text: str) -> list[str]:
    """Return the features of a linear model: words of two letters or more, and pairs of adjacent words.

    A text with combining marks, without spaces, or without such words uses all words of its duplicate key.
    """
    lowered = text.lower()
    words = [] if _OTHER_SCRIPT.search(lowered) else _LONG_WORD.findall(lowered)
    words = words or split_words(duplicate_key(text))
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def is_inside_word(text: str, index: int) -> bool:
    """Return whether the position lies between two letters, or two digits, of a script with spaces."""
    if not 0 < index < len(text):
        return False
    pair = text[index - 1 : index + 1]
    return (pair.isalpha() or pair.isdigit()) and not (_HAS_UNSPACED.search(pair) or _HAS_DENSE.search(pair))


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of tokens, and the span of each token in it.

    Tokens are joined by spaces, except in scripts without spaces.
    """
    text, spans = "", []
    for token in tokens:
        boundary = text[-1:] + token[:1]
        text += "" if len(boundary) < 2 or len(_HAS_UNSPACED.findall(boundary)) == 2 else " "
        spans.append((len(text), len(text) + len(token)))
        text += token
    return text, spans


def split_runs(key: str) -> list[tuple[str, bool]]:
    """Return the key in runs of one kind: (text, whether the script is dense, see _DENSE)."""
    if not _HAS_DENSE.search(key):
        return [(key, False)]
    runs = [(run.strip(), bool(_HAS_DENSE.match(run))) for run in _RUN.findall(key)]
    return [entry for entry in runs if entry[0]]
