"""Personal data and secrets: what is found, what survives, and what becomes of it."""

import re
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from stdnum import iban, luhn, numdb

from insource.config.schema.data import Privacy
from insource.tasks.pii.redaction import PII_KINDS, find_pii, pseudonymize, redact, redact_values

# Written in two halves, so that no scanner takes them for real ones.
KEYS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "QWERTYUIOPASDFGH",
    "ghp" + "_16C7e42F292c6912E7710c838347Ae178B4a",
    "github" + "_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
    "glpat" + "-zYxWvUtSrQpOnMlKjI-1",
    "xoxb" + "-123456789012-abcdefABCDEF",
    "sk" + "-proj-a1B2c3D4e5F6g7H8i9J0",
    "sk" + "_live_4eC39HqLyjWDarjtT1zdp7dc",
    "AIza" + "SyA1234567890abcdefghijklmnopqrstuvw",
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nx0==\n-----END RSA PRIVATE KEY-----",
]


def found(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, text[finding.start : finding.end]) for finding in find_pii(text)]


PHONES = {
    "(415) 555-2671": "(415) 555-2671",
    "415-555-2671": "415-555-2671",
    "415.555.2671": "415.555.2671",
    "(415) - 555 - 2671": "(415) - 555 - 2671",
    "1-800-555-0134": "1-800-555-0134",
    "+1 555 0134": "+1 555 0134",
    "+1 415 555 2671 2 items": "+1 415 555 2671",
    "+49 (0)30 1234567": "+49 (0)30 1234567",
    "(+49) 30 123456": "(+49) 30 123456",
    "+4915112345678": "+4915112345678",
    "0049 30 123456": "0049 30 123456",
    "+44\u00a020\u00a07946\u00a00958": "+44\u00a020\u00a07946\u00a00958",
    "03-55423228": "03-55423228",
    "016-5498845": "016-5498845",
    "020 7946 0958": "020 7946 0958",
    "06 12 34 56 78": "06 12 34 56 78",
    "01.23.45.67.89": "01.23.45.67.89",
    "0171/1234567": "0171/1234567",
    "0155423228": "0155423228",
    "612 345 678": "612 345 678",
    "138 1234 5678": "138 1234 5678",
    "(11) 91234-5678": "(11) 91234-5678",
    "555-0134, please": "555-0134",
    "since 2018 415-555-2671": "415-555-2671",
    "call 415-555-2671 24/7": "415-555-2671",
    "call me at 4829104": "4829104",
    "Tel.4155552671": "4155552671",
    "phone no. 5552671": "5552671",
    "H/P: 016-5498845": "016-5498845",
    "WhatsApp 60165498845": "60165498845",
    "电话：４１５５５５２６７１": "４１５５５５２６７１",
    "٠١٦-٥٤٩٨٨٤٥": "٠١٦-٥٤٩٨٨٤٥",
}


@pytest.mark.parametrize("text", PHONES)
def test_a_phone_number_is_found(text: str) -> None:
    assert found(text) == [("phone", PHONES[text])]


@pytest.mark.parametrize(
    "text",
    [
        "2018-03-14 16:06",
        "14-03-2018",
        "14.03.2018",
        "call 14.03.2018",
        "20180314",
        "08/2024 09/2025",
        "open 08.30-17.00",
        "2018 2019, 2000-4000",
        "1.234.567,89",
        "123 456 789,00 EUR",
        "$ 123 456 789",
        "12 000 000",
        "1 234 567 890",
        "0.4155552671",
        "192.168.100.101",
        "version 10.0.19045.2364",
        "T000017",
        "4829104",
        "112-7749201-3388",
        "order 415-555-2671",
        "ORD-415-555-2671",
        "hotel 4829104",
        "invoice no. 0155423228",
        "978-3-16-148410-0",
        "100-200",
        "GST ID No : 000781500416",
        "000781500416",
        "9556040480066",
    ],
)
def test_a_number_that_is_no_phone_number_survives(text: str) -> None:
    assert found(text) == []


def test_two_phone_numbers_side_by_side_are_two() -> None:
    assert found("TEL: 03-55423228/03-55423229") == [("phone", "03-55423228"), ("phone", "03-55423229")]


