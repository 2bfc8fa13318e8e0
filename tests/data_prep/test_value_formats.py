"""Numbers, truth values and dates as tables write them: read right, or their row is told and left out."""

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.rows.value_formats import parse_record_values
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.data import Formats, Task
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.tasks import extraction
from insource.tasks.records.json_fields import canonicalize
from insource.tasks.records.normalizers import parse_amount, parse_number
from insource.tasks.source_record import UnusableRowError
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.prepared_rows import prepare_data, write_rows

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "pages": {"type": "integer"},
        "currency": {"type": "string", "maxLength": 10},
        "issued": {"type": "string", "maxLength": 30},
        "paid": {"type": "boolean"},
        "prices": {"type": "array", "maxItems": 3, "items": {"type": "number"}},
    },
}
TASK = (
    "{kind: extraction, instruction: Read the bill., json_schema: {type: object, properties: {total: {type: number}, "
    "pages: {type: integer}, currency: {type: string, maxLength: 10}, issued: {type: string, maxLength: 30}, "
    "paid: {type: boolean}}}}"
)


@pytest.mark.parametrize(
    ("text", "decimal", "number"),
    [
        ("1.234,56", ",", 1234.56),
        ("1 234,56", ",", 1234.56),
        ("1\u00a0234,56", ",", 1234.56),
        ("1\u202f234,56", ",", 1234.56),
        ("1'234.56", ".", 1234.56),
        ("1\u2019234.56", ".", 1234.56),
        ("1,234.56", ".", 1234.56),
        ("12,34,567.5", ".", 1234567.5),
        ("1.234.567", ",", 1234567),
        ("1.234", ",", 1234),
        ("1,234", ",", 1.234),
        ("1,234", ".", 1234),
        ("0,5", ",", 0.5),
        (",5", ",", 0.5),
        ("007", ",", 7),
        ("-12,5", ",", -12.5),
        ("\u221212,5", ",", -12.5),
        ("12,5-", ",", -12.5),
        ("(12,50)", ",", -12.5),
        ("+12,5", ",", 12.5),
        (" 12,5 ", ",", 12.5),
        ("129,-", ",", 129),
        ("1,5E+3", ",", 1500.0),
        ("1.5e-3", ".", 0.0015),
    ],
)
def test_numbers_are_read_by_the_sign_before_their_decimals(text: str, decimal: str, number: float) -> None:
    assert parse_number(text, decimal) == number


@pytest.mark.parametrize(
    ("text", "decimal"),
    [
        ("12.5", ","),  # with a comma before the decimals, a point groups thousands
        ("0.123", ","),
        ("1.23", ","),
        ("12,5", "."),
        ("1,23,45", "."),
        ("1.234.56", ","),
        ("1.234,567,89", ","),
        ("1.234 567", ","),
        ("01.05.2026", ","),
        ("2026-05-01", ","),
        ("--5", ","),
        ("(-5)", ","),
        ("(5", ","),
        ("five", ","),
        ("", ","),
        ("EUR 5", ","),
        ("5 kg", ","),
        ("1e5000000", "."),
        ("9" * 5000, "."),
    ],
)
def test_what_is_no_number_by_that_sign_is_none(text: str, decimal: str) -> None:
    assert parse_number(text, decimal) is None


@given(st.integers(-(10**12), 10**12), st.integers(0, 99), st.sampled_from([".", ","]), st.booleans())
def test_numbers_come_back_as_they_were_written(units: int, cents: int, decimal: str, grouped: bool) -> None:
    group = {".": ",", ",": "."}[decimal] if grouped else ""
    text = f"{units:,}".replace(",", group) + f"{decimal}{cents:02}"
    assert parse_number(text, decimal) == float(f"{units}.{cents:02}")


@pytest.mark.parametrize(
    ("text", "decimal", "amount"),
    [
        ("EUR 1.234,56", ",", (1234.56, "EUR")),
        ("1.234,56 \u20ac", ",", (1234.56, "\u20ac")),
        ("\u20ac12", ",", (12, "\u20ac")),
        ("US$ 1,234.50", ".", (1234.5, "US$")),
        ("-$5.00", ".", (-5.0, "$")),
        ("$-5.00", ".", (-5.0, "$")),
        ("(EUR 5,00)", ",", (-5.0, "EUR")),
        ("CHF 1'234.50", ".", (1234.5, "CHF")),
        ("12,50 kr.", ",", (12.5, "kr.")),
        ("\u20b91,23,456.50", ".", (123456.5, "\u20b9")),
        ("12,50", ",", (12.5, "")),
    ],
)
def test_amounts_have_a_number_and_their_currency_as_written(
    text: str, decimal: str, amount: tuple[float, str]
) -> None:
    assert parse_amount(text, decimal) == amount


