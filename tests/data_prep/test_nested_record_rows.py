"""Preparation of records with line items."""

import csv
import json
from pathlib import Path

import pytest

from data_prep.report import console
from insource.config.schema.source import SPLITS
from insource.tracking.data_report import DataReport
from tests.helpers.nested_records import SCHEMA, TASK, item, make_bills, make_record
from tests.helpers.prepared_rows import prepare_data, write_rows


@pytest.mark.parametrize("absent", ["null", "omit"])
def test_line_items_are_read_from_objects_and_from_cells_of_json(tmp_path: Path, absent: str) -> None:
    rows = make_bills(120)
    write_rows(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "kind", "line_items", "total"])
        writer.writeheader()
        writer.writerows(
            {**row, "line_items": json.dumps(row["line_items"]) if row["line_items"] else ""} for row in rows
        )
    task_json = json.dumps({**TASK, "absent": absent})
    for name in ("rows.jsonl", "rows.csv"):
        splits, report = prepare_data(tmp_path, f"{{source: {{path: {name}}}, split: {{stratify: null}}}}", task_json)
        targets = {row["input"]["text"].split("\n")[0]: row["target"] for split in SPLITS for row in splits[split]}
        assert len(targets) == 120 and report["rows"]["rejected"] == {}
        for row in rows:
            expected_items = [item(**line_item) for line_item in row["line_items"]]
            assert targets[row["text"].split("\n")[0]] == make_record(*expected_items)
        states = report["fields"]
        assert states["line_items.name"]["all"] == {"verbatim": 80}
        assert states["line_items.price"]["all"] == {"elsewhere": 80}
        assert sum(states["line_items"]["all"].values()) == 40
        html = next((tmp_path / "runs" / ".data").glob(f"{report['digest']}/data.html")).read_text(encoding="utf-8")
        assert "line_items.price" in html.replace("<wbr>", "")
    assert "left out" not in console.format_summary(DataReport(**report), "prepared")


def test_answers_that_leave_out_what_is_absent_take_fewer_tokens(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", make_bills(120))
    data = "{source: {path: rows.jsonl}, split: {stratify: null}}"
    answers = []
    for absent in ("null", "omit"):
        _, report = prepare_data(tmp_path, data, json.dumps({**TASK, "absent": absent}))
        answers.append(report["tokens"]["served"]["for_the_answer"])
    assert answers[1] <= answers[0] and report["tokens"]["median"] > 0


def test_items_in_another_order_are_the_same_record(tmp_path: Path) -> None:
    rows = make_bills(150)
    row = {**rows[2], "line_items": rows[2]["line_items"][::-1]}
    changed = {**rows[5], "line_items": [{"name": "hammer"}]}
    write_rows(tmp_path / "rows.jsonl", [*rows, row, changed])
    split = "split: {stratify: null, test: 0.1, validation: 0.05, calibration: 0.05, seed: 3}"
    _, report = prepare_data(tmp_path, f"{{source: {{path: rows.jsonl}}, {split}}}", json.dumps(TASK))
    assert report["rows"]["dropped"] == {"conflict": 2, "duplicate": 1}


def test_personal_data_is_redacted_inside_objects(tmp_path: Path) -> None:
    rows = make_bills(120)
    for index, row in enumerate(rows):
        row["text"] += f"\nmail ho{index}@example.com"
        row["seller"] = {"name": "Ho", "towns": [f"ho{index}@example.com"[:8]]}
        row["line_items"] = [{"name": f"h{index}@ex.com"}]
        row["text"] += f" h{index}@ex.com"
    write_rows(tmp_path / "rows.jsonl", rows)
    schema = json.loads(json.dumps(SCHEMA))
    schema["properties"]["line_items"]["items"]["properties"]["name"]["maxLength"] = 20
    splits, _ = prepare_data(
        tmp_path, "{source: {path: rows.jsonl}, split: {stratify: null}}\nprivacy: {redact: [email]}",
        json.dumps({**TASK, "json_schema": schema}),
    )  # fmt: skip
    for name in SPLITS:
        for row in splits[name]:
            (line_item,) = row["target"]["line_items"]
            assert line_item["name"].startswith("[EMAIL_") and line_item["name"] in row["input"]["text"]
