"""Data preparation: what comes in comes out or is accounted for, and nothing of test is trained on."""

import csv
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from data_prep import prepare
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS, Source
from insource.system import atomic_files
from insource.text.text_keys import duplicate_key
from tests.conftest import Command
from tests.helpers.malformed_files import MALFORMED_FILES, MalformedFile, parquet_bytes

Rows = Iterable[tuple[str, str]]


def make_recipe(folder: Path, rows: Rows, extra: str = "") -> Recipe:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "customer"])
        writer.writerows((text, label, f"c{number % 7}") for number, (text, label) in enumerate(rows))
    (folder / "r.yaml").write_text(
        "task: {kind: classification, instruction: Route the message to one queue.}\nmodel: {base: pocket}\n"
        f"data:\n  source: {{path: rows.csv}}\n{extra}",
        encoding="utf-8",
    )
    return load(str(folder / "r.yaml"), (), "cpu").recipe


def make_rows(count: int) -> list[tuple[str, str]]:
    return [
        (f"message number {number} about {'cats' if number % 2 else 'dogs'}", "ab"[number % 2])
        for number in range(count)
    ]


def prepare_data(recipe: Recipe, runs: Path) -> tuple[dict[str, list[Any]], Any]:
    folder, _ = prepare.main(recipe, runs)
    return {name: list(atomic_files.read_jsonl(folder / f"{name}.jsonl")) for name in SPLITS}, atomic_files.read_json(
        folder / "data.json"
    )


def preparation_error(recipe: Recipe, runs: Path) -> str:
    with pytest.raises(RecipeError) as error:
        prepare.main(recipe, runs)
    assert not list(runs.rglob("*.json*")), "something half-written is left"
    return str(error.value)


def test_banking77_is_read_whole_and_what_test_has_leaves_train(banking77: Path, tmp_path: Path) -> None:
    sources = [f"data.source.{name}={banking77 / name}.csv" for name in ("train", "test")]
    splits, report = prepare_data(load("banking77", sources, "cpu").recipe, tmp_path)
    assert [source["rows_read"] for source in report["sources"]] == [10003, 3080]
    assert report["rows"]["dropped"]["in_test"] == 25
    assert report["test_rows_also_elsewhere"]["cleaned"] == 7
    assert len(splits["test"]) == 3080
    assert len(report["labels"]) == 77
    test = {duplicate_key(row["input"]["text"]) for row in splits["test"]}
    assert not test & {duplicate_key(row["input"]["text"]) for name in SPLITS[:3] for row in splits[name]}


def test_the_demo_is_what_its_generator_writes_and_fits_its_purpose(tmp_path: Path, python: Command) -> None:
    committed = prepare.Path(__file__).parents[2] / "demo_data" / "support_tickets.csv"
    assert python("demo_data.support_tickets").stdout == committed.read_text(encoding="utf-8")
    splits, report = prepare_data(load("classifier", (), "cpu").recipe, tmp_path)
    assert report["rows"]["read"] == 8000
    assert 1900 <= len(splits["test"]) <= 2100
    assert len(report["labels"]) == 12


def test_a_linear_model_does_neither_well_enough_nor_badly_enough_on_the_demo_to_make_it_trivial(
    tmp_path: Path,
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    splits, _ = prepare_data(load("classifier", (), "cpu").recipe, tmp_path)
    texts = {name: [row["input"]["text"] for row in splits[name]] for name in ("train", "validation")}
    targets = {name: [row["target"] for row in splits[name]] for name in ("train", "validation")}
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=300)
    )
    accuracy = model.fit(texts["train"], targets["train"]).score(texts["validation"], targets["validation"])
    assert 0.80 < accuracy < 0.95


def test_every_row_is_accounted_for_and_same_seed_gives_same_bytes(tmp_path: Path) -> None:
    rows = [*make_rows(200), ("message number 3 about cats!", "b"), ("", "a"), ("odd", "")]
    recipe = make_recipe(tmp_path, rows, "  max_rejected: 0.05\n")
    splits, report = prepare_data(recipe, tmp_path / "one")
    rejected = list(atomic_files.read_jsonl(next((tmp_path / "one").rglob("rejected.jsonl"))))
    assert sum(map(len, splits.values())) + len(rejected) == report["rows"]["read"] == 203
    assert {(row["reason"], row["line"]) for row in rejected if row["kind"] == "rejected"} == {
        ("no_text", 203),
        ("no_label", 204),
    }
    _, repeated_report = prepare_data(recipe, tmp_path / "two")
    assert repeated_report["sha256"] == report["sha256"]


