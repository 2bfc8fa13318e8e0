"""Tables of published data sets: quotes, escapes and headers."""

from pathlib import Path

import pytest

from insource.config.errors import RecipeError
from tests.data_prep.test_public_data_sets import write_csv
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.published_files import SUMMARY, prepare_files, text_label_pairs, texts_with_targets


def test_quotes_that_a_backslash_stands_before(tmp_path: Path) -> None:
    """MySQL and Spark write them so, and nothing before other characters."""
    originals = [f'{text}, "so" and C:\\new\\\\x' for text in distinct_texts(90)]
    escaped = [text.replace("\\\\", "\\\\\\\\").replace('"', '\\"') for text in originals]
    lines = "".join(f'"{text}",{"ab"[n % 2]}\n' for n, text in enumerate(escaped))
    (tmp_path / "rows.csv").write_text(f"text,label\n{lines}", encoding="utf-8")
    with raises_error(
        RecipeError, "INS-D013", match=r"rows.csv:2: not CSV: .* or data.source.escape: '\\' if that stands before"
    ):
        prepare_files(tmp_path, "{source: {path: rows.csv}}")
    splits, report = prepare_files(tmp_path, "{source: {path: rows.csv, escape: '\\'}, deduplicate: {near: 1}}")
    assert {text for text, _ in texts_with_targets(splits)} == {*originals}
    assert report["sources"][0]["detected"]["escape"] == "\\"


def test_tabs_and_line_ends_that_a_backslash_stands_before_and_cells_of_null(tmp_path: Path) -> None:
    """As mysqldump writes tables: no quotes, no header, \\N for null."""
    rows = [
        f"{text}\\\ttab\\\nnext\t{'ab'[n % 2] if n else chr(92) + 'N'}\n" for n, text in enumerate(distinct_texts(120))
    ]
    (tmp_path / "rows.tsv").write_text("".join(rows), encoding="utf-8")
    source = "{path: rows.tsv, escape: '\\', quotes: false, header: [text, label]}"
    splits, report = prepare_files(tmp_path, f"{{source: {source}, deduplicate: {{near: 1}}}}")
    assert report["rows"]["rejected"] == {"no_label": 1}
    assert {text for text, _ in texts_with_targets(splits)} == {f"{text} tab\nnext" for text in distinct_texts(120)[1:]}


def test_rows_that_an_unclosed_quote_joins_are_rejected_and_told(tmp_path: Path) -> None:
    rows = [
        (f'"{text}' if n % 50 == 0 else f'{text} "' if n % 50 == 2 else text, label)
        for n, (text, label) in enumerate(text_label_pairs(200))
    ]
    lines = "".join(f"{text}\t{label}\n" for text, label in rows)
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\n{lines}", encoding="utf-8")
    with raises_error(
        RecipeError, "INS-D022", match=r"4 of 192 rows .*\n  rows.tsv:2  unreadable: a quoted field goes on over"
    ):
        prepare_files(tmp_path, "{source: {path: rows.tsv}}")
    splits, _ = prepare_files(tmp_path, "{source: {path: rows.tsv, quotes: false}, deduplicate: {near: 1}}")
    assert texts_with_targets(splits) == {*rows}


def test_a_quoted_field_of_a_table_with_tabs_may_have_line_ends_and_tabs_of_its_own(tmp_path: Path) -> None:
    rows = [(f"{text}\n\tsecond\tline\n", label) for text, label in text_label_pairs(60)]
    write_csv(tmp_path / "rows.tsv", [("text", "label"), *rows], delimiter="\t")
    splits, _ = prepare_files(tmp_path, "{source: {path: rows.tsv}, deduplicate: {near: 1}}")
    assert len(texts_with_targets(splits)) == 60


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt"])
def test_a_header_that_is_there_and_named_again_is_no_row(tmp_path: Path, name: str) -> None:
    write_csv(
        tmp_path / name, [("Text", "summary"), *((text, f"{label} it is") for text, label in text_label_pairs(60))]
    )
    data = f"{{source: {{path: {name}, header: [text, target]}}, split: {{stratify: null}}}}"
    with raises_error(RecipeError, "INS-D014", match=rf"{name}:1: the first line is a header itself \(Text, summary\)"):
        prepare_files(tmp_path, data, SUMMARY)
