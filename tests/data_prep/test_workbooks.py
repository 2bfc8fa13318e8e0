"""Excel workbooks as sources: cells, sheets and limits."""

import io
import zipfile
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import openpyxl

from data_prep.readers.read import read
from data_prep.readers.sources import find_files
from insource.config.errors import RecipeError
from insource.config.schema.source import SPLITS, Source
from tests.helpers.errors import raises_error
from tests.helpers.malformed_files import SHEET
from tests.helpers.malformed_files import workbook_bytes as written
from tests.helpers.prepared_rows import labelled_rows, prepare_data
from tests.helpers.source_files import read_rows

# Workbooks.


def save_workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for name, rows in sheets.items():
        sheet = workbook.create_sheet(name)
        for row in rows:
            sheet.append(row)
    workbook.save(path)
    return path


def table_with_header(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [list(rows[0]), *([*row.values()] for row in rows)]


def test_a_workbook_is_prepared_as_a_table(tmp_path: Path) -> None:
    rows = labelled_rows(80)
    save_workbook(tmp_path / "rows.xlsx", Tickets=table_with_header(rows))
    splits, report = prepare_data(tmp_path, "{source: {path: rows.xlsx}}")
    assert {row["input"]["text"] for name in SPLITS for row in splits[name]} == {row["text"] for row in rows}
    assert {row["id"] for name in SPLITS for row in splits[name]} == {f"rows.xlsx:{n}" for n in range(2, 82)}
    assert report["sources"][0]["detected"] == {"kind": "xlsx", "sheet": "Tickets", "columns": ["text", "label"]}


def test_cells_are_what_excel_shows(tmp_path: Path) -> None:
    cells = {
        "text": "hello\nworld",
        "label": 3.0,
        "price": 0.1 + 0.2,
        "large": 123456789012345,
        "open": True,
        "day": datetime(2026, 5, 1),
        "only_day": date(2026, 5, 1),
        "at": datetime(2026, 5, 1, 13, 30),
        "time": time(8, 15),
        "took": timedelta(hours=30),
        "nothing": None,
        "formula": "=1+1",
    }
    save_workbook(tmp_path / "rows.xlsx", S=[list(cells), list(cells.values())])
    (row,) = read_rows(Source(path=str(tmp_path / "rows.xlsx")))
    assert row.values == {
        **cells, "label": 3, "price": 0.3, "day": "2026-05-01", "only_day": "2026-05-01", "at": "2026-05-01T13:30:00",
        "time": "08:15:00", "took": "PT108000S", "formula": None,
    }  # fmt: skip


def test_the_sheet_that_has_the_columns_is_read_and_told(tmp_path: Path) -> None:
    note_rows = [["what this is"], ["rows of May"]]
    path = save_workbook(tmp_path / "rows.xlsx", About=note_rows, Tickets=table_with_header(labelled_rows(3)), Empty=[])
    source = Source(path=str(path))
    info, rows = read(find_files(source)[0], source, ("text", "label"))
    assert (info["sheet"], len(list(rows))) == ("Tickets", 3)
    assert info["sheets"] == ["About", "Tickets", "Empty"]


def test_sheets_that_all_have_the_columns_are_refused_until_one_is_named(tmp_path: Path) -> None:
    rows = labelled_rows(5)
    path = save_workbook(tmp_path / "rows.xlsx", May=table_with_header(rows[:2]), June=table_with_header(rows[2:]))
    with raises_error(RecipeError, "INS-D018", match=r"Set data.source.sheet; it has 'May', 'June'"):
        read_rows(Source(path=str(path)))
    assert len(read_rows(Source(path=str(path), sheet="June"))) == 3


def test_a_hidden_sheet_is_read_where_it_is_named_alone(tmp_path: Path) -> None:
    path = save_workbook(
        tmp_path / "rows.xlsx", Old=table_with_header(labelled_rows(9)), New=table_with_header(labelled_rows(2))
    )
    workbook = openpyxl.load_workbook(path)
    workbook["Old"].sheet_state = "hidden"
    workbook.save(path)
    assert len(read_rows(Source(path=str(path)))) == 2
    assert len(read_rows(Source(path=str(path), sheet="Old"))) == 9


def test_an_error_in_a_column_that_nobody_needs_is_an_empty_cell(tmp_path: Path) -> None:
    path = save_workbook(tmp_path / "rows.xlsx", S=[["text", "label", "looked_up"], ["hello", "a", "#N/A"]])
    assert [row.values for row in read_rows(Source(path=str(path)))] == [
        {"text": "hello", "label": "a", "looked_up": None}
    ]


def test_a_workbook_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(written(SHEET, more=b"<x>" + b" " * 3_000_000 + b"</x>"))
    assert len(read_rows(Source(path=str(tmp_path / "rows.xlsx")))) == 2
    with raises_error(RecipeError, "INS-D019", match=r"an unpacked workbook of 2.9 MiB, more than 2; export it as CSV"):
        read_rows(Source(path=str(tmp_path / "rows.xlsx"), max_unpacked_mib=2))


def test_a_sheet_is_checked_whatever_its_name_is(tmp_path: Path) -> None:
    entities = '<!DOCTYPE worksheet [<!ENTITY e "x">]>'
    renamed_workbook = renamed(written(SHEET, entities), "worksheets/sheet1.xml", "worksheets/sheet1.png")
    (tmp_path / "rows.xlsx").write_bytes(renamed_workbook)
    with raises_error(RecipeError, "INS-D012", match=r"sheet1.png has a document type"):
        read_rows(Source(path=str(tmp_path / "rows.xlsx")))
    picture = renamed(written(SHEET, more=b"\x89PNG\r\n\x1a\n" + bytes(range(256))), "xl/more.xml", "xl/more.png")
    (tmp_path / "rows.xlsx").write_bytes(picture)
    assert len(read_rows(Source(path=str(tmp_path / "rows.xlsx")))) == 2


def renamed(content: bytes, old_name: str, new_name: str) -> bytes:
    """The workbook with a part under another name, wherever it is named."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as original,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in original.namelist():
            archive.writestr(
                name.replace(old_name, new_name), original.read(name).replace(old_name.encode(), new_name.encode())
            )
    return buffer.getvalue()