@pytest.mark.parametrize("text", ["EUR 5 USD", "EUR", "5 euros and", "EUR 1.23", "a lot"])
def test_what_is_no_amount_is_none(text: str) -> None:
    assert parse_amount(text, ",") is None


def test_a_record_is_read_by_its_formats() -> None:
    formats = Formats(decimal=",", amounts={"total": "currency"}, dates={"issued": "%d.%m.%Y"})
    record = {
        "total": "EUR 1.234,56",
        "pages": "1.000",
        "issued": " 01.05.2026 ",
        "paid": "yes",
        "prices": ["1,5", 2.5],
    }
    canonical = parse_record_values(record, SCHEMA, formats)
    assert canonical == {
        "total": 1234.56, "pages": 1000, "issued": "2026-05-01", "paid": "yes", "prices": [1.5, 2.5], "currency": "EUR",
    }  # fmt: skip
    # What the row says of its currency itself stays, and so does what is a number, a date or nothing already.
    assert parse_record_values({"total": "5 \u20ac", "currency": "EUR"}, SCHEMA, formats) == {
        "total": 5,
        "currency": "EUR",
    }
    plain_record = {"total": 12.5, "pages": None, "issued": "2026-05-01", "currency": None}
    assert parse_record_values(plain_record, SCHEMA, formats) == plain_record


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_currency_is_filled_wherever_it_stands(empty: str | None) -> None:
    formats = Formats(decimal=",", amounts={"total": "currency", "pages": "currency"})
    for record in ({"currency": empty, "total": "EUR 5,50"}, {"total": "EUR 5,50", "currency": empty, "pages": "2 kg"}):
        canonical = parse_record_values(record, SCHEMA, formats)
        assert (canonical["total"], canonical["currency"]) == (5.5, "EUR")


def test_a_required_currency_is_filled_where_its_cell_is_empty(tmp_path: Path) -> None:
    with (tmp_path / "bills.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "total", "currency"])
        writer.writerows([text, f"{n},50 EUR", "USD" if n % 2 else ""] for n, text in enumerate(distinct_texts(80)))
    schema = "{total: {type: number}, currency: {type: string, maxLength: 10}}"
    task = (
        f"{{kind: extraction, instruction: Read the bill., json_schema: {{type: object, properties: {schema}, "
        "required: [currency]}}"
    )
    data = '{source: {path: bills.csv}, formats: {decimal: ",", amounts: {total: currency}}}'
    splits, report = prepare_data(tmp_path, data, task)
    assert report["rows"]["rejected"] == {}
    for row in (row for name in SPLITS for row in splits[name]):
        assert row["target"]["currency"] == ("USD" if row["target"]["total"] % 2 == 1.5 else "EUR")


def test_records_inside_of_records_are_read_by_dotted_names() -> None:
    line = {"type": "object", "properties": {"price": {"type": "number"}, "unit": {"type": "string"}}}
    schema = {"properties": {"lines": {"type": "array", "items": line}, "seller": line}}
    formats = Formats(decimal=",", amounts={"lines.price": "unit", "seller.price": None})
    record = {"lines": [{"price": "EUR 1,5"}, {"price": "2,5"}], "seller": {"price": "$ 3"}}
    assert parse_record_values(record, schema, formats) == {
        "lines": [{"price": 1.5, "unit": "EUR"}, {"price": 2.5}], "seller": {"price": 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('[{"price": "1.234,5"}, {"price": 2.5}]', [{"price": 1234.5}, {"price": 2.5}]),
        (['{"price": "1,5"}', ""], [{"price": 1.5}, ""]),
        ("[1,5", "[1,5"),
        ("", ""),
    ],
)
def test_what_is_inside_of_a_cell_of_json_is_read_by_the_formats(lines: Any, expected: Any) -> None:
    line = {"type": "object", "properties": {"price": {"type": "number"}}}
    schema = {"properties": {"lines": {"type": ["array", "null"], "items": line}, "seller": line}}
    canonical = parse_record_values({"lines": lines, "seller": '{"price": "0,5"}'}, schema, Formats(decimal=","))
    assert canonical == {"lines": expected, "seller": {"price": 0.5}}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"total": "12.5"}, "field total: '12.5' is no number with ',' before its decimals (data.formats.decimal)"),
        ({"pages": "EUR 5"}, "field pages: 'EUR 5' names a currency or a unit, 'EUR'; data.formats.amounts"),
        ({"issued": "05/01/2026"}, "field issued: '05/01/2026' is no date of the format %d.%m.%Y"),
        ({"issued": "31.02.2026"}, "field issued: '31.02.2026' is no date"),
    ],
)
def test_what_is_written_otherwise_is_told_with_its_field(record: dict[str, Any], message: str) -> None:
    formats = Formats(decimal=",", amounts={"total": None}, dates={"issued": "%d.%m.%Y"})
    with pytest.raises(UnusableRowError) as error:
        parse_record_values(record, SCHEMA, formats)
    assert message in error.value.detail
    assert error.value.detail.count(" is no ") <= 1


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        *((value, True) for value in ("true", "TRUE", "yes", "Yes", "Y", "t", "1", " 1 ", 1, 1.0, True)),
        *((value, False) for value in ("false", "No", "n", "F", "0", "0.0", 0, 0.0, False)),
        *((value, value) for value in ("maybe", "2", "ja", 2, -1)),
    ],
)
def test_truth_values_are_read_as_tables_write_them(raw: Any, value: Any) -> None:
    canonical = canonicalize({"type": "boolean"}, raw)
    assert (type(canonical), canonical) == (type(value), value)


