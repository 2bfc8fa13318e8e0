"""Small files that hold a lot: refused by what they declare, or by what is measured, with the key that raises it."""

import gzip
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from compare.systems import answer_file_rows
from data_prep.readers import limits
from data_prep.readers.arrow import cell_sizes, parquet_footer
from data_prep.readers.read import read
from data_prep.readers.sources import find_files
from insource.config.errors import RecipeError
from insource.config.schema.source import Source
from tests.helpers.errors import raises_error
from tests.helpers.malformed_files import HEADER, MAIN, workbook_bytes

MIB = 1 << 20
COLUMNS = ("text", "label")
ROW = b'{"text": "%s", "label": "a"}'


def zstd_parquet_bytes(columns: dict[str, Any], **kwargs: Any) -> bytes:
    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", **kwargs)
    return buffer.getvalue()


def count_rows(path: Path, **settings: Any) -> int:
    source = Source(path=str(path), **settings)
    return sum(1 for file in find_files(source) for _ in read(file, source, [*COLUMNS, "codes"])[1])


def shared_text_workbook(cells: int, characters: int) -> bytes:
    """A workbook of one row whose cells share one text."""
    names = "".join(f'<c t="inlineStr"><is><t>c{index}</t></is></c>' for index in range(cells))
    row = '<c t="s"><v>0</v></c>' * cells
    text = f'<sst xmlns="{MAIN}"><si><t>{"x" * characters}</t></si></sst>'
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    workbook = workbook_bytes(f'<row r="1">{names}</row><row r="2">{row}</row>', sharedStrings=text.encode())
    return add_part(workbook, f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kind}"/></Types>')


def add_part(content: bytes, types: str) -> bytes:
    """The workbook with a further part among its types."""
    buffer = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as original, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in original.namelist():
            part = original.read(name)
            if name == "[Content_Types].xml":
                part = part.replace(b"</Types>", types.encode())
            archive.writestr(name, part)
    return buffer.getvalue()


