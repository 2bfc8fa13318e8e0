"""Public data sets as they lie there, rebuilt in small by us: a recipe of at most 15 lines prepares each of them, and
every row is accounted for."""

import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import prepare
from insource.config.load import load
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from tests.helpers.distinct_texts import distinct_texts
from tests.helpers.prepared_rows import write_rows

Report = dict[str, Any]
Splits = dict[str, list[dict[str, Any]]]


def prepare_data(folder: Path, recipe: str) -> tuple[Splits, Report]:
    """The splits and the report of a recipe; rows read are rows written, dropped, rejected and filtered."""
    lines = recipe.strip().splitlines()
    assert len(lines) <= 15
    (folder / "r.yaml").write_text(recipe, encoding="utf-8")
    data_folder, _ = prepare.main(load(str(folder / "r.yaml"), (), "cpu").recipe, folder / "runs")
    report = atomic_files.read_json(data_folder / "data.json")
    splits = {name: list(atomic_files.read_jsonl(data_folder / f"{name}.jsonl")) for name in SPLITS}
    rows = report["rows"]
    assert {name: len(split_rows) for name, split_rows in splits.items()} == rows["written"]
    n_left_out = sum(rows["dropped"].values()) + sum(rows["rejected"].values()) + rows["filtered"]
    assert rows["read"] == sum(rows["written"].values()) + n_left_out
    return splits, report


def write_csv(path: Path, rows: Iterable[Sequence[Any]], **dialect: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **dialect).writerows(rows)


