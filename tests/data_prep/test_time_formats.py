"""Times in a format that the recipe gives."""

from pathlib import Path

import pytest

from data_prep.rows.timestamps import parse_epoch_seconds
from insource.config.errors import RecipeError
from insource.tasks.source_record import UnusableRowError
from tests.helpers.prepared_rows import labelled_rows, prepare_data, write_rows

MAY = 1777593600.0  # 2026-05-01, in seconds since 1970


@pytest.mark.parametrize(
    ("text", "time_format", "seconds"),
    [
        ("01.05.2026", "%d.%m.%Y", MAY),
        ("05/01/26 01:30 PM", "%m/%d/%y %I:%M %p", MAY + 13.5 * 3600),
        ("01.05.2026 02:00 +0200", "%d.%m.%Y %H:%M %z", MAY),
        ("2026-05-01T00:00:00", "%d.%m.%Y", MAY),
    ],
)
def test_times_are_read_by_the_format_that_the_recipe_gives(text: str, time_format: str, seconds: float) -> None:
    assert parse_epoch_seconds(text, "at", time_format) == seconds


def test_a_time_of_another_format_is_told() -> None:
    with pytest.raises(UnusableRowError) as error:
        parse_epoch_seconds("2026/05/01", "at", "%d.%m.%Y")
    assert (error.value.reason, error.value.detail) == (
        "bad_time",
        "column 'at': '2026/05/01' is no time of the format %d.%m.%Y",
    )


def test_rows_are_split_by_times_of_a_given_format(tmp_path: Path) -> None:
    rows = [{**row, "at": f"{n % 28 + 1:02}.{n // 28 + 1:02}.2026"} for n, row in enumerate(labelled_rows(112))]
    write_rows(tmp_path / "rows.jsonl", rows)
    data = '{source: {path: rows.jsonl}, split: {time: at, test: 0.25}, formats: {dates: {at: "%d.%m.%Y"}}}'
    splits, _ = prepare_data(tmp_path, data)
    newest_texts = {row["text"] for row in rows if row["at"].endswith("04.2026")}
    assert {row["input"]["text"] for row in splits["test"]} == newest_texts
    with pytest.raises(RecipeError, match=r"data\.formats\.dates"):
        prepare_data(tmp_path, "{source: {path: rows.jsonl}, split: {time: at, test: 0.25}}")