LONG = "x" * (3 * MIB // 2)
MUCH: dict[str, tuple[str, Callable[[], bytes], str | None]] = {
    "one text of many rows": (
        "rows.parquet",
        lambda: zstd_parquet_bytes({"text": [LONG] * 40, "label": ["a"] * 40}),
        r"rows.parquet:1: a row, mostly column 'text', of 1.5 MiB, more than 1; .* set data.source.max_row_mib: 2",
    ),
    "a text that hides behind short ones": (
        "rows.parquet",
        lambda: zstd_parquet_bytes({"text": ["short"] * 700 + [LONG], "label": ["a"] * 701}),
        r"rows.parquet:701: a row, mostly column 'text', of 1.5 MiB",
    ),
    "a text in an object in a list": (
        "rows.parquet",
        lambda: zstd_parquet_bytes({"text": ["x"] * 3, "label": ["a"] * 3, "turns": [[], [{"said": LONG}], []]}),
        r"rows.parquet:2: a row, mostly column 'turns', of 1.5 MiB",
    ),
    "a list of one number": (
        "rows.parquet",
        lambda: zstd_parquet_bytes(
            {"text": ["x"] * 9, "label": ["a"] * 9, "codes": [[]] * 8 + [np.ones(150_000, np.int64)]}
        ),
        r"rows.parquet:9: a row, mostly column 'codes', of 1.1 MiB",
    ),
    "a list of more numbers than a part may have": (
        "rows.parquet",
        lambda: zstd_parquet_bytes(
            {"text": ["x"] * 9, "label": ["a"] * 9, "codes": [[]] * 8 + [np.ones(1_200_000, np.int8)]}
        ),
        r"rows.parquet: column 'codes.list.element' declares .* of 9.2 MiB, more than 2; .*max_unpacked_mib: 10",
    ),
    "texts that are packed a thousandfold": (
        "rows.parquet",
        lambda: zstd_parquet_bytes({"text": ["x" * 50_000] * 200, "label": ["a"] * 200}, use_dictionary=False),
        r"rows.parquet: column 'text' declares [\d,]+ packed bytes that make a part of 9.5 MiB, more than 2",
    ),
    "more rows than can be in so small a file": (
        "rows.parquet",
        lambda: zstd_parquet_bytes({"text": pa.repeat("x", 120_000), "label": pa.repeat("a", 120_000)}),
        r"rows.parquet: 120,000 rows, more than 1,000 times a file of [\d,]+ bytes, of 9.2 MiB, more than 2",
    ),
    "one text of very many rows": (
        "rows.parquet",
        lambda: zstd_parquet_bytes({"text": ["x" * 900_000] * 20, "label": ["a"] * 20}),
        r"rows.parquet:3: rows, more than 1,000 times a file of [\d,]+ bytes, of more than 2 MiB; check",
    ),
    "a line of jsonl": (
        "rows.jsonl.gz",
        lambda: gzip.compress(b"\n" + ROW % LONG.encode()),
        r"rows.jsonl.gz:2: a line of more than 1 MiB; split it, or set data.source.max_row_mib: 2",
    ),
    "a line between others": (
        "rows.jsonl.zst",
        lambda: zstd.compress(b"\n".join([ROW % b"x", ROW % LONG.encode(), ROW % b"y"])),
        r"rows.jsonl.zst:2: a line of more than 1 MiB",
    ),
    "a row of many lines": (
        "rows.csv.gz",
        lambda: gzip.compress(b'text,label\nx,a\n"' + b"a line\n" * 200_000 + b'",a\n'),
        r"rows.csv.gz:3: not CSV: a field or a row of more than 1 MiB; is a quote in it never closed\?.*max_row_mib: 2",
    ),
    "a row of many fields": (
        "rows.csv.gz",
        lambda: gzip.compress(b"text,label\n" + b'"a\n",' * 300_000 + b"a\n"),
        r"rows.csv.gz:2: not CSV: a field or a row of more than 1 MiB",
    ),
    "many lines": (
        "rows.jsonl.zst",
        lambda: zstd.compress((ROW % b"hello" + b"\n") * 90_000),
        r"rows.jsonl.zst:\d+: rows, more than 1,000 times a file of [\d,]+ bytes, .*max_unpacked_mib: 4",
    ),
    "an array that takes all of it": (
        "rows.json.zst",
        lambda: zstd.compress(b"[" + b",\n".join([ROW % b"hello" + b" " * 900] * 2_500) + b"]"),
        r"rows.json.zst:\d+: rows, more than 1,000 times a file of",
    ),
    "a value of an array": (
        "rows.json.gz",
        lambda: gzip.compress(b"[" + ROW % b"x" + b',{"text": "x", "label": [' + b"[111111111]," * 90_000 + b"0]}]"),
        r"rows.json.gz:2: a row of more than 1 MiB; split it, or set data.source.max_row_mib: 2",
    ),
    "a value beside the array": (
        "rows.json.gz",
        lambda: gzip.compress(b'{"more": [' + b"111111111," * 110_000 + b'1], "rows": [' + ROW % b"x" + b"]}"),
        None,
    ),
    "an object beside the array": (
        "rows.json.gz",
        lambda: gzip.compress(b'{"more": {"a": [' + b"[111111111]," * 90_000 + b'1]}, "rows": [' + ROW % b"x" + b"]}"),
        r"rows.json.gz:1: key 'more' of more than 1 MiB",
    ),
    "columns of many values": (
        "rows.json.gz",
        lambda: gzip.compress(b'{"text": [' + b'"x",' * 150_000 + b'"x"], "label": "a"}'),
        r"rows.json.gz: an object whose values take memory of 2.3 MiB, more than 2; convert it to JSONL",
    ),
    "a text of a file": (
        "rows.txt.gz",
        lambda: gzip.compress(b"a line\n" * 200_000),
        r"rows.txt.gz: a text of more than 1 MiB; split it, or set data.source.max_row_mib: 2",
    ),
    "a text that cells share": (
        "rows.xlsx",
        lambda: shared_text_workbook(30, 40_000),
        r"rows.xlsx:2: a row of 1.1 MiB, more than 1; split it, or set data.source.max_row_mib: 2",
    ),
    "a part that is no sheet": (
        "rows.xlsx",
        lambda: workbook_bytes(HEADER, more=b"<x>" + b" " * (9 * MIB) + b"</x>"),
        r"rows.xlsx: an unpacked workbook of 9.0 MiB, more than 2; export it as CSV, or set data.source",
    ),
}


@pytest.mark.parametrize(("name", "make_content", "message"), MUCH.values(), ids=MUCH)
def test_what_is_far_larger_than_its_file_is_refused_in_bounded_memory(
    name: str, make_content: Callable[[], bytes], message: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(make_content())
    assert (tmp_path / name).stat().st_size < MIB // 2
    settings = {"max_row_mib": 1, "max_unpacked_mib": 2} | ({"sample_by": "document"} if ".txt" in name else {})
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        if message is None:
            assert count_rows(tmp_path / name, **settings) == 1
            return
        with raises_error(RecipeError, "INS-D019", match=message) as error:
            count_rows(tmp_path / name, **settings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 64 * MIB and pa.total_allocated_bytes() - arrow < 32 * MIB


def test_what_the_key_allows_is_read(tmp_path: Path) -> None:
    for case in ("one text of many rows", "a row of many lines", "a text that cells share", "a value of an array"):
        name, make_content, _ = MUCH[case]
        (tmp_path / name).write_bytes(make_content())
        assert count_rows(tmp_path / name, max_row_mib=4, max_unpacked_mib=1024)
        (tmp_path / name).unlink()


def test_rows_that_are_the_same_take_no_more_memory_the_more_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(zstd_parquet_bytes({"text": ["x" * MIB] * 100, "label": ["a"] * 100}))
    tracemalloc.start()
    assert count_rows(tmp_path / "rows.parquet", max_unpacked_mib=2048) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * limits.CHUNK_BYTES


def test_footers_are_read_whatever_became_of_the_process_that_reads_them(tmp_path: Path) -> None:
    valid, corrupt = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    valid.write_bytes(zstd_parquet_bytes({"text": ["x", "y"], "turns": [[1], [2, 3]]}))
    corrupt.write_bytes(valid.read_bytes()[:-9] + b"\0" * 9)
    for _ in range(2):
        footer = parquet_footer.read_footer(valid)
        assert footer.rows == 2 and [(chunk.path, chunk.is_repeated) for chunk in footer.chunks] == [
            ("text", False),
            ("turns.list.element", True),
        ]
        with pytest.raises(ValueError, match="damaged"):
            parquet_footer.read_footer(corrupt)
        assert parquet_footer._FOOTER_PROCESS._process is not None
        parquet_footer._FOOTER_PROCESS._process.kill()
        parquet_footer._FOOTER_PROCESS._process.wait()


def test_rows_are_handed_on_by_what_they_weigh() -> None:
    chunks = list(limits.split_into_chunks([3, 4, limits.CHUNK_BYTES, 1, 1, 1], 3, lambda weight: weight))
    assert chunks == [[3, 4, limits.CHUNK_BYTES], [1, 1, 1]]
    assert limits.estimate_bytes({"a": ["xyz", {"b": None}], "c": 1.5}) == 1 + 8 + 3 + 1 + 8 + 1 + 8


def test_sizes_of_arrow_arrays_are_those_of_their_texts() -> None:
    dictionary = pa.array(["abc", None, "abc", "d"]).dictionary_encode()
    nested = pa.array([[{"a": "xy", "n": 1}], None, [], [{"a": None, "n": 2}, {"a": "z", "n": None}]])
    assert cell_sizes.estimate_value_bytes(dictionary).tolist() == [3, 0, 3, 1]
    assert cell_sizes.estimate_value_bytes(dictionary.slice(2)).tolist() == [3, 1]
    assert cell_sizes.estimate_value_bytes(nested).tolist() == [8 + 10, 8, 8, 8 + 8 + 9]
    assert cell_sizes.estimate_value_bytes(nested.slice(3)).tolist() == [8 + 17]
    assert cell_sizes.estimate_value_bytes(pa.array([[("k", "long")]], pa.map_(pa.string(), pa.string()))).tolist() == [
        8 + 5
    ]
    assert cell_sizes.estimate_value_bytes(pa.array([1, None])).tolist() == [8, 8]
    assert cell_sizes.estimate_value_bytes(pa.array([None, None], pa.string()).dictionary_encode()).tolist() == [0, 0]


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_parquet_is_read_whatever_its_encoding(encoding: str | None, kind: Any, tmp_path: Path) -> None:
    if pa.types.is_dictionary(kind) and str(encoding).startswith("DELTA"):
        pytest.skip("Arrow 26 does not read back what it writes so: it knows the column as a dictionary")
    texts = [f"row {index} " + "and so on " * (index % 50) for index in range(1500)]
    table = pa.table({"text": pa.array(texts, kind), "label": pa.array(["a", None, "b"] * 500, kind)})
    options = {"use_dictionary": True} if encoding is None else {"column_encoding": encoding, "use_dictionary": False}
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=400, **options)
    source = Source(path=str(tmp_path / "rows.parquet"))
    rows = [row.values for row in read(find_files(source)[0], source, COLUMNS)[1]]
    assert [row["text"] for row in rows] == texts and [row["label"] for row in rows] == ["a", None, "b"] * 500


def test_texts_in_objects_and_lists_are_read_over_row_groups_and_full_dictionaries(tmp_path: Path) -> None:
    long_texts = [f"{index} " * 300 for index in range(2000)]
    turns = [[{"by": "user", "said": long_text}, {"by": "assistant", "said": "yes"}] for long_text in long_texts]
    columns = {
        "text": long_texts,
        "label": ["a"] * 2000,
        "turns": turns,
        "mail": [{"body": long_text} for long_text in long_texts],
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=700, dictionary_pagesize_limit=50_000)
    assert len(cell_sizes.find_dictionary_columns(parquet_footer.read_footer(path), set(columns))) == 5
    source = Source(path=str(path))
    rows = [row.values for row in read(find_files(source)[0], source, COLUMNS)[1]]
    assert [row["turns"] for row in rows] == turns and [row["mail"]["body"] for row in rows] == long_texts


def test_one_text_in_every_object_of_a_long_list_is_measured_before_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(zstd_parquet_bytes({"text": ["x"], "label": ["a"], "turns": [[{"said": "y" * 900_000}] * 200]}))
    with raises_error(
        RecipeError, "INS-D019", match=r"rows.parquet:1: a row, mostly column 'turns', of 172 MiB, more than 8"
    ):
        count_rows(path)


def test_answers_that_are_too_large_are_told_without_a_key_that_they_do_not_have(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"id": "1", "output": "x" * 9 * MIB}).encode()))
    with raises_error(RecipeError, "INS-D019", match=r"answers.jsonl.gz:1: a line of more than 8 MiB; split it$"):
        list(answer_file_rows.read_answer_rows(path, "auto", ()).rows)


def test_token_ids_that_a_recipe_does_not_name_refuse_no_file(tmp_path: Path) -> None:
    ids = [np.ones(4096, np.int64)] * 100
    (tmp_path / "rows.parquet").write_bytes(
        zstd_parquet_bytes({"text": ["x"] * 100, "label": ["a"] * 100, "attention_mask": ids})
    )
    assert count_rows(tmp_path / "rows.parquet", max_row_mib=1, max_unpacked_mib=2) == 100


def test_a_table_by_columns_may_have_columns_larger_than_a_row(tmp_path: Path) -> None:
    columns = {
        "text": {str(index): "x" * 2000 for index in range(800)},
        "label": {str(index): "a" for index in range(800)},
    }
    (tmp_path / "rows.json").write_text(json.dumps(columns), encoding="utf-8")
    assert count_rows(tmp_path / "rows.json", max_row_mib=1, max_unpacked_mib=4) == 800