def test_clinc150_numbers_for_intents_and_texts_out_of_scope_in_given_splits(tmp_path: Path) -> None:
    intents = ["oos", "transfer", "pay_bill", "card_declined", "yes", "no"]
    features = {"text": {"dtype": "string"}, "intent": {"names": intents, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    all_texts = distinct_texts(300)
    (tmp_path / "plus").mkdir()
    for name, start, end in (("train", 0, 180), ("validation", 180, 220), ("test", 220, 300)):
        split_texts = all_texts[start:end] + (all_texts[220:222] if name == "train" else [])
        numbers = [0 if n % 20 == 19 else 1 + n % 5 for n in range(len(split_texts))]
        table = pa.table({"text": split_texts, "intent": numbers}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / "plus" / f"{name}-00000-of-00001.parquet")
    splits, report = prepare_data(
        tmp_path,
        """
task: {kind: classification, instruction: Choose the intent of this request.}
model: {base: pocket}
data:
  source: {path: plus}
  columns: {text: text, label: intent}
  split: {calibration: 0.1}
  deduplicate: {near: 1}
""",
    )
    assert set(report["labels"]) == set(intents)
    assert (len(splits["test"]), len(splits["validation"])) == (80, 40)
    assert report["rows"]["dropped"] == {"in_test": 2}
    assert sum(row["target"] == "oos" for row in splits["test"]) == 4


def test_hwu64_rows_of_one_status_and_intents_of_few_rows(tmp_path: Path) -> None:
    head = ["userid", "answerid", "intent", "status", "answer_annotation", "notes", "answer_normalised", "answer"]
    rows = []
    for n, text in enumerate(distinct_texts(240)):
        intent = "cooking_recipe" if n % 60 == 7 else ("set", "query", "remove")[n % 3]
        status = ("", "", "", "IRR", "MOD")[n % 5]
        annotated = f"{text} [time : 5 pm]"
        rows.append([n % 80, n, intent, status, annotated, "", text, f"{text}?"])
    write_csv(tmp_path / "annotated.csv", [head, *rows], delimiter=";")
    splits, report = prepare_data(
        tmp_path,
        """
task: {kind: classification, instruction: Choose the intent of this request to a home assistant.}
model: {base: pocket}
data:
  source: {path: annotated.csv}
  columns: {text: answer_normalised, label: intent, id: answerid}
  where: {status: [null, MOD]}
  rare_labels: {min_rows: 10, do: drop}
  split: {group: userid}
  deduplicate: {near: 1}
""",
    )
    relevant = [row for row in rows if row[3] != "IRR"]
    rare = [row for row in relevant if row[2] == "cooking_recipe"]
    assert (report["rows"]["read"], report["rows"]["filtered"]) == (240, 240 - len(relevant))
    assert report["rows"]["dropped"] == {"rare_label": len(rare)}
    assert set(report["labels"]) == {"set", "query", "remove"}
    groups = [{row["group"] for row in splits[name]} for name in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_snips_slots_are_arrays_of_what_stands_in_the_text(tmp_path: Path) -> None:
    singers = ["Nina Simone", "Ray Charles", "Johnny Cash"]
    rows = []
    for n, text in enumerate(distinct_texts(150)):
        artists = [singers[n % 3], singers[(n + 1) % 3]][: 1 + n % 2]
        phrase = " and ".join(artists)
        slots = {"artist": artists, "playlist": ["road trip"]} if n % 4 else {"artist": artists}
        rows.append({"text": f"{text}, put {phrase} on{' my road trip' if n % 4 else ''}", "slots": slots})
    write_rows(tmp_path / "snips.jsonl", rows)
    splits, report = prepare_data(
        tmp_path,
        """
task:
  kind: extraction
  instruction: Read the slots of this request to a music player.
  json_schema:
    type: object
    properties:
      artist: {type: array, maxItems: 4, items: {type: string, maxLength: 40}}
      playlist: {type: array, maxItems: 4, items: {type: string, maxLength: 40}}
model: {base: pocket}
data:
  source: {path: snips.jsonl}
  columns: {target: slots}
  split: {stratify: null}
  deduplicate: {near: 1}
""",
    )
    assert report["rows"]["read"] == sum(report["rows"]["written"].values()) == 150
    assert report["fields"]["artist"]["all"] == {"verbatim": 150}
    assert report["fields"]["playlist"]["all"] == {"absent": 38, "verbatim": 112}
    assert {row["target"]["playlist"] is None for row in splits["train"]} == {True, False}


def test_restaurant8k_values_that_differ_in_spelling_are_no_conflict(tmp_path: Path) -> None:
    def row(text: str, **slots: str) -> dict[str, Any]:
        return {"userInput": text, **slots}

    times = ["on Monday", "at noon", "next Friday"]
    train = [
        row(f"{text}, a table {times[n % 3]} please", time=times[n % 3]) for n, text in enumerate(distinct_texts(120))
    ]
    train += [row("At 4:30 PM!", time="4:30 PM"), row("at 4:30 pm", time="4:30 pm")]
    train += [row("For 2", people="2"), row("for 2.", date="2")]
    write_rows(tmp_path / "train.jsonl", train)
    write_rows(tmp_path / "test.jsonl", [row(f"{text}, come {times[n % 3]}", time=times[n % 3])
                                  for n, text in enumerate(distinct_texts(160)[120:])])  # fmt: skip
    _, report = prepare_data(
        tmp_path,
        """
task:
  kind: extraction
  instruction: Say what the guest says of the table.
  json_schema:
    type: object
    properties: {time: &text {type: string, maxLength: 40}, people: *text, date: *text}
  normalizers: {time: [whitespace, case, punctuation]}
model: {base: pocket}
data:
  source: {train: train.jsonl, test: test.jsonl}
  columns: {text: userInput}
  split: {stratify: null, validation: 0.05, calibration: 0, seed: 3}
  deduplicate: {near: 1}
""",
    )
    assert report["rows"]["read"] == 164
    assert report["rows"]["dropped"] == {"duplicate": 1, "conflict": 2}
    assert report["rows"]["written"]["test"] == 40


def test_10kgnad_has_no_header_and_quotes_of_its_own(tmp_path: Path) -> None:
    topics = ["Etat", "Inland", "Sport", "Web"]
    rows = [
        [topics[n % 4], f"Die gr\u00fc\u00dfe; {text}, so heisst's \u201eheute\u201c"]
        for n, text in enumerate(distinct_texts(160))
    ]
    for name, split_rows in (("train", rows[:120]), ("test", rows[120:])):
        write_csv(tmp_path / f"{name}.csv", split_rows, delimiter=";", quotechar="'")
    splits, report = prepare_data(
        tmp_path,
        """
task: {kind: classification, instruction: Choose the section of this article.}
model: {base: pocket}
data:
  source: {train: train.csv, test: test.csv, header: [label, text], delimiter: ";", quotes: "'"}
  deduplicate: {near: 1}
""",
    )
    assert set(report["labels"]) == set(topics)
    assert {row["input"]["text"] for row in splits["test"]} == {text for _, text in rows[120:]}
    assert report["rows"]["read"] == sum(report["rows"]["written"].values()) == 160


def test_chinese_headlines_with_keywords_in_lines_of_json(tmp_path: Path) -> None:
    topics = {"news_sports": "球赛", "news_finance": "股市", "news_travel": "旅行"}
    openings = ["今天", "明天", "昨晚", "上午", "下午", "本周", "下月", "去年"]
    endings = ["开始了", "结束了", "很热闹", "没有消息", "让人意外", "创新高"]
    rows = [
        {
            "label": str(100 + index),
            "label_desc": label,
            "sentence": f"{a}{topic}{b}",
            "keywords": topic if index else "",
        }
        for index, (label, topic) in enumerate(topics.items())
        for a in openings
        for b in endings
    ]
    for name in ("train", "dev", "test"):
        split_rows = [row for n, row in enumerate(rows) if ("train", "train", "train", "dev", "test")[n % 5] == name]
        write_rows(tmp_path / "tnews" / f"{name}.json", split_rows)
    splits, report = prepare_data(
        tmp_path,
        """
task: {kind: classification, instruction: Choose the section of this headline.}
model: {base: pocket}
data:
  source: {path: tnews}
  columns: {text: [sentence, keywords], separator: "\uff1b", label: label_desc}
  split: {calibration: 0.1}
  deduplicate: {near: 1}
""",
    )
    assert set(report["labels"]) == set(topics)
    assert report["rows"]["read"] == sum(report["rows"]["written"].values()) == 144
    sports_texts = {row["input"]["text"] for row in splits["test"] if row["target"] == "news_sports"}
    assert not any("\uff1b" in text for text in sports_texts)
    assert report["suspects"]["found"] <= 0.1 * report["suspects"]["rows_looked_at"]


def test_hh_rlhf_pairs_of_conversations_in_packed_lines(tmp_path: Path) -> None:
    all_texts = distinct_texts(130)
    (tmp_path / "harmless").mkdir()
    for name, split_texts in (("train", all_texts[:100]), ("test", all_texts[100:])):
        pairs = []
        for n, text in enumerate(split_texts):
            prompt = f"\n\nHuman: hello\n\nAssistant: hi\n\nHuman: {text}?\n\nAssistant:"
            chosen = f"{prompt} Of course, {text}." if n % 10 else prompt
            pairs.append({"chosen": chosen, "rejected": f"{prompt} I will not say."})
        with gzip.open(tmp_path / "harmless" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    splits, report = prepare_data(
        tmp_path,
        """
task: {kind: preference, instruction: Answer as a helpful and harmless assistant.}
model: {base: pocket}
data:
  source: {path: harmless}
  columns: {text: chosen, chosen: chosen, rejected: rejected}
  split: {stratify: null}
  max_rejected: 0.15
  deduplicate: {near: 1}
""",
    )
    assert report["rows"]["rejected"] == {"no_answer": 13}
    assert report["rows"]["read"] == 130
    assert len(splits["test"]) == 27
    assert all(row["input"]["text"].startswith("user: hello\nassistant: hi\nuser: ") for row in splits["train"])
    assert not any(row["target"]["chosen"] in row["input"]["text"] for name in SPLITS for row in splits[name])


def test_dialogsum_talks_of_many_lines_with_three_summaries_of_each_test_talk(tmp_path: Path) -> None:
    def talk(text: str) -> str:
        return f'#Person1#: Did you hear, "{text}"?\r\n#Person2#: Yes, I did :-)'

    head, all_texts = ["id", "dialogue", "summary", "topic"], distinct_texts(100)
    train = [
        [f"train_{n}", talk(text), f"#Person1# tells that {text}.", "news"] for n, text in enumerate(all_texts[:80])
    ]
    test = [
        [f"test_{n}_{reader}", talk(text), f"{speaker} hears that {text}.", "news"]
        for n, text in enumerate(all_texts[80:])
        for reader, speaker in enumerate(("#Person2#", "One", "The other"), start=1)
    ]
    for name, split_rows in (("train", train), ("test", test)):
        write_csv(tmp_path / f"{name}.csv", [head, *split_rows])
    splits, report = prepare_data(
        tmp_path,
        """
task: {kind: generation, instruction: Sum up this conversation in one sentence.}
model: {base: pocket}
data:
  source: {train: train.csv, test: test.csv}
  columns: {text: dialogue, target: summary, id: id}
  split: {stratify: null}
  deduplicate: {near: 1}
""",
    )
    assert report["rows"]["read"] == sum(report["rows"]["written"].values()) == 140
    assert len(splits["test"]) == 60
    assert len({row["input"]["text"] for row in splits["test"]}) == 20
    assert all("\r" not in row["input"]["text"] and row["input"]["text"].count("\n") == 1 for row in splits["test"])