def test_a_model_that_answers_1_for_true_has_not_answered() -> None:
    schema = {"type": "object", "properties": {"paid": {"type": "boolean"}}}
    spec = extraction.make_spec(Task(kind="extraction", instruction="Is the bill paid?", json_schema=schema), {})
    assert extraction.parse(spec, '{"paid": 1}').problem == "wrong_schema"
    assert extraction.parse(spec, '{"paid": true}').value == {"paid": True}


def write_bills(folder: Path) -> None:
    with (folder / "bills.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["text", "total", "pages", "issued", "paid"])
        for n, text in enumerate(distinct_texts(100)):
            amount = f"EUR 1.{n:03},50" if n % 2 else f"{n},25 \u20ac"
            date = f"{n % 28 + 1:02}.05.2026"
            writer.writerow([f"{text}: {amount} on {date}", amount, n, date, "yes" if n % 3 else "no"])


FORMATS = '{decimal: ",", amounts: {total: currency}, dates: {issued: "%d.%m.%Y"}}'


def test_a_table_of_a_german_office_is_prepared_to_the_row(tmp_path: Path) -> None:
    write_bills(tmp_path)
    splits, report = prepare_data(tmp_path, f"{{source: {{path: bills.csv}}, formats: {FORMATS}}}", TASK)
    assert report["rows"]["rejected"] == {}
    targets = {row["target"]["pages"]: row["target"] for name in SPLITS for row in splits[name]}
    assert len(targets) == 100 - sum(report["rows"]["dropped"].values())
    for n, target in targets.items():
        assert target == {
            "total": 1000 + n + 0.5 if n % 2 else n + 0.25,
            "pages": n,
            "currency": "EUR" if n % 2 else "\u20ac",
            "issued": f"2026-05-{n % 28 + 1:02}",
            "paid": n % 3 != 0,
        }
    # Where a value stands in the text is told by the way in which the source writes it.
    assert report["fields"]["total"]["all"]["verbatim"] == 100
    assert report["fields"]["issued"]["all"]["verbatim"] == 100


def test_every_reference_answer_and_what_is_inside_of_lists_is_read_by_the_formats(tmp_path: Path) -> None:
    line = "{type: object, properties: {price: {type: number}, unit: {type: string, maxLength: 5}}}"
    schema = f"{{type: object, properties: {{lines: {{type: array, maxItems: 3, items: {line}}}}}}}"
    task = f"{{kind: extraction, instruction: Read the bill., json_schema: {schema}}}"
    rows = [
        {
            "text": text,
            "one": {"lines": [{"price": f"EUR {n},5"}]},
            "two": {"lines": [{"price": f"{n},75", "unit": "USD"}]},
        }
        for n, text in enumerate(distinct_texts(80))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    formats = '{decimal: ",", amounts: {lines.price: unit}}'
    data = f"{{source: {{path: rows.jsonl}}, columns: {{targets: [one, two]}}, formats: {formats}}}"
    splits, report = prepare_data(tmp_path, data, task)
    assert report["rows"]["rejected"] == {}
    for row in (row for name in SPLITS for row in splits[name]):
        (target_line,), (reference_line,) = row["target"]["lines"], row["references"][0]["lines"]
        assert (target_line["unit"], reference_line["unit"], reference_line["price"] - target_line["price"]) == (
            "EUR",
            "USD",
            0.25,
        )


def test_cells_of_json_are_read_by_the_formats_and_found_in_the_text(tmp_path: Path) -> None:
    with (tmp_path / "bills.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["text", "lines"])
        for n, text in enumerate(distinct_texts(80)):
            writer.writerow([f"{text}: 1.{n:03},50", json.dumps([{"price": f"1.{n:03},50"}])])
    line = "{type: object, properties: {price: {type: number}}}"
    schema = f"{{type: object, properties: {{lines: {{type: array, maxItems: 3, items: {line}}}}}}}"
    task = f"{{kind: extraction, instruction: Read the bill., json_schema: {schema}}}"
    splits, report = prepare_data(tmp_path, '{source: {path: bills.csv}, formats: {decimal: ","}}', task)
    assert report["rows"]["rejected"] == {}
    prices = {row["target"]["lines"][0]["price"] for name in SPLITS for row in splits[name]}
    assert prices <= {1000.5 + n for n in range(80)} and len(prices) > 70
    assert report["fields"]["lines.price"]["all"]["verbatim"] == 80


def test_decimals_of_a_typed_column_are_numbers_already(tmp_path: Path) -> None:
    rows = [
        {
            "text": text,
            "total": Decimal(f"{n}.25"),
            "lines": [{"price": Decimal(f"{n}.500")}],
            "tax": f"0,{n:02}",
            "day": Decimal(20260501),
        }
        for n, text in enumerate(distinct_texts(80))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bills.parquet")
    line = "{type: object, properties: {price: {type: number}}}"
    schema = (
        f"{{type: object, properties: {{total: {{type: number}}, tax: {{type: number}}, day: {{type: string, "
        f"maxLength: 10}}, lines: {{type: array, maxItems: 3, items: {line}}}}}}}"
    )
    task = f"{{kind: extraction, instruction: Read the bill., json_schema: {schema}}}"
    data = '{source: {path: bills.parquet}, formats: {decimal: ",", dates: {day: "%Y%m%d"}}, num_proc: 2}'
    splits, report = prepare_data(tmp_path, data, task)
    assert report["rows"]["rejected"] == {}
    for target in (row["target"] for name in SPLITS for row in splits[name]):
        n = round(target["tax"] * 100)
        assert target == {
            "total": n + 0.25, "tax": n / 100, "day": "2026-05-01", "lines": [{"price": n + 0.5}],
        }  # fmt: skip


def test_without_formats_such_numbers_are_refused_and_the_key_is_named(tmp_path: Path) -> None:
    write_bills(tmp_path)
    with pytest.raises(RecipeError, match=r"data\.formats tells how numbers are written"):
        prepare_data(tmp_path, "{source: {path: bills.csv}}", TASK)


def test_a_row_that_is_written_otherwise_is_left_out_with_its_line(tmp_path: Path) -> None:
    write_bills(tmp_path)
    content = (tmp_path / "bills.csv").read_text(encoding="utf-8").splitlines()
    content[7] = content[7].replace("EUR 1.006,50", "1.5").replace("6,25 \u20ac;", "1.5;")
    (tmp_path / "bills.csv").write_text("\n".join(content), encoding="utf-8")
    prepare_data(tmp_path, f"{{source: {{path: bills.csv}}, formats: {FORMATS}, max_rejected: 0.02}}", TASK)
    (rejected,) = (tmp_path / "runs").rglob("rejected.jsonl")
    rejected_rows = [row for row in atomic_files.read_jsonl(rejected) if row["kind"] == "rejected"]
    assert [(row["file"], row["line"], row["reason"]) for row in rejected_rows] == [("bills.csv", 8, "bad_record")]
    assert "is no number with ',' before its decimals" in rejected_rows[0]["detail"]


@pytest.mark.parametrize(
    ("kind", "formats", "message"),
    [
        (TASK, "{amounts: {total: null}}", "amounts need decimal"),
        (TASK, '{decimal: ",", amounts: {issued: null}}', "formats.amounts.issued: is no field of a number"),
        (TASK, '{decimal: ",", amounts: {total: pages}}', "'pages' is no field of text"),
        (
            TASK,
            '{dates: {isued: "%d.%m.%Y"}}',
            "dates.isued: is neither data.split.time nor a field of text; there are",
        ),
        (TASK, '{dates: {issued: "%d.%m."}}', "'%d.%m.' is no format of a date"),
        (TASK, '{dates: {issued: "DD.MM.YYYY"}}', "it needs year, month and day"),
        ("{kind: classification, instruction: Say what it is.}", '{decimal: ","}', "kind is classification"),
    ],
)
def test_formats_that_nothing_reads_are_refused_with_their_key(
    tmp_path: Path, kind: str, formats: str, message: str
) -> None:
    recipe = f"task: {kind}\nmodel: {{base: pocket}}\ndata: {{source: {{path: bills.csv}}, formats: {formats}}}\n"
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load(str(tmp_path / "r.yaml"), (), "cpu")
    assert "data.formats" in str(error.value)
    assert message in str(error.value)
