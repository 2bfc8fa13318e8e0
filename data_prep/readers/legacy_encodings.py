"""Detection of encodings other than UTF-8, UTF-16 and UTF-32, from the bytes of a text.

b"Gr\\xfc\\xdfe"   latin-1
b"\\x93Hi\\x94"   cp1252
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

# Bytes above ASCII that are enough to detect an encoding.
DETECTION_BYTES = 1 << 20
UTF8_CHARACTER = re.compile(rb"[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
UNDEFINED_IN_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
# Adjacent letters above ASCII are rare in Western languages, except for doubled ones and those in ação, compañía,
# Grüße.
COMMON_LETTER_PAIRS = "çã çõ çá çâ çó çú çé çê éç ñá ñé ñí ñó ñú äß öß üß"
COMMON_PAIR_PATTERN = "|".join(f"{COMMON_LETTER_PAIRS} {COMMON_LETTER_PAIRS.upper().replace('SS', 'ß')}".split())
UNLIKELY_PAIR = re.compile(f"(?!{COMMON_PAIR_PATTERN})([À-ÿ])(?!\\1)[À-ÿ]".encode("latin-1") + rb"|[\x80-\xff]{4}")
# Apostrophes, dashes, dots, hyphens and spaces may occur between letters; a pound sign or a brace may not.
SYMBOL_IN_WORD = re.compile(
    rb"[a-z][\x80-\x84\x86-\x89\x8b\x93-\x95\x98-\x99\x9b\xa1-\xac\xae-\xb3\xb5\xb6\xb8-\xbf][a-z]"
)
SYMBOLS = {
    bytes([byte]).decode("cp1252", "replace")
    for byte in {*range(0x80, 0xC0), 0xD7, 0xF7} - {*b"\x8a\x8c\x8e\x9a\x9c\x9e\x9f"}
}
ALPHABETS = {
    language: {*letters, *letters.upper()} - {"S"}
    for language, letters in {
        "French": "àâæçèéêëîïôœùûü",
        "German": "äöüßéà",
        "Spanish, Catalan": "áéíñóúüçïàèò",
        "Portuguese": "áâãàçéêíóôõú",
        "Italian": "àèéìíîòóùú",
        "Nordic": "åäæéöøüà",
        "Dutch": "äéèëïöüêá",
    }.items()
}
# The letters that most of a text consists of: kana and Han, Hangul, Han, and single-byte alphabets. Any bytes decode to
# letters of some single-byte alphabet, but rarely nearly all to lower case.
SCRIPT_LETTERS = {
    "cp932": re.compile("[\u3000-\u30ff\u4e00-\u9fff\uff01-\uff5e]"),
    "cp949": re.compile("[\uac00-\ud7af]"),
    "gb18030": re.compile("[\u3000-\u303f\u4e00-\u9fff\uff01-\uff5e]"),
    "big5": re.compile("[\u3000-\u303f\u4e00-\u9fff\uff01-\uff5e]"),
    "cp874": re.compile("[\u0e00-\u0e7f]"),
    "cp1251": re.compile("[\u0400-\u04ff]"),
    "koi8-r": re.compile("[\u0400-\u04ff]"),
    "cp1253": re.compile("[\u0370-\u03ff]"),
    "cp1255": re.compile("[\u0590-\u05ff]"),
    "cp1256": re.compile("[\u0600-\u06ff]"),
}


def is_mostly_utf8(blocks: Iterator[bytes]) -> bool:
    """Return whether three in four of the bytes above ASCII are UTF-8; in GBK and Shift-JIS some are by chance."""
    n_high = fitting = 0
    for block in blocks:
        fitting += sum(map(len, UTF8_CHARACTER.findall(block)))
        n_high += len(block.translate(None, bytes(range(128))))
        if n_high > DETECTION_BYTES:
            break
    return fitting >= 0.75 * n_high


def find_fitting_codecs(head: bytes) -> list[str]:
    """Return up to four encodings that fit the first MiB, the most plausible first.

    A codec fits if nearly all letters above ASCII are in its alphabet. A few letters above ASCII are accents, not an
    alphabet. The order is by the fraction of letters that are lower case or have no case.
    """
    head = head[: head.rfind(b"\n") + 1] or head
    scores = {}
    for codec, pattern in SCRIPT_LETTERS.items():
        with suppress(UnicodeDecodeError):
            letters = [character for character in head.decode(codec) if character > "\x7f"]
            fitting = [character for character in letters if pattern.match(character)]
            accents = codec.startswith(("cp12", "koi8")) and len(letters) < sum(map(head.count, b"aeiou"))
            if len(fitting) >= 0.9 * len(letters) and not accents:
                scores[codec] = sum(character == character.lower() for character in fitting) / max(len(letters), 1)
    return sorted(scores, key=lambda codec: -scores[codec])[:4]


def detect_western(blocks: Iterator[bytes]) -> str | None:
    """Return "latin-1" or "cp1252" for Western European text, "utf-8" if some of it is UTF-8, else None.

    Other encodings are rejected, not misread. Cyrillic, Greek and Chinese have adjacent letters above ASCII. Polish and
    MacRoman put symbols inside words. Czech, Hungarian and Turkish need letters that no single Western language has.
    """
    byte_counts: Counter[int] = Counter()
    n_unlikely = 0
    tail = b""
    for block in blocks:
        window, tail = tail + block, block[-3:]
        if UTF8_CHARACTER.search(window):
            return "utf-8"
        if UNDEFINED_IN_CP1252.search(window):
            return None
        if byte_counts.total() < DETECTION_BYTES:
            byte_counts.update(block.translate(None, bytes(range(128))))
            n_unlikely += len(SYMBOL_IN_WORD.findall(window)) + len(UNLIKELY_PAIR.findall(window))
    letters = Counter(
        {char: byte_counts[byte] for byte in byte_counts if (char := bytes([byte]).decode("cp1252")) not in SYMBOLS}
    )
    fitting = max(sum(letters[char] for char in alphabet) for alphabet in ALPHABETS.values())
    if n_unlikely > 0.05 * byte_counts.total() or fitting < 0.95 * letters.total():
        return None
    return "cp1252" if any(0x80 <= byte < 0xA0 for byte in byte_counts) else "latin-1"
