"""Reading sources: whatever a user brings is read right, or refused with file, line and reason."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from data_prep.readers.encoding import BLOCK_BYTES
from data_prep.readers.read import read
from data_prep.readers.source_row import SourceFile, SourceRow
from data_prep.readers.sources import find_files, find_ignored_files, sha256
from insource.config.errors import RecipeError, StageError
from insource.config.schema.source import Source
from tests.helpers.errors import raises_error
from tests.helpers.malformed_files import MALFORMED_FILES, PLAIN, MalformedFile, to_cesu8
from tests.helpers.property_tests import examples
from tests.helpers.reader_rows import COLUMNS, names, read_error, read_rows, write_file

SUFFIXES = ("csv", "tsv", "json", "jsonl")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}
few_examples = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_corpus_is_large_and_no_case_stands_there_twice() -> None:
    assert len(MALFORMED_FILES) >= 60
    assert len({malformed.case for malformed in MALFORMED_FILES}) == len(MALFORMED_FILES)


@pytest.mark.parametrize("malformed", MALFORMED_FILES, ids=lambda malformed: malformed.case)
def test_a_hostile_file_is_read_right_or_refused(tmp_path: Path, malformed: MalformedFile) -> None:
    write_file(tmp_path / malformed.file, malformed.content)
    source = Source(path=str(tmp_path / malformed.file), **malformed.source)
    if malformed.refusal:
        message = read_error(source)
        assert malformed.refusal in message
        assert malformed.file in message or "data.source." in message
        assert "\n" not in message
        return
    info, rows = read(find_files(source)[0], source, COLUMNS)
    rows_read = list(rows)
    assert [row.line for row in rows_read] == [line for line, _ in malformed.rows][: len(rows_read)]
    for row, (_, expected) in zip(rows_read, malformed.rows, strict=True):
        if isinstance(expected, str):
            assert expected in (row.problem or "")
            assert row.values == {}
        else:
            assert (row.problem, row.values) == (None, expected)
    assert {key: info.get(key) for key in malformed.facts} == malformed.facts
    assert json.loads(json.dumps(info)) == info


@few_examples
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))),
    st.sampled_from([*SUFFIXES, "parquet"]),
    st.sampled_from(["", ".gz", ".zst"]),
    st.integers(0, 300),
)
@example(b"\r", "csv", "", 0)
def test_any_bytes_are_read_or_refused(
    tmp_path: Path, content: bytes, suffix: str, compression: str, cut_at: int
) -> None:
    packed = PACK[compression](content)
    if cut_at < len(packed) and cut_at % 3 == 0:
        packed = packed[:cut_at] + packed[cut_at + 1 :]
    kind = (suffix, compression[1:] or None if suffix != "parquet" else None)
    file = SourceFile("all", write_file(tmp_path / f"any.{suffix}{compression}", packed), "any", *kind)
    try:
        for row in read(file, Source(path="any"), COLUMNS)[1]:
            assert row.problem is None or not row.values
            json.dumps(row.values, ensure_ascii=False, allow_nan=False).encode()
    except RecipeError as error:
        assert "any" in str(error)


@few_examples
@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_parquet_file_with_a_changed_byte_is_read_or_refused(tmp_path: Path, position: int, byte: int) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["hello", "wörld"], "label": ["a", "b"], "n": [1.5, 2.5]}), buffer)
    content = bytearray(buffer.getvalue())
    content[position % len(content)] = byte
    try:
        read_rows(Source(path=str(write_file(tmp_path / "rows.parquet", bytes(content)))))
    except RecipeError as error:
        assert "rows.parquet" in str(error)


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "cesu-8": to_cesu8,
}


@few_examples
@given(
    st.lists(st.tuples(TEXT, st.text("ab", min_size=1)), min_size=1, max_size=6),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(sorted(ENCODINGS)),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["", ".gz", ".zst"]),
)
def test_csv_gives_back_what_was_written(
    tmp_path: Path, rows: list[Any], delimiter: str, line_end: str, encoding: str, quoting: Any, compression: str
) -> None:
    # Python before 3.13 leaves line ends unquoted that are not the ones it writes.
    quoting = csv.QUOTE_ALL if any(set(text) & {"\r", "\n"} for text, _ in rows) else quoting
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows([COLUMNS, *rows])
    content = ENCODINGS[encoding](buffer.getvalue())
    packed = PACK[compression](content)
    read_back = read_rows(Source(path=str(write_file(tmp_path / f"rows.csv{compression}", packed))))
    assert [(row.values["text"], row.values["label"]) for row in read_back] == rows


@few_examples
@given(
    st.lists(st.dictionaries(st.text("ab c", max_size=3), TEXT | st.integers() | st.none(), min_size=1), max_size=6),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(sorted(ENCODINGS)),
    st.sampled_from(["jsonl", "json", "jsonl.gz", "json.zst"]),
)
def test_json_gives_back_what_was_written(
    tmp_path: Path, rows: list[Any], escaped: bool, line_end: str, encoding: str, suffix: str
) -> None:
    lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    text = "".join(f"{line}{line_end}" for line in lines) if "jsonl" in suffix else f'{{"rows": [{",".join(lines)}]}}'
    path = tmp_path / f"rows.{suffix}"
    source = Source(path=str(write_file(path, PACK.get(path.suffix, bytes)(ENCODINGS[encoding](text)))))
    if text:
        assert [row.values for row in read_rows(source)] == rows
    else:
        assert "empty" in read_error(source)


@few_examples
@given(
    st.lists(st.fixed_dictionaries({"text": TEXT, "n": st.none() | st.floats(allow_nan=False, allow_infinity=False)}))
)
def test_parquet_gives_back_what_was_written(tmp_path: Path, rows: list[Any]) -> None:
    schema = pa.schema({"text": pa.string(), "n": pa.float64()})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "rows.parquet")
    assert [row.values for row in read_rows(Source(path=str(tmp_path / "rows.parquet")))] == rows


@few_examples
@given(
    TEXT.filter(lambda text: not text.isascii()), st.sampled_from(["cp1251", "cp1252", "cp1250", "iso8859-7", "gbk"])
)
def test_a_guess_is_never_taken_for_knowledge(tmp_path: Path, text: str, codec: str) -> None:
    content = b"text,label\n" + text.encode(codec, "ignore") + b"\n"
    file = SourceFile("all", write_file(tmp_path / "rows.csv", content), "rows.csv", "csv", None)
    try:
        info, _ = read(file, Source(path="rows.csv"), COLUMNS)
    except RecipeError:
        return
    assert info["encoding_guessed"] == (info["encoding"] in ("latin-1", "cp1252"))


def test_characters_over_the_edges_of_blocks_are_whole(tmp_path: Path) -> None:
    # Each shift lays another byte of a character on the edge of a block.
    for shift in range(8):
        text = "x" * (BLOCK_BYTES - 40 - shift) + "🎉é" * 10
        for content in (to_cesu8(f"text,label\r\n{text},a\r\n"), f"text,label\r\n{text},a\r\n".encode("utf-16")):
            (row,) = read_rows(Source(path=str(write_file(tmp_path / "rows.csv", content))))
            assert row.values["text"] == text


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(40):
            file.write(b'{"text": "%s", "label": "a"}\n' % (b"where is my card " * 60) * 500)
    source = Source(path=str(tmp_path / "rows.jsonl.gz"))
    tracemalloc.start()
    assert sum(1 for _ in read(find_files(source)[0], source, COLUMNS)[1]) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_json_may_stand_in_one_long_line(tmp_path: Path) -> None:
    content = b"[" + b",".join([b'{"text": "%s"}' % (b"x" * 999_999)] * 40) + b"]"
    source = Source(path=str(write_file(tmp_path / "rows.json", content)))
    assert [len(row.values["text"]) for row in read_rows(source)] == [999_999] * 40


def test_arrow_types_become_json(tmp_path: Path) -> None:
    values = {
        "when": datetime(2024, 5, 1, 12, 0, tzinfo=UTC),
        "day": date(2024, 5, 1),
        "clock": time(9, 30),
        "took": timedelta(seconds=90, microseconds=5),
        "price": Decimal("12.50"),
        "many": [1, None],
        "inside": {"at": date(2024, 5, 1)},
        "flag": True,
        "nothing": None,
    }
    columns: dict[str, Any] = {name: [value] for name, value in values.items()}
    columns["kind"] = pa.array(["card"]).dictionary_encode()
    columns["pairs"] = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))
    columns["nano"] = pa.array([1], pa.timestamp("ns"))
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    (row,) = read_rows(Source(path=str(tmp_path / "rows.parquet")))
    assert row.values == {
        "when": "2024-05-01T12:00:00+00:00",
        "day": "2024-05-01",
        "clock": "09:30:00",
        "took": "PT90.000005S",
        "price": "12.50",
        "many": [1, None],
        "inside": {"at": "2024-05-01"},
        "flag": True,
        "nothing": None,
        "kind": "card",
        "pairs": [["a", 1]],
        "nano": "1970-01-01T00:00:00.000000001",
    }


def test_a_value_that_python_has_not_spoils_its_row_alone(tmp_path: Path) -> None:
    timestamps = pa.array([0, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b"], "when": timestamps}), tmp_path / "rows.parquet")
    valid, invalid = read_rows(Source(path=str(tmp_path / "rows.parquet")))
    assert valid.values == {"text": "a", "when": "1970-01-01T00:00:00"}
    assert "column 'when'" in (invalid.problem or "")


def save_dataset(folder: Path, *splits: str) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = {
        split: datasets.Dataset.from_dict({"text": [f"from {split}", "odd"], "label": [1, -1]}, features=features)
        for split in splits or ("alone",)
    }
    (datasets.DatasetDict(data) if splits else data["alone"]).save_to_disk(str(folder))
    return folder


def test_a_saved_data_set_is_read_with_its_names_of_labels(tmp_path: Path) -> None:
    source = Source(path=str(save_dataset(tmp_path / "cards")))
    (file,) = find_files(source)
    info, rows = read(file, source, COLUMNS)
    assert (file.split, file.name, file.kind) == ("all", "cards", "dataset")
    assert info == {"kind": "dataset", "columns": ["text", "label"], "class_labels": ["label"]}
    assert list(rows) == [
        SourceRow("cards", 1, {"text": "from alone", "label": "yes"}),
        SourceRow("cards", 2, {"text": "odd", "label": None}),
    ]


def test_splits_of_a_saved_data_set_are_given_where_one_is_test(tmp_path: Path) -> None:
    source = Source(path=str(save_dataset(tmp_path / "cards", "train", "dev", "test", "unsupervised")))
    assert names(source) == [("train", "cards/train"), ("validation", "cards/dev"), ("test", "cards/test")]
    assert find_ignored_files(source) == ["cards/unsupervised"]
    assert [row.values["text"] for row in read_rows(source)][::2] == ["from train", "from dev", "from test"]
    untested = Source(path=str(save_dataset(tmp_path / "plain", "train", "dev")))
    assert names(untested) == [("all", "plain/train"), ("all", "plain/dev")]


def test_saved_data_sets_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "outer" / "cards", "train", "test")
    assert "give its path" in read_error(Source(path=str(tmp_path / "outer")))
    assert "name one: train, test" in read_error(Source(train=str(folder)))
    write_file(next((folder / "train").glob("*.arrow")), b"rubbish")
    assert "cards/train: not a data set" in read_error(Source(path=str(folder)))
    assert "none named train" in read_error(Source(path=str(save_dataset(tmp_path / "odd", "other", "test"))))


def test_a_hub_that_does_not_answer_fails_the_stage_and_says_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with raises_error(StageError, "INS-D006", match=r"nobody/nothing at abcdef0 could not be loaded") as error:
        find_files(Source(hub="nobody/nothing", revision="abcdef0"))
    assert "data.source.path" in str(error.value)


def test_the_hash_follows_the_bytes(tmp_path: Path) -> None:
    original, copy, different = (
        Source(path=str(write_file(tmp_path / name, content)))
        for name, content in (("a.csv", PLAIN), ("b.csv", PLAIN), ("c.csv", PLAIN + b"x,a\n"))
    )
    hashes = [sha256(find_files(source)[0], source) for source in (original, copy, different)]
    assert hashes[0] == hashes[1] != hashes[2]
    folder = save_dataset(tmp_path / "cards")
    source = Source(path=str(folder))
    digest_before = sha256(find_files(source)[0], source)
    write_file(folder / "more.txt")
    assert sha256(find_files(source)[0], source) != digest_before
    hub = Source(hub="owner/name", revision="abcdef0", config="en")
    assert sha256(SourceFile("all", Path("owner/name"), "owner/name", "hub"), hub) == "owner/name@abcdef0:en"