@pytest.mark.parametrize(("conflicts", "expected"), [("drop", set()), ("majority", {"a"})])
def test_train_rows_with_one_text_and_two_labels(tmp_path: Path, conflicts: str, expected: set[str]) -> None:
    (tmp_path / "test.csv").write_text("text,label\nquite another thing,a\nand one more,b\n", encoding="utf-8")
    recipe = make_recipe(tmp_path, [*make_rows(100), ("torn apart", "a"), ("Torn apart!", "a"), ("torn apart.", "b")])
    source = recipe.data.source.model_copy(
        update={"path": None, "train": str(tmp_path / "rows.csv"), "test": str(tmp_path / "test.csv")}
    )
    split = recipe.data.split.model_copy(update={"validation": 0.01, "calibration": 0.01})
    data = recipe.data.model_copy(update={"source": source, "conflicts": conflicts, "split": split})
    splits, report = prepare_data(recipe.model_copy(update={"data": data}), tmp_path / "runs")
    conflicting = [
        row for name in SPLITS for row in splits[name] if duplicate_key(row["input"]["text"]) == "torn apart"
    ]
    assert {row["target"] for row in conflicting} == expected
    assert report["rows"]["dropped"]["conflict"] == (3 if conflicts == "drop" else 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"text,label\n", "no rows below the header"),
        (b"text,lable\nhello there,a\n", "did you mean 'lable'?"),
        (b"text,label\nhello,a\nworld,a\nonce,b\n", "'b' occurs once"),
        (b"text,label\nhell\xff,a\n", "byte 0xff in line 2"),
        (b"text,text\na,b\n", "occurs twice"),
        (b'text,label\n"never closed,a\n', "not CSV"),
        (b"text,label\nhello,a\nworld\nagain,b\n", "1 of 3 rows cannot be used"),
        (b"text,label\nhe\x00llo,a\nworld,a\n", "NUL"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_place_and_leaves_nothing(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    recipe = make_recipe(tmp_path, [])
    (tmp_path / "rows.csv").write_bytes(content)
    message = preparation_error(recipe, tmp_path / "runs")
    assert problem in message
    assert "rows.csv" in message or "label" in message


def test_a_label_that_the_recipe_does_not_list_is_named_with_the_nearest(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, [*make_rows(50), ("what now", "delivry")])
    task = recipe.task.model_copy(update={"labels": ["a", "b", "delivery"]})
    assert "did you mean 'delivery'?" in preparation_error(recipe.model_copy(update={"task": task}), tmp_path / "runs")


def test_spellings_of_a_label_are_one_and_the_original_is_kept(tmp_path: Path) -> None:
    rows = [(text, {"a": "Refund status", "b": "other"}[label]) for text, label in make_rows(300)]
    rows[10], rows[12] = ("an odd one out", "refund_status"), ("and a second of them", "REFUND-STATUS ")
    splits, report = prepare_data(make_recipe(tmp_path, rows), tmp_path / "one")
    assert set(report["labels"]) == {"Refund status", "other"}
    assert report["labels"]["Refund status"]["spellings"].keys() == {"Refund status", "refund_status", "REFUND-STATUS "}
    odd_row = next(row for name in SPLITS for row in splits[name] if row["input"]["text"] == "an odd one out")
    assert (odd_row["target"], odd_row["original_target"]) == ("Refund status", "refund_status")
    message = preparation_error(make_recipe(tmp_path, rows, "  normalize_labels: false\n"), tmp_path / "two")
    assert "'refund_status' occurs once" in message


def test_what_is_redacted_stands_in_no_file_and_what_is_not_is_counted(tmp_path: Path, capsys: Any) -> None:
    secrets = ["ann.smith@example.org", "4111 1111 1111 1111", "GB29 NWBK 6016 1331 9268 19", "bob@example.net"]
    rows = make_rows(200)
    rows[3] = (f"write to {secrets[0]} or pay by {secrets[1]}", "a")
    rows[4] = (f"my account is {secrets[2]}, again {secrets[2]}", "b")
    rows[5] = ("", f"{secrets[3]}")
    redact = "privacy: {redact: [email, card, iban]}\n"
    recipe = make_recipe(tmp_path, rows, f"  max_rejected: 0.05\n{redact}")
    splits, report = prepare_data(recipe, tmp_path / "runs")
    texts = {row["input"]["text"] for name in SPLITS for row in splits[name]}
    assert "write to [EMAIL_1] or pay by [CARD_1]" in texts
    assert "my account is [IBAN_1], again [IBAN_1]" in texts
    assert report["personal_data"]["email"] == {"rows": 1, "redacted": True, "at": ["rows.csv:5"]}
    assert report["personal_data"]["phone"]["redacted"] is False
    captured = capsys.readouterr()
    for path in filter(Path.is_file, (tmp_path / "runs").rglob("*")):
        for secret in secrets:
            assert secret.encode() not in path.read_bytes(), path
            assert secret not in captured.out + captured.err


def test_train_rows_over_max_length_leave_and_test_rows_never_do(tmp_path: Path) -> None:
    long_text = " ".join(f"word{number}" for number in range(150))
    recipe = make_recipe(tmp_path, [*make_rows(200), *((f"{long_text} {number * 7919}", "a") for number in range(20))])
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_length": 128})})
    data_settings = recipe.data.model_copy(
        update={"deduplicate": recipe.data.deduplicate.model_copy(update={"near": 1.0})}
    )
    splits, report = prepare_data(recipe.model_copy(update={"data": data_settings}), tmp_path / "runs")
    n_long = {name: sum(len(row["input"]["text"]) > 900 for row in splits[name]) for name in SPLITS}
    assert n_long["train"] == 0
    assert n_long["test"] == report["tokens"]["over_max_length"]["test"] > 0
    assert report["rows"]["dropped"]["too_long"] + sum(n_long.values()) == 20
    failing_recipe = recipe.model_copy(update={"data": data_settings.model_copy(update={"too_long": "fail"})})
    assert "longer than train.max_length (128 tokens)" in preparation_error(failing_recipe, tmp_path / "none")


def test_token_lengths_are_those_that_training_counts(tmp_path: Path, tokenizer: Any) -> None:
    from insource.tasks import classification
    from insource.tasks.rendering import chat_template

    recipe = load("classifier", (), "cpu").recipe
    folder, _ = prepare.main(recipe, tmp_path)
    report, rows = atomic_files.read_json(folder / "data.json"), list(atomic_files.read_jsonl(folder / "train.jsonl"))
    spec = classification.make_spec(
        recipe.task, {name: entry["description"] for name, entry in report["labels"].items()}
    )
    examples = chat_template.render_examples(
        tokenizer, [classification.messages(spec, row["input"]) for row in rows], [row["target"] for row in rows]
    )
    lengths = sorted(len(example.prompt_ids) + len(example.completion_ids) for example in examples)
    edges, counts = report["tokens"]["histogram"]["edges"], report["tokens"]["histogram"]["train"]
    assert sum(counts) == len(lengths)
    for index, edge in enumerate(edges[1:]):
        assert abs(sum(length < edge for length in lengths) - sum(counts[: index + 1])) <= len(lengths) // 100


def test_planted_label_errors_are_suspected_and_listed_safely_for_a_spreadsheet(tmp_path: Path) -> None:
    topics = {
        "a": ["parcel", "late", "courier", "delivery", "tracking", "driver", "depot", "address", "doorbell"],
        "b": ["invoice", "charge", "refund", "bank", "payment", "statement", "currency", "fee", "receipt"],
    }
    rng = random.Random(2)
    rows = [(f"{' '.join(rng.choices(topics['ab'[index % 2]], k=7))} {index}", "ab"[index % 2]) for index in range(600)]
    mislabeled = {rows[index][0] for index in range(0, 600, 40)}
    rows = [(text, {"a": "b", "b": "a"}[label] if text in mislabeled else label) for text, label in rows]
    rows[1] = ("=HYPERLINK(parcel) courier delivery late depot driver", "b")
    recipe = make_recipe(tmp_path, rows)
    folder, _ = prepare.main(recipe, tmp_path / "runs")
    with (folder / "suspects.csv").open(encoding="utf-8-sig", newline="") as file:
        suspects = list(csv.DictReader(file))
    test_texts = {row["input"]["text"] for row in atomic_files.read_jsonl(folder / "test.jsonl")}
    suspect_texts = {row["text"] for row in suspects}
    assert len(suspect_texts & mislabeled) >= 0.8 * len(mislabeled - test_texts)
    assert not [cell for row in suspects for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    assert not suspect_texts & test_texts
    assert atomic_files.read_json(folder / "data.json")["suspects"]["found"] == len(suspects)


def test_chat_rows_give_their_last_answer_and_their_system_prompts_are_counted(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, [])
    turns = [
        [
            {"role": "system", "content": "Route it."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": label},
        ]
        for text, label in make_rows(150)
    ]
    turns.append(
        [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "how can I help?"},
            {"role": "user", "content": "a dog bit me"},
            {"role": "assistant", "content": "a"},
        ]
    )
    invalid: list[Any] = [[{"role": "user", "content": "nobody answers"}], "no list", [{"role": "user"}]]
    lines = [json.dumps({"messages": messages}) for messages in [*turns, *invalid]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = recipe.data.model_copy(
        update={
            "source": recipe.data.source.model_copy(update={"path": str(tmp_path / "rows.jsonl")}),
            "columns": recipe.data.columns.model_copy(update={"messages": "messages"}),
            "max_rejected": 0.1,
        }
    )
    splits, report = prepare_data(recipe.model_copy(update={"data": data}), tmp_path / "runs")
    texts = {row["input"]["text"]: row["target"] for name in SPLITS for row in splits[name]}
    assert texts["user: hello\nassistant: how can I help?\nuser: a dog bit me"] == "a"
    assert report["rows"]["rejected"] == {"bad_messages": 3}
    assert report["system_prompts_replaced"] == 1


@pytest.mark.parametrize("malformed", MALFORMED_FILES, ids=lambda malformed: malformed.case)
def test_a_hostile_file_beside_a_good_one_is_refused_or_every_row_of_it_is_accounted_for(
    tmp_path: Path, malformed: MalformedFile
) -> None:
    rows = [(text, label) for text, label in make_rows(120)]
    (tmp_path / "good.parquet").write_bytes(
        parquet_bytes({"text": [message for message, _ in rows], "label": [label for _, label in rows]})
    )
    recipe = make_recipe(tmp_path, [])  # which writes a rows.csv of its own
    (tmp_path / malformed.file).write_bytes(malformed.content)
    paths = [str(tmp_path / "good.parquet"), str(tmp_path / malformed.file)]
    source = Source.model_validate({"paths": paths, **malformed.source})
    data = recipe.data.model_copy(update={"source": source, "max_rejected": 1.0})
    try:
        folder, _ = prepare.main(recipe.model_copy(update={"data": data}), tmp_path / "runs")
    except RecipeError as error:
        assert any(word in str(error) for word in (malformed.file, "data.source", "label"))
        assert not list((tmp_path / "runs").rglob("*.json*"))
        return
    written_ids = {row["id"] for name in SPLITS for row in atomic_files.read_jsonl(folder / f"{name}.jsonl")}
    rejected = [(row["file"], row["line"]) for row in atomic_files.read_jsonl(folder / "rejected.jsonl")]
    expected_ids = {f"{malformed.file}:{line}" for line, _ in malformed.rows}
    assert not malformed.refusal
    assert expected_ids <= written_ids | {f"{file}:{line}" for file, line in rejected}
    assert len(written_ids) + len(rejected) == 120 + len(malformed.rows)


def test_receipts_are_read_whole_and_their_oddities_are_found(sroie: Path, tmp_path: Path) -> None:
    sources = [f"data.source.{name}={sroie / name}.jsonl" for name in ("train", "test")]
    splits, report = prepare_data(load("sroie", sources, "cpu").recipe, tmp_path)
    assert [source["rows_read"] for source in report["sources"]] == [626, 361]
    assert len(splits["test"]) == 361
    assert report["fields"]["address"]["train"]["absent"] == 1
    assert report["fields"]["total"]["train"]["empty"] == 1
    assert report["fields"]["address"]["test"]["verbatim"] + report["fields"]["address"]["test"]["rewrapped"] == 12
    unseen_counts = report["slices"]["unseen_vendor"]
    assert unseen_counts["test_rows_known_to_given_train"] == 261
    assert unseen_counts["values"]["true"]["test"] >= 100
    assert report["slices"]["official"]["values"]["true"]["test"] == 347
    unseen_companies = {row["target"]["company"] for row in splits["test"] if row["slices"]["unseen_vendor"]}
    assert not unseen_companies & {row["target"]["company"] for row in splits["train"]}


def test_the_command_prints_the_folder_and_says_unchanged_the_second_time(small_recipe: Path, python: Command) -> None:
    first, second = python("data_prep", small_recipe), python("data_prep", small_recipe)
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    assert "prepared: 400 rows read" in first.stderr
    assert "unchanged: 400 rows read" in second.stderr
