"""Records that come as lists of slots, as places in the text, as pieces of it, or as tags of tokens."""

import csv
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel import yaml

from data_prep.readers.source_row import SourceRow
from data_prep.report import console
from data_prep.rows.data_row import Rejected, Row, make_row
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS
from insource.tasks.words import is_inside_word, join_tokens
from insource.tracking.data_report import DataReport
from tests.data_prep.test_public_data_sets import Report, Splits, prepare_data
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.errors import raises_error
from tests.helpers.prepared_rows import write_rows

TABLE = """
task:
  kind: extraction
  instruction: Say what the guest says of the table.
  json_schema:
    type: object
    properties: {time: &text {type: string, maxLength: 40}, people: *text}
model: {base: pocket}
data:
  source: SOURCE
  columns: COLUMNS
  split: {stratify: null, calibration: 0.05}
  deduplicate: {near: 1}
"""
MUSIC = """
task:
  kind: extraction
  instruction: Read the slots of this request to a music player.
  json_schema:
    type: object
    properties:
      artist: {type: array, maxItems: 4, items: {type: string, maxLength: 40}}
      playlist: {type: string, maxLength: 40}
model: {base: pocket}
data:
  source: SOURCE
  columns: COLUMNS
  split: {stratify: null}
  deduplicate: {near: 1}
"""


def prepare_slots(folder: Path, recipe: str, source: str, columns: str) -> tuple[Splits, Report]:
    return prepare_data(folder, recipe.replace("SOURCE", source).replace("COLUMNS", columns))


def targets_by_text(splits: Splits) -> dict[str, Any]:
    return {row["input"]["text"]: row["target"] for name in SPLITS for row in splits[name]}


PLACES = "slots: {column: labels, name: slot, start: valueSpan.startIndex, end: valueSpan.endIndex"


def write_restaurant8k(folder: Path, offset: int = 0) -> dict[str, Any]:
    """Restaurant8k: places of characters, none of a start at 0, no list where a row has no slot."""
    rows, expected = [], {}
    for n, text in enumerate(distinct_texts(150)):
        hour, guests = f"{n % 9 + 1} in the morning", f"{n % 7 + 2} guests"
        message = f"{hour} for {text}" if n % 3 else f"{text}, {guests}, at {hour}"
        values = {} if n % 5 == 0 else {"time": hour} | ({} if n % 3 else {"people": guests})
        labels = []
        for slot, value in values.items():
            span = {"startIndex": message.index(value), "endIndex": message.index(value) + len(value) - offset}
            labels.append({"slot": slot, "valueSpan": {key: position for key, position in span.items() if position}})
        row = {"userInput": {"text": message}, "context": {"requestedSlots": ["time"]}}
        rows.append({**row, "labels": labels} if labels else row)
        expected[message] = {"time": None, "people": None} | values
    for name, split_rows in (("train_0", rows[:110]), ("test", rows[110:])):
        (folder / f"{name}.json").write_text(json.dumps(split_rows, indent=1), encoding="utf-8")
    return expected


GIVEN = "{train: train_0.json, test: test.json}"


def test_restaurant8k_places_in_the_text_are_the_values(tmp_path: Path) -> None:
    expected = write_restaurant8k(tmp_path)
    splits, report = prepare_slots(tmp_path, TABLE, GIVEN, f"{{text: userInput.text, {PLACES}}}}}")
    assert targets_by_text(splits) == expected
    assert report["rows"]["read"] == sum(report["rows"]["written"].values()) == 150
    assert report["fields"]["time"]["train"] == {"absent": 22, "verbatim": 88}
    assert "inside a word" not in console.format_summary(DataReport(**report), "prepared")


