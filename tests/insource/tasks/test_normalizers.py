"""Values of fields: spellings of one value are equal where a recipe says so, and different values never are."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insource.tasks.records.normalizers import normalize
from tests.helpers.property_tests import examples

NORMALIZERS = ("whitespace", "case", "punctuation", "amount", "date_dmy", "date_mdy")


@examples(300)
@given(
    st.text(max_size=20) | st.text("0123456789.,-/ ()RM€'JanFeb:+T", max_size=14),
    st.lists(st.sampled_from(NORMALIZERS), unique=True),
)
def test_normalizing_settles_at_once(text: str, normalizers: list[str]) -> None:
    normalized = normalize(text, normalizers)
    assert normalize(normalized, normalizers) == normalized


@pytest.mark.parametrize(
    ("normalizer", "spellings"),
    [
        ("amount", ("RM 1,234.50", "1.234,50 €", "1234.5", "$1 234.50", "CHF 1'234.50", 1234.5)),
        ("amount", ("9.00", "9", "9.0", "RM9", "EUR 9,00")),
        ("amount", ("-9.00", "(9.00)", "RM-9.00", "9.00-")),
        (
            "date_dmy",
            ("02 APR 2018", "2/4/18", "2018-04-02", "(02.04.2018)", "April 2nd, 2018", "20180402", "2-Apr-18"),
        ),
        ("date_mdy", ("04/02/2018", "02 APR 2018", "2018/4/2", "4-2-18 18:31")),
        ("date_dmy", ("04/13/2018", "13/04/2018")),
        ("whitespace", ("a\n b", " a b")),
        ("case", ("STRASSE", "straße")),
        ("punctuation", ("7/4,KAWASAN", "7/4, KAWASAN.")),
    ],
)
def test_spellings_of_one_value_are_equal(normalizer: str, spellings: tuple[Any, ...]) -> None:
    assert len({normalize(spelling, [normalizer]) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("normalizer", "first", "second"),
    [
        ("amount", "9.00", "90.0"),
        ("amount", "1,234.50", "1,234.05"),
        ("amount", "9.00", "-9.00"),
        ("date_dmy", "02/04/2018", "04/02/2018"),
        ("date_dmy", "31/02/2018", "03/03/2018"),
        ("punctuation", "7/4", "74"),
        ("punctuation", "?", "!"),
        ("whitespace", "a b", "ab"),
    ],
)
def test_different_values_stay_different(normalizer: str, first: str, second: str) -> None:
    assert normalize(first, [normalizer]) != normalize(second, [normalizer])


def test_what_cannot_be_read_stays_as_it_is() -> None:
    assert normalize(" 12.5.3  each", ["amount"]) == "12.5.3 each"
    assert normalize("next  Monday", ["date_dmy"]) == "next Monday"