@pytest.mark.parametrize(
    ("text", "email"),
    [
        ("Write to ann@example.org.", "ann@example.org"),
        ("<Ann.O'Neil+shop@mail.example.co.uk>,", "Ann.O'Neil+shop@mail.example.co.uk"),
        ("'joe@example.org'", "joe@example.org"),
        ("mailto:joe@example.org?subject=hi", "joe@example.org"),
        ("email=joe_1@xn--mller-kva.example", "joe_1@xn--mller-kva.example"),
        ("jürgen@müller.de!", "jürgen@müller.de"),
        ("jose\u0301@example.org", "jose\u0301@example.org"),
        ("联系ann@example.org谢谢", "ann@example.org"),
        ("ann＠example.org", "ann＠example.org"),
    ],
)
def test_an_email_address_is_found_without_what_stands_around_it(text: str, email: str) -> None:
    assert found(text) == [("email", email)]


@pytest.mark.parametrize("text", ["@ann", "ann@", "ann@@example.org", "ann@example", "5 @ 3.50", "a @ b.co"])
def test_an_at_sign_alone_is_no_email_address(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "card"),
    [
        ("4111 1111 1111 1111 12/27 123", "4111 1111 1111 1111"),
        ("4111-1111-1111-1111", "4111-1111-1111-1111"),
        ("card:4111111111111111.", "4111111111111111"),
        ("3782 822463 10005", "3782 822463 10005"),
        ("3056 930902 5904", "3056 930902 5904"),
    ],
)
def test_a_card_is_found(text: str, card: str) -> None:
    assert found(text) == [("card", card)]


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",
        "0.4111111111111111",
        "T4111111111111111",
        "1111 1111 1111 1117",
        "6935818350846",
        "2018030610100080498",
        "41 11111111111111",
    ],
)
def test_digits_that_are_not_those_of_a_card_survive(text: str) -> None:
    assert "card" not in {finding.kind for finding in find_pii(text)}


@pytest.mark.parametrize(
    "iban_text", ["DE89 3704 0044 0532 0130 00", "gb29nwbk60161331926819", "NL91-ABNA-0417-1643-00"]
)
def test_an_iban_is_found_whole_however_it_is_written(iban_text: str) -> None:
    assert found(f"pay to {iban_text} by Friday 12") == [("iban", iban_text)]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_found_in_prose_and_in_code(key: str) -> None:
    assert found(f"my key {key} leaked") == [("secret", key)]
    assert found(f'KEY="{key}"') == [("secret", key)]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("password: hunter2", "hunter2"),
        ("My Password is Hunter2!", "Hunter2"),
        ("Passwort: 123456.", "123456"),
        ("DB_PASSWORD='p@ssphrase'", "p@ssphrase"),
        ('{"api_key": "abcd1234efgh"}', "abcd1234efgh"),
        ("client_secret=AbcdEfghIjklMnop", "AbcdEfghIjklMnop"),
        ("Authorization: Bearer abc.def123-xyz", "abc.def123-xyz"),
        ("https://joe:pa55@example.org/x", "pa55"),
    ],
)
def test_what_is_said_to_be_a_secret_and_looks_like_one_is_found(text: str, secret: str) -> None:
    assert found(text) == [("secret", secret)]