def test_places_that_are_off_by_one_are_told_and_one_key_mends_them(tmp_path: Path) -> None:
    expected = write_restaurant8k(tmp_path, offset=1)
    splits, report = prepare_slots(tmp_path, TABLE, GIVEN, f"{{text: userInput.text, {PLACES}}}}}")
    assert targets_by_text(splits) != expected
    assert report["fields"]["time"]["train"]["cut"] == 88
    assert "field time: in 120 rows its place begins or ends inside a word" in console.format_summary(
        DataReport(**report), "prepared"
    )
    assert "inside a word" in next((tmp_path / "runs" / ".data").glob("*/data.html")).read_text(encoding="utf-8")
    splits, report = prepare_slots(tmp_path, TABLE, GIVEN, f"{{text: userInput.text, {PLACES}, end_inclusive: true}}}}")
    assert targets_by_text(splits) == expected
    assert "cut" not in report["fields"]["time"]["train"]


def test_places_in_lists_by_number_and_in_columns_of_a_table(tmp_path: Path) -> None:
    messages = [f"Nina and Ray for {text}" for text in distinct_texts(90)]
    write_rows(
        tmp_path / "doccano.jsonl",
        [{"text": message, "label": [[0, 4, "artist"], [9, 12, "artist"]]} for message in messages],
    )
    columns = '{text: text, slots: {column: label, name: "2", start: "0", end: "1"}}'
    splits, _ = prepare_slots(tmp_path, MUSIC, "{path: doccano.jsonl}", columns)
    assert {json.dumps(target) for target in targets_by_text(splits).values()} == {
        '{"artist": ["Nina", "Ray"], "playlist": null}'
    }
    # As `datasets` stores a list of objects.
    entities = [{"type": ["artist", "artist"], "start": [0, 9], "end": [4, 12]} for _ in messages]
    pq.write_table(pa.table({"text": messages, "entities": entities}), tmp_path / "rows.parquet")
    columns = "{text: text, slots: {column: entities, name: type, start: start, end: end}}"
    assert targets_by_text(prepare_slots(tmp_path, MUSIC, "{path: rows.parquet}", columns)[0]) == targets_by_text(
        splits
    )


def test_snips_text_in_pieces_of_which_some_are_slots(tmp_path: Path) -> None:
    rows, expected = [], {}
    for n, text in enumerate(distinct_texts(120)):
        segments = [{"text": f"{text}: put "}, {"text": "Don and Sherri", "entity": "artist"}]
        segments += [{"text": " and "}, {"text": "Bj\u00f6rk", "entity": "artist"}] if n % 2 else []
        segments += [{"text": " on "}, {"text": "road trip", "entity": "playlist"}, {"text": " now"}] if n % 3 else []
        rows.append({"data": segments})
        expected["".join(segment["text"] for segment in segments)] = {
            "artist": ["Don and Sherri", "Bj\u00f6rk"] if n % 2 else ["Don and Sherri"],
            "playlist": "road trip" if n % 3 else None,
        }
    (tmp_path / "train_AddToPlaylist.json").write_text(json.dumps({"AddToPlaylist": rows}), encoding="utf-8")
    columns = "{text: data, slots: {column: data, name: entity, value: text}}"
    splits, report = prepare_slots(tmp_path, MUSIC, "{path: train_AddToPlaylist.json}", columns)
    assert targets_by_text(splits) == expected
    assert report["rows"]["read"] == sum(report["rows"]["written"].values()) == 120


