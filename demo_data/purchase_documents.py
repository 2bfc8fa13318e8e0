"""Write the synthetic orders and invoices of `recipes/extractor.yaml`: `python -m demo_data.purchase_documents`.

    {"document_id": "D00017", "received_at": "2026-03-09T14:02:11Z", "supplier_id": "S031", "layout": "email",
     "text": "Hello,\\nplease find our invoice 20417 of 9 March 2026 ...", "target": {"document_type": "invoice",
     "supplier": "Bramwick Timber Ltd", "number": "20417", "date": "9 March 2026", "currency": "EUR",
     "total": "1,284.50", "due_date": null}}

No such company or document exists: a seeded generator combines the phrases of `purchase_phrases.py`. A value is spelt
in the target as in the text.

The difficulties are those of real documents: five layouts, many names for one field, and date and amount formats that
differ by supplier. There are other dates, amounts and names beside the requested ones, missing fields, and field names
with scan errors.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta

from demo_data import purchase_phrases as phrases
from demo_data.purchase_layouts import LAYOUTS, Page

ROWS = 1500
SEED = 17
SUPPLIERS = 240
SCAN_ERROR_RATE = 0.06
CURRENCY_SYMBOLS = {"EUR": "€", "USD": "$", "GBP": "£", "CHF": "CHF"}
DATE_FORMATS = (
    "{d:%d/%m/%Y}",
    "{d:%d.%m.%Y}",
    "{d:%Y-%m-%d}",
    "{d.day} {d:%B %Y}",
    "{d:%d} {d:%b} {d:%Y}",
    "{d:%d-%m-%y}",
)
AMOUNT_FORMATS = ("{:,.2f}", "{:,.2f}", "{:.2f}", "european")
NUMBER_FORMATS = ("{n:05d}", "{kind}-{n:04d}", "2026/{n:04d}", "{n:04d}-26", "A{n:04d}", "R {n:05d}")
SCAN_ERRORS = {"o": "0", "l": "1", "i": "l", "m": "rn", "e": "c", "a": "o", "s": "5", "t": "f"}


@dataclass(frozen=True)
class Supplier:
    """A company that sells, and its formats."""

    id: str
    name: str
    layout: str
    currency: str
    money_format: str
    date_format: str
    amount_format: str
    number_format: str


@dataclass(frozen=True)
class Record:
    """The requested values of a document, as written there."""

    document_type: str
    supplier: str
    number: str | None
    date: str | None
    currency: str | None
    total: str | None
    due_date: str | None


def generate_documents(rows: int = ROWS, seed: int = SEED) -> Iterator[dict[str, object]]:
    """Yield `rows` synthetic documents in order of time, deterministic for the same arguments."""
    rng = random.Random(seed)
    suppliers = [_make_supplier(number, rng) for number in range(SUPPLIERS)]
    # A few suppliers write most of the documents, and many suppliers one or two.
    weights = [1 / (rank + 3) for rank in range(SUPPLIERS)]
    now = datetime(2026, 1, 5, 7, 0, tzinfo=UTC)
    for number in range(rows):
        now += timedelta(seconds=rng.expovariate(rows / (240 * 86400)))
        supplier = rng.choices(suppliers, weights)[0]
        layout = supplier.layout if rng.random() < 0.8 else rng.choice(list(LAYOUTS))
        page, record = _fill_page(supplier, now.date(), rng)
        text = "\n".join(LAYOUTS[layout](page, rng))
        if rng.random() < SCAN_ERROR_RATE:
            text = _add_scan_errors(text, page, rng)
        yield {
            "document_id": f"D{number:05d}",
            "received_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "supplier_id": supplier.id,
            "layout": layout,
            "text": text,
            "target": asdict(record),
        }


def _make_supplier(number: int, rng: random.Random) -> Supplier:
    """Return a supplier with random formats."""
    currency = rng.choices(list(CURRENCY_SYMBOLS), (5, 3, 2, 1))[0]
    money_formats = (
        "{currency} {amount}",
        "{amount} {currency}",
        "{symbol}{amount}",
        "{symbol} {amount}",
        "{amount} {symbol}",
    )
    stem = phrases.STEMS[number % len(phrases.STEMS)]
    return Supplier(
        id=f"S{number:03d}",
        name=f"{stem} {rng.choice(phrases.TRADES)}{rng.choice(phrases.COMPANY_SUFFIXES)}",
        layout=rng.choice(list(LAYOUTS)),
        currency=currency,
        money_format=rng.choice(money_formats),
        date_format=rng.choice(DATE_FORMATS),
        amount_format=rng.choice(AMOUNT_FORMATS),
        number_format=rng.choice(NUMBER_FORMATS),
    )


def _fill_page(supplier: Supplier, received: date, rng: random.Random) -> tuple[Page, Record]:
    """Return a page of this supplier, and its requested values."""
    kind = rng.choices(("invoice", "order"), (0.6, 0.4))[0]
    issued = received - timedelta(days=rng.randint(0, 4))
    due = issued + timedelta(days=rng.choice((7, 10, 14, 21, 30, 45)))
    items = [
        (rng.randint(1, 12), goods, rng.choice((0.5, 0.75, 0.9, 0.95, 0, 0)) + rng.randint(2, 60))
        for goods in rng.sample(phrases.GOODS, rng.choices((1, 2, 3), (0.5, 0.35, 0.15))[0])
    ]
    net = sum(count * price for count, _, price in items)
    tax = round(net * 0.2, 2)
    number = _format_number(supplier, kind, rng) if rng.random() < 0.94 else None
    date_text = supplier.date_format.format(d=issued) if rng.random() < 0.95 else None
    money_format = supplier.money_format if rng.random() < 0.9 else "{amount}"
    has_price = kind == "invoice" or rng.random() < 0.85
    due_text = supplier.date_format.format(d=due) if kind == "invoice" and rng.random() < 0.6 else None
    page = Page(
        kind=kind,
        supplier=supplier.name,
        buyer=rng.choice(phrases.BUYERS),
        number=number,
        date=date_text,
        due=due_text,
        total=_format_money(supplier, money_format, net + tax) if has_price else None,
        subtotal=_format_money(supplier, money_format, net),
        tax=_format_money(supplier, money_format, tax),
        items=tuple((count, goods, _format_amount(supplier, price)) for count, goods, price in items),
        other_number=str(rng.randint(10000, 99999)),
        other_date=supplier.date_format.format(d=issued + timedelta(days=rng.choice((-9, -6, 3, 5, 8)))),
    )
    currency = supplier.currency if has_price and money_format != "{amount}" else None
    total = _format_amount(supplier, net + tax) if has_price else None
    return page, Record(kind, supplier.name, number, date_text, currency, total, due_text)


def _format_number(supplier: Supplier, kind: str, rng: random.Random) -> str:
    """Return a document number in the supplier's format."""
    return supplier.number_format.format(n=rng.randint(100, 9999), kind="INV" if kind == "invoice" else "PO")


