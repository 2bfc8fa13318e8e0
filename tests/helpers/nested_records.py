"""Records with line items: schema, values and rows."""

from typing import Any

from hypothesis import strategies as st

from tests.helpers.distinct_texts import distinct_texts

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12, "description": "as printed"},
        "amount": {"type": "integer"},
        "price": {"type": "string", "maxLength": 8},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["order", "bill"]},
        "seller": {
            "type": "object",
            "description": "who sells",
            "properties": {"name": {"type": "string", "maxLength": 12}, "towns": {
                "type": "array", "maxItems": 2, "items": {"type": "string", "maxLength": 8}}},
            "required": ["name"],
        },
        "line_items": {"type": "array", "maxItems": 3, "items": ITEM, "description": "the goods"},
        "total": {"type": "number"},
    },
    "required": ["kind"],
}  # fmt: skip
NORMALIZERS: dict[str, list[str]] = {"line_items.price": ["amount"], "line_items.name": ["case"]}


def item(name: str | None = None, amount: int | None = None, price: str | None = None) -> dict[str, Any]:
    return {"name": name, "amount": amount, "price": price}


def make_record(*items: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    return {"kind": "bill", "seller": None, "line_items": list(items) or None, "total": None, **kwargs}


# Records and answers.


names = st.text(st.characters(codec="utf-8"), max_size=3) | st.sampled_from(['a"', "\n", "😀"])
items = st.fixed_dictionaries(
    {}, optional={"name": st.none() | names, "amount": st.none() | st.integers(-99, 99), "price": st.just("1,50")}
)


# The rows.

TASK = {"kind": "extraction", "instruction": "Read the bill please.", "json_schema": SCHEMA, "normalizers": NORMALIZERS}


def make_bills(count: int) -> list[dict[str, Any]]:
    rows = []
    for index, text in enumerate(distinct_texts(count)):
        line_items = [{"name": f"nail {index}", "amount": index, "price": "1,50"}, {"name": "saw"}][: index % 3]
        description = "; ".join(f"{line_item.get('amount', '')} {line_item['name']}" for line_item in line_items)
        rows.append({"text": f"{text}\n{description}", "kind": "bill", "line_items": line_items, "total": None})
    return rows