@pytest.mark.parametrize(
    "slots",
    [
        lambda names: [["artist", name] for name in names],
        lambda names: json.dumps([["artist", name] for name in names]),
        lambda names: repr([("artist", name) for name in names]),
        lambda names: [["playlist", None], *(["artist", name] for name in names)],
    ],
)
def test_several_values_of_one_slot_are_a_list(tmp_path: Path, slots: Callable[[list[str]], Any]) -> None:
    rows = [
        {"text": f"{text} by Nina and Ray", "slots": slots(["Nina", "Ray"][: n % 3])}
        for n, text in enumerate(distinct_texts(90))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    columns = '{text: text, slots: {column: slots, name: "0", value: "1"}}'
    splits, _ = prepare_slots(tmp_path, MUSIC, "{path: rows.jsonl}", columns)
    actual = targets_by_text(splits)
    assert [actual[row["text"]]["artist"] for row in rows] == [
        [None, ["Nina"], ["Nina", "Ray"]][n % 3] for n in range(90)
    ]


def test_tags_of_tokens_as_class_labels_of_parquet_and_as_text_of_a_table(tmp_path: Path) -> None:
    names = ["O", "B-artist", "I-artist", "B-playlist"]
    tag_feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
    metadata = {b"huggingface": json.dumps({"info": {"features": {"tags": tag_feature}}}).encode()}
    tokens = [[*text.split(), "by", "Nina", "Simone", "Ray", "on", "walks"] for text in distinct_texts(90)]
    tags = [[0] * (len(row_tokens) - 6) + [0, 1, 2, 1, 0, 3] for row_tokens in tokens]
    table = pa.table({"tokens": tokens, "tags": tags}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    splits, _ = prepare_slots(tmp_path, MUSIC, "{path: rows.parquet}", "{text: tokens, tags: tags}")
    assert targets_by_text(splits) == {
        " ".join(row_tokens): {"artist": ["Nina Simone", "Ray"], "playlist": "walks"} for row_tokens in tokens
    }
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        rows = (
            (" ".join(row_tokens), " ".join(names[tag] for tag in row_tags))
            for row_tokens, row_tags in zip(tokens, tags, strict=True)
        )
        csv.writer(file).writerows([("seq_in", "seq_out"), *rows])
    assert targets_by_text(
        prepare_slots(tmp_path, MUSIC, "{path: rows.csv}", "{text: seq_in, tags: seq_out}")[0]
    ) == targets_by_text(splits)


@pytest.mark.parametrize(
    ("tags", "artists"),
    [
        ("B-artist I-artist O B-artist", ["Nina Simone", "Ray"]),  # IOB2
        ("I-artist I-artist O I-artist", ["Nina Simone", "Ray"]),  # IOB
        ("B-artist E-artist O S-artist", ["Nina Simone", "Ray"]),  # IOBES
        ("B-artist L-artist O U-artist", ["Nina Simone", "Ray"]),  # BILOU
        ("artist artist O artist", ["Nina Simone", "Ray"]),
        ("S-artist S-artist O O", ["Nina", "Simone"]),
        ("B-artist B-artist O I-artist", ["Nina", "Simone", "Ray"]),
    ],
)
def test_every_way_of_writing_tags(tmp_path: Path, tags: str, artists: list[str]) -> None:
    rows = [
        {"text": f"Nina Simone and Ray {text}", "tags": f"{tags}{' O' * len(text.split())}"}
        for text in distinct_texts(60)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    splits, _ = prepare_slots(tmp_path, MUSIC, "{path: rows.jsonl}", "{text: text, tags: tags}")
    assert {tuple(target["artist"]) for target in targets_by_text(splits).values()} == {tuple(artists)}


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ("{text: t, tags: s}", {"t": "two words", "s": "O O B-artist"}, "bad_tags: 2 tokens, and 3 tags in column 's'"),
        ("{text: t, tags: s}", {"t": ["a", None], "s": ["O", "O"]}, "a token is null, and a token is a text"),
        ("{text: t, tags: s}", {"t": ["a"], "s": [7]}, "a tag is 7, and a tag is a text"),
        ('{text: t, slots: {column: s, name: "0", value: "1"}}', {"t": "x", "s": "Nina"}, "a list of slots is needed"),
        ('{text: t, slots: {column: s, name: "0", value: "1"}}', {"t": "x", "s": [[None, 1]]}, "slot 1 has no '0'"),
        ("{text: t, slots: {column: s, start: b, end: e}}", {"t": "x", "s": [{"name": "artist", "b": 0}]}, "no place"),
        (
            "{text: t, slots: {column: s, start: b, end: e}}",
            {"t": "abc", "s": [{"name": "artist", "b": 1, "e": 9}]},
            r"slot 1 \(artist\) is given as 1 to 9 of 3 characters",
        ),
        (
            '{text: t, slots: {column: s, name: "0", value: "1"}}',
            {"t": "x", "s": [["playlist", "a"], ["playlist", "b"]]},
            "bad_record: field playlist has 2 values .'a', 'b'., and its schema takes one; type: array",
        ),
        (
            '{text: t, slots: {column: s, name: "0", value: "1"}}',
            {"t": "x", "s": [["singer", "a"]]},
            "no field 'singer'",
        ),
    ],
)
def test_what_cannot_be_read_is_rejected_with_the_reason(
    tmp_path: Path, columns: str, row: dict[str, Any], message: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", [row] * 3)
    with raises_error(RecipeError, "INS-D022", match=message):
        prepare_slots(tmp_path, MUSIC, "{path: rows.jsonl}", columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("{slots: {column: s}}", r"r.yaml:13  data.columns.slots: give value, or start and end"),
        ("{slots: {column: s, start: b}}", "data.columns.slots: give value, or start and end"),
        ("{slots: {column: s, value: v}, tags: t}", "data.columns.slots: and data.columns.tags both hold the record"),
        ("{tags: t, target: record}", "data.columns.tags: and data.columns.target both hold the record; keep one"),
        ("{text: [a, b], tags: t}", "marks positions in one text, but data.columns.text names 2 columns; name one"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_key(tmp_path: Path, columns: str, message: str) -> None:
    recipe = MUSIC.replace("SOURCE", "{path: rows.jsonl}").replace("COLUMNS", columns)
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    with raises_error(RecipeError, "INS-R001", match=message):
        load(str(tmp_path / "r.yaml"), (), "cpu")


def test_slots_belong_to_extraction() -> None:
    with raises_error(
        RecipeError, "INS-R001", match=r"data.columns.tags: holds the fields of a record, and kind is classification"
    ):
        load("classifier", ["data.columns.tags=tags"], "cpu")


def test_tokens_are_joined_as_their_script_writes_words() -> None:
    assert join_tokens(["play", "Nina", "now"]) == ("play Nina now", [(0, 4), (5, 9), (10, 13)])
    assert join_tokens(["我", "爱", "北京", "VISA", "卡"])[0] == "我爱北京 VISA 卡"
    assert join_tokens([]) == ("", [])


def test_a_place_inside_of_a_word_is_between_two_letters_or_digits_of_a_script_with_spaces() -> None:
    assert is_inside_word("child", 4) and is_inside_word("2026", 2) and is_inside_word("Größe", 3)
    assert not any(
        is_inside_word(text, index)
        for text, index in (("6pm", 1), ("a b", 1), ("我爱北京", 2), ("서울에서", 2), ("ab", 2))
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["name", "b", "e", "v", "0", "1"]), inside, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "columns",
    [
        "{text: t, slots: {column: s, start: b, end: e}}",
        "{text: t, slots: {column: s, value: v, name: '0'}}",
        "{text: s, slots: {column: s, value: v}}",
        "{text: t, tags: s}",
    ],
)
@given(text=ANYTHING, slots=ANYTHING)
def test_whatever_stands_there_is_a_row_or_is_rejected(columns: str, text: Any, slots: Any) -> None:
    row = make_row(SourceRow("rows.jsonl", 1, {"t": text, "s": slots}), _recipe(columns))
    assert isinstance(row, Row | Rejected)


@lru_cache
def _recipe(columns: str) -> Recipe:
    values = yaml.YAML(typ="safe").load(MUSIC.replace("SOURCE", "{path: x}").replace("COLUMNS", columns))
    return Recipe.model_validate(values)