@pytest.mark.parametrize(
    "text",
    [
        "token is invalid",
        "password: forgot",
        "Password: FORGOTTEN",
        "the secret is: nobody-knows-it",
        "my api key is not working",
        "the bearer of bad news",
        "token = read_token2(path)",
        "password=${DB_PASS1}",
        "sk-learn-is-a-library-that-i-like",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_prose_about_secrets_survives(text: str) -> None:
    assert found(text) == []


def test_a_text_is_redacted_with_one_number_a_value() -> None:
    text = "Ann@example.org or (415) 555-2671; again: ann@EXAMPLE.org, 415.555.2671, bob@example.org. Order 4829104."
    redacted = redact(text, PII_KINDS)
    assert redacted.text == "[EMAIL_1] or [PHONE_1]; again: [EMAIL_1], [PHONE_1], [EMAIL_2]. Order 4829104."
    assert redacted.values == {
        "[EMAIL_1]": "Ann@example.org",
        "[PHONE_1]": "(415) 555-2671",
        "[EMAIL_2]": "bob@example.org",
    }


def test_no_value_shows_in_what_may_be_logged() -> None:
    assert "ann" not in repr(redact("ann@example.org", PII_KINDS)) + repr(find_pii("ann@example.org"))


def test_numbers_go_on_above_the_placeholders_that_are_there() -> None:
    redacted = redact("[EMAIL_7] wrote to ann@example.org from [EMAIL_2] and [PHONE_1]", PII_KINDS)
    assert redacted.text == "[EMAIL_7] wrote to [EMAIL_8] from [EMAIL_2] and [PHONE_1]"
    assert redacted.values == {"[EMAIL_8]": "ann@example.org"}
    assert redact("[EMAIL_" + "9" * 5000 + "] ann@example.org", PII_KINDS).text.endswith(" [EMAIL_1]")


def test_kinds_not_asked_for_stay_and_hide_nothing_that_was_asked_for() -> None:
    text = "ann@example.org, 4111 1111 1111 1111, DE89 3704 0044 0532 0130 00, password: x1@example.org"
    assert redact(text, ()).text == text
    assert redact(text, ["phone"]).text == text
    assert redact(text, ["card"]).text == text.replace("4111 1111 1111 1111", "[CARD_1]")
    assert redact("token=abc123:ann@example.org", ["email"]).text == "token=abc123:[EMAIL_1]"


def test_the_kinds_are_those_of_a_recipe() -> None:
    (annotation,) = get_args(Privacy.model_fields["redact"].annotation)
    assert get_args(annotation) == PII_KINDS


def test_a_value_is_replaced_in_a_target_however_it_is_spelled_there() -> None:
    values = redact("(415) 555-2671, ANN@example.org, DE89 3704 0044 0532 0130 00, pwd: hunter2", PII_KINDS).values
    assert redact_values(values, "4155552671 / ann@Example.org") == "[PHONE_1] / [EMAIL_1]"
    assert redact_values(values, "de89370400440532013000 hunter2") == "[IBAN_1] [SECRET_1]"
    unrelated = "94155552671, joann@example.org, HUNTER2"
    assert redact_values(values, unrelated) == unrelated


def test_the_longest_value_is_replaced_first() -> None:
    values = {"[SECRET_1]": "hunter2", "[SECRET_2]": "hunter2hunter2"}
    assert redact_values(values, "hunter2hunter2 hunter2") == "[SECRET_2] [SECRET_1]"


def test_an_id_that_is_an_email_address_becomes_a_stable_pseudonym() -> None:
    assert pseudonymize("C01294", PII_KINDS) == "C01294"
    assert pseudonymize("ann@example.org", ["phone"]) == "ann@example.org"
    pseudonym = pseudonymize("ann@example.org", PII_KINDS)
    assert re.fullmatch(r"\[EMAIL:[0-9a-f]{12}\]", pseudonym)
    assert pseudonymize("ANN@example.org", PII_KINDS) == pseudonym != pseudonymize("bob@example.org", PII_KINDS)
    assert pseudonymize(pseudonym, PII_KINDS) == pseudonym


@st.composite
def ibans(draw: st.DrawFn) -> str:
    country = draw(st.sampled_from(["DE", "GB", "FR", "NL", "ES", "IT", "PL", "NO", "MT", "SE", "BR", "KW"]))
    letters = {"n": "0123456789", "a": "ABCDEFGHIJ", "c": "0123456789"}
    structure = numdb.get("iban").info(country)[0][1]["bban"]
    parts = [
        draw(st.text(letters[kind], min_size=int(length), max_size=int(length)))
        for length, kind in re.findall(r"(\d+)!([nac])", structure)
    ]
    account = "".join(parts)
    value = country + iban.calc_check_digits(f"{country}00{account}") + account
    spellings: list[str] = [value, value.lower(), iban.format(value), iban.format(value, "-")]
    return draw(st.sampled_from(spellings))


@st.composite
def cards(draw: st.DrawFn) -> str:
    digits = draw(st.from_regex(r"4[0-9]{11}|3[0-9]{12,13}|(2[2-7]|[4-6][0-9])[0-9]{13,16}", fullmatch=True))
    value = digits + luhn.calc_check_digit(digits)
    separator = draw(st.sampled_from(["", " ", "-"]))
    return separator.join(value[start : start + 4] for start in range(0, len(value), 4))


EMAILS = st.from_regex(
    r"[a-z][a-z0-9]{0,8}([.+_-][a-z0-9]{1,8})?@([a-z0-9]{1,8}\.){1,3}(com|org|io|museum)", fullmatch=True
)
SURROUNDINGS = st.text(st.characters(exclude_characters="[]", exclude_categories=["Cs"])).filter(
    lambda text: not re.search(r"\d|[+€$£¥₹]", text)
)
ANYTHING = st.lists(
    st.one_of(
        st.text(),
        st.text("0123456789 +-./()"),
        ibans(),
        cards(),
        EMAILS,
        st.sampled_from([*PHONES, *KEYS, "password: ", "token=", "call ", "order ", "[EMAIL_1]", "@", "://a:b1@"]),
    )
).map("".join)


@given(SURROUNDINGS, ibans(), SURROUNDINGS)
def test_every_valid_iban_is_found_in_any_surroundings(prefix: str, value: str, suffix: str) -> None:
    assume("://" not in prefix)
    assert ("iban", value) in found(f"{prefix}, {value} ({suffix}")


@given(SURROUNDINGS, cards(), SURROUNDINGS)
def test_every_valid_card_is_found_in_any_surroundings(prefix: str, value: str, suffix: str) -> None:
    assert ("card", value) in found(f"{prefix}; {value}\n{suffix}")


@given(SURROUNDINGS, EMAILS, SURROUNDINGS)
def test_every_email_address_is_found_in_any_surroundings(prefix: str, value: str, suffix: str) -> None:
    assert ("email", value) in found(f"{prefix} {value}, {suffix}")


@given(st.from_regex(r"[0-9]{10,20}", fullmatch=True))
def test_digits_that_fail_the_check_are_no_card(digits: str) -> None:
    assert luhn.is_valid(digits) or "card" not in {finding.kind for finding in find_pii(digits)}


@given(ibans(), st.integers(0, 9))
def test_an_iban_with_a_wrong_digit_is_none(value: str, digit: int) -> None:
    assume(value[-1] != str(digit) and value[-1].isdigit())
    assert "iban" not in {finding.kind for finding in find_pii(value[:-1] + str(digit))}


@given(ANYTHING)
def test_findings_are_ordered_and_never_overlap(text: str) -> None:
    findings = find_pii(text)
    assert all(0 <= finding.start < finding.end <= len(text) and finding.kind in PII_KINDS for finding in findings)
    assert all(current.end <= following.start for current, following in pairwise(findings))


@given(ANYTHING, st.sets(st.sampled_from(PII_KINDS)))
@example("0@0.AA0@0.AA4000 0000 0001 4", {"email", "card"})
@example("+49 123 456 4567890@example.org", set(PII_KINDS))
@example("KW81CBKUABCDEFGHIJKLMNOPQRSTUV1 a@b.io a@c.io a@d.io", set(PII_KINDS))
def test_a_redacted_text_is_redacted_no_further(text: str, kinds: set[str]) -> None:
    first_result = redact(text, kinds)
    second_result = redact(first_result.text, kinds)
    assert (second_result.text, second_result.values) == (first_result.text, {})


@given(ANYTHING)
def test_the_values_give_the_text_back_up_to_case_and_separators(text: str) -> None:
    assume("[EMAIL_" not in text)
    redacted = redact(text, PII_KINDS)
    restored = re.sub(r"\[[A-Z]+_[0-9]+\]", lambda match: redacted.values.get(match[0], match[0]), redacted.text)
    if len(redacted.values) == len(find_pii(text)):
        assert restored == text
    else:
        assert len(redacted.values) < len(find_pii(text))


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a@",
        "a.",
        "1 ",
        "0",
        "4111 ",
        "sk-",
        "eyJaaaaaaa1.",
        "token=",
        "(",
        "+1 415 ",
        "DE89 ",
        "://a:",
        "é",
        "0@0.AA",
        "a@b.co-",
        "4111111111111111.",
        KEYS[0] + "-",
        KEYS[5] + "_",
        "415-555-2671.",
    ],
)
def test_a_hostile_text_is_read_to_its_end(piece: str) -> None:
    text = piece * 4000 + " ann@example.org"
    assert found(text)[-1] == ("email", "ann@example.org")
