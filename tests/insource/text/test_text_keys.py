"""Text identity: what two texts share that say the same, in every script, and what near-duplicates are made of."""

import re
import unicodedata

import pytest

from data_prep import minhash
from insource.tasks.words import extract_terms, split_words
from insource.text.text_keys import duplicate_key, split_key


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("\u0915\u093e\u0932", "\u0915\u0940\u0932"),  # Hindi: time, nail
        ("\u0e44\u0e21\u0e48\u0e14\u0e35", "\u0e44\u0e21\u0e48\u0e14\u0e39"),  # Thai: not good, not looking
        ("\u09a6\u09bf\u09a8", "\u09a6\u09be\u09a8"),  # Bengali: day, gift
        ("\u05e9\u05c1\u05dc\u05d5\u05dd", "\u05e9\u05c2\u05dc\u05d5\u05dd"),  # Hebrew, by its points
        ("great \U0001f44d", "great \U0001f44e"),
        ("from \U0001f1e9\U0001f1ea", "from \U0001f1eb\U0001f1f7"),
        ("pay $5", "pay \u20ac5"),
        ("it is -5 here", "it is 5 here"),
        ("5% off", "5 off"),
        ("I write C#", "I write C++"),
        ("x < 5", "x > 5"),
        ("a != b", "a = b"),
        ("10\u00b2", "102"),
        ("take .5", "take 5"),
        ("what is 12 * 3?", "what is 12 / 3?"),
        ("what is 12*3?", "what is 12-3?"),
        ("2^3", "2 3"),
        ("nice one :)", "nice one :("),
        ("so good ;-)", "so good"),
        ("great:( ", "great:)"),
        ("> 5 days", "5 days"),
        (">5", "<5"),
        ("10\u2082", "102"),
    ],
)
def test_texts_that_a_sign_tells_apart_have_keys_of_their_own(first: str, second: str) -> None:
    assert duplicate_key(first) != duplicate_key(second)
    assert split_words(duplicate_key(first)) != [] != split_words(duplicate_key(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Where's my CARD?!", "where s my card"),
        ("5 % off - today", "5% off, today"),
        ("> quoted\n> twice", "quoted twice"),
        ("good\u200b \u2764\ufe0f", "GOOD \u2764"),
        ("well-known \u2013 really", "well known really"),
        ("caf\u00e9", "cafe\u0301"),
        ("2020\u20132021", "2020-2021"),
        ("\u00bd cup", "1/2 cup"),
        ("12/3", "12 / 3."),
        ("thanks :-)", "Thanks! \u263a"),
        ("note:(see below), and/or", "note see below and or"),
        (">> quoted", "quoted"),
    ],
)
def test_texts_that_say_the_same_have_one_key(first: str, second: str) -> None:
    assert duplicate_key(first) == duplicate_key(second)


def test_a_text_of_which_nothing_is_seen_has_a_key_and_words() -> None:
    assert duplicate_key("\u00ad") != duplicate_key("\u200b") != ""
    assert split_words(duplicate_key("<")) == ["<"]


@pytest.mark.parametrize(
    "text",
    ["-5% of \u20ac90!", "I write C# and C++", "great \U0001f44d", "\u0915\u093e\u0932", "a_b", "2*3/4 is > 1 :-)"],
)
def test_rows_go_where_their_letters_and_digits_send_them(text: str) -> None:
    # What keys were before they held signs and marks: splits of data that is prepared anew stay as they were.
    cleaned = re.sub(r"[^\w]+|_+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    assert split_key(duplicate_key(text)) == cleaned


def test_words_are_characters_where_a_script_puts_no_spaces_and_no_ascii_signs() -> None:
    assert split_words(duplicate_key("\u6211\u7684\u5361 VISA, -5%")) == ["\u6211", "\u7684", "\u5361", "visa", "5"]
    assert split_words(duplicate_key("\u0915\u093e\u0932 here")) == ["\u0915\u093e\u0932", "here"]


def test_near_duplicates_are_found_where_no_spaces_are() -> None:
    key = duplicate_key(
        "\u8bf7\u95ee\u6211\u7684\u4fe1\u7528\u5361\u4ec0\u4e48\u65f6\u5019\u80fd\u591f\u5bc4\u5230\u5bb6"
    )
    near_key = key.replace("\u80fd\u591f", "\u80fd")
    distant_key = duplicate_key(
        "\u8bf7\u95ee\u6211\u7684\u9000\u6b3e\u51fa\u4e86\u95ee\u9898\u8c01\u6765\u5904\u7406\u4e00\u4e0b"
    )
    for kind in ("char5", "word2"):
        similarity = minhash.jaccard(minhash.shingles(key, kind), minhash.shingles(near_key, kind))
        assert similarity > 0.75 > minhash.jaccard(minhash.shingles(key, kind), minhash.shingles(distant_key, kind))
    assert minhash.shingles("my card", "char5") == {"my ca", "y car", " card"}
    assert minhash.shingles("visa \u6211\u7684\u5361", "char5") == {"visa", "\u6211\u7684", "\u7684\u5361"}


def test_doubts_see_words_in_every_script_and_the_usual_ones_in_english() -> None:
    assert extract_terms("My card, a card") == ["my", "card", "card", "my card", "card card"]
    assert extract_terms("\u9000\u6b3e") == ["\u9000", "\u6b3e", "\u9000 \u6b3e"]
    assert extract_terms("\u0915\u093e\u0932") == ["\u0915\u093e\u0932"]
    assert extract_terms("a \U0001f44d") == ["a", "\U0001f44d", "a \U0001f44d"]
    assert extract_terms("x y") == ["x", "y", "x y"]
    assert extract_terms("?!") == ["?!"]