def _format_amount(supplier: Supplier, value: float) -> str:
    """Return an amount in the supplier's format."""
    if supplier.amount_format == "european":
        return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))
    return supplier.amount_format.format(value)


def _format_money(supplier: Supplier, money_format: str, value: float) -> str:
    """Return an amount with its currency in the supplier's format."""
    symbol = CURRENCY_SYMBOLS[supplier.currency]
    return money_format.format(amount=_format_amount(supplier, value), symbol=symbol, currency=supplier.currency)


def _add_scan_errors(text: str, page: Page, rng: random.Random) -> str:
    """Replace one to three letters as a poor scan does, none of them in a requested value."""
    protected_values = [value for value in (page.supplier, page.number, page.date, page.due, page.total) if value]
    for _ in range(rng.randint(1, 3)):
        protected = {
            index
            for value in protected_values
            for start in _find_starts(text, value)
            for index in range(start, start + len(value))
        }
        if candidates := [
            index for index, character in enumerate(text) if character in SCAN_ERRORS and index not in protected
        ]:
            index = rng.choice(candidates)
            text = text[:index] + SCAN_ERRORS[text[index]] + text[index + 1 :]
    return text


def _find_starts(text: str, value: str) -> Iterator[int]:
    """Yield the indices at which a value begins in the text."""
    index = text.find(value)
    while index >= 0:
        yield index
        index = text.find(value, index + 1)


def main() -> None:
    """Write the documents as JSON Lines to standard output."""
    parser = argparse.ArgumentParser(
        description="Write synthetic orders and invoices as JSON Lines to standard output."
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for document in generate_documents(arguments.rows, arguments.seed):
        print(json.dumps(document, ensure_ascii=False))


if __name__ == "__main__":
    main()
