"""The layouts of a purchase document: five arrangements of the same facts on a page.

    Page(kind="invoice", supplier="Bramwick Timber", number="20417", date="9 March 2026", total="EUR 120.00", ...)
    letter     ["Bramwick Timber", "Mill Lane 3, Selm", "Invoice 20417", "Date: 9 March 2026", ...]
    portal     ["Invoice 20417; Bramwick Timber to Hotel Miravel; date 9 March 2026; ...", "Total: EUR 120.00"]

A fact that is None is omitted. Similar-looking distractors appear beside the facts.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo_data import purchase_phrases as phrases


@dataclass(frozen=True)
class Page:
    """The content of a layout. `total` and the other amounts include their currency."""

    kind: str
    supplier: str
    buyer: str
    number: str | None
    date: str | None
    due: str | None
    total: str | None
    subtotal: str
    tax: str
    items: tuple[tuple[int, str, str], ...]
    other_number: str
    other_date: str


def _write_letter(page: Page, rng: random.Random) -> list[str]:
    """Return a letter: the sender on top, one fact per line, the sums at the end."""
    address = f"{rng.choice(phrases.STREETS)} {rng.randint(1, 99)}, {rng.choice(phrases.TOWNS)}"
    title = rng.choice(phrases.TITLES[page.kind])
    is_invoice = page.kind == "invoice"
    lines = [page.supplier if is_invoice else page.buyer, address, f"{title} {page.number}" if page.number else title]
    if page.date:
        lines.append(f"{rng.choice(phrases.DATE[page.kind])}: {page.date}")
    lines.append(f"{rng.choice(phrases.BUYER)}: {page.buyer}" if is_invoice else f"To: {page.supplier}")
    if rng.random() < 0.3:
        lines.append(_distractor_line(page, rng))
    lines += _item_lines(page, rng) + _total_lines(page, rng)
    if rng.random() < 0.4:
        lines.append(rng.choice(phrases.CLOSINGS))
    return lines


def _write_form(page: Page, rng: random.Random) -> list[str]:
    """Return a form with its fields in random order."""
    facts = [
        (rng.choice(phrases.SUPPLIER), page.supplier),
        (rng.choice(phrases.BUYER), page.buyer),
        (rng.choice(phrases.NUMBER[page.kind]), page.number),
        (rng.choice(phrases.DATE[page.kind]), page.date),
    ]
    lines = [f"{label}: {value}" for label, value in facts if value]
    if rng.random() < 0.5:
        lines.append(_distractor_line(page, rng))
    rng.shuffle(lines)
    return [rng.choice(phrases.TITLES[page.kind]), *lines, *_item_lines(page, rng), *_total_lines(page, rng)]


def _write_columns(page: Page, rng: random.Random) -> list[str]:
    """Return a table read line by line: a row of headings, and the values in the row below."""
    facts = [
        (rng.choice(phrases.NUMBER[page.kind]), page.number),
        (rng.choice(phrases.DATE[page.kind]), page.date),
        (rng.choice(phrases.DUE), page.due),
        (rng.choice(phrases.OTHER_NUMBERS), page.other_number),
    ]
    present = [(label, value) for label, value in facts if value]
    parties = [page.supplier, page.buyer] if page.kind == "invoice" else [page.buyer, f"Supplier {page.supplier}"]
    lines = [rng.choice(phrases.TITLES[page.kind]).upper(), *parties]
    lines += [" | ".join(label for label, _ in present), " | ".join(value for _, value in present)]
    lines += [f"{goods} | {count} | {price}" for count, goods, price in page.items]
    return lines + _amount_lines(page, rng)


def _write_email(page: Page, rng: random.Random) -> list[str]:
    """Return a few sentences, signed by the sender."""
    goods = " and ".join(f"{count} {name}" for count, name, _ in page.items[:2])
    number = f"{rng.choice((' ', ' no. ', ' number '))}{page.number}" if page.number else ""
    date_text = f"{rng.choice((' of ', ' dated '))}{page.date}" if page.date else ""
    is_invoice = page.kind == "invoice"
    lines = [rng.choice(phrases.GREETINGS) if is_invoice else f"Dear {page.supplier} team,"]
    lines.append(rng.choice(phrases.OPENINGS[page.kind]).format(number=number, date=date_text, goods=goods))
    if page.total:
        net_text = rng.choice(phrases.NET_FIRST).format(subtotal=page.subtotal) + " " if rng.random() < 0.35 else ""
        terms = rng.choice(phrases.TERMS).format(due=page.due) if page.due else "."
        lines.append(net_text + rng.choice(phrases.SUMS).format(total=page.total) + terms)
    if rng.random() < 0.35:
        lines.append(rng.choice(phrases.ASIDES).format(other_date=page.other_date, other_number=page.other_number))
    signature = [page.supplier] if is_invoice else [page.buyer]
    return [*lines, rng.choice(phrases.SIGN_OFFS), rng.choice(phrases.PEOPLE), *signature]


def _write_portal_notice(page: Page, rng: random.Random) -> list[str]:
    """Return a notice of a purchasing portal: one dense paragraph."""
    title = rng.choice(phrases.TITLES[page.kind])
    parts = [f"{title} {page.number}" if page.number else title, f"{page.supplier} to {page.buyer}"]
    if page.kind == "order":
        parts[1] = f"{page.buyer} orders from {page.supplier}"
    if page.date:
        parts.append(f"{rng.choice(phrases.DATE[page.kind]).lower()} {page.date}")
    parts += [f"{count} x {goods} at {price}" for count, goods, price in page.items]
    if rng.random() < 0.4:
        parts.append(_distractor_line(page, rng).lower())
    return ["; ".join(parts), *_total_lines(page, rng)]


LAYOUTS: dict[str, Callable[[Page, random.Random], list[str]]] = {
    "letter": _write_letter,
    "form": _write_form,
    "columns": _write_columns,
    "email": _write_email,
    "portal": _write_portal_notice,
}


def _item_lines(page: Page, rng: random.Random) -> list[str]:
    """Return one line per item, all in one format."""
    template = rng.choice(("{count} x {goods} {price}", "{goods}, {count} at {price}", "{count} {goods} @ {price}"))
    return [template.format(count=count, goods=goods, price=price) for count, goods, price in page.items]


def _total_lines(page: Page, rng: random.Random) -> list[str]:
    """Return the lines of the amounts and the due date, in random order."""
    due = [f"{rng.choice(phrases.DUE)}: {page.due}"] if page.due else []
    return due + _amount_lines(page, rng) if rng.random() < 0.3 else _amount_lines(page, rng) + due


def _amount_lines(page: Page, rng: random.Random) -> list[str]:
    """Return the lines of subtotal, tax and total; [] without a total."""
    if page.total is None:
        return []
    lines = []
    if rng.random() < 0.5:
        lines = [f"{rng.choice(phrases.SUBTOTAL)} {page.subtotal}", f"{rng.choice(phrases.TAX)} {page.tax}"]
    return [*lines, f"{rng.choice(phrases.TOTAL[page.kind])}{rng.choice((': ', ' '))}{page.total}"]


def _distractor_line(page: Page, rng: random.Random) -> str:
    """Return a line with a number or a date that is not requested."""
    if rng.random() < 0.5:
        return f"{rng.choice(phrases.OTHER_NUMBERS)}: {page.other_number}"
    return f"{rng.choice(phrases.OTHER_DATES)}: {page.other_date}"
