"""`python -m predict.labelling`: the rows to label, the file to fill in, and its way back into the training data."""

import csv
import io
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep import prepare
from data_prep.rows.labelled_rows import restore_cell
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.text.text_keys import duplicate_key
from predict.labelling import __main__
from tests.helpers.gateway.stand_in_engine import StandInEngine, serve_engine
from tests.helpers.gateway.task_gateway import EXTRACTOR_TASK, LABELS, TASK_NAME, make_recipe
from tests.helpers.prediction_run import PredictionRun, make_run, write_csv

WORDS = {
    "late": ["late", "delayed", "waiting", "overdue", "slow", "pending", "weeks", "monday"],
    "lost": ["lost", "missing", "vanished", "gone", "nowhere", "tracking", "empty", "stolen"],
    "broken": ["broken", "cracked", "pieces", "damaged", "torn", "faulty", "smashed", "dead"],
}
MULTILABEL_TASK = "{kind: classification, instruction: Route the message., labels: [a, b], labels_per_row: many}"
FILLERS = [
    "the",
    "my",
    "parcel",
    "order",
    "box",
    "since",
    "today",
    "please",
    "help",
    "again",
    "customer",
    "street",
    "town",
    "number",
    "shop",
    "account",
]
HOSTILE_TEXTS = [
    '=HYPERLINK("http://127.0.0.1/?"&A1,"click") my parcel is somewhere',
    "+1 for a refund of my broken lamp, said the driver",
    "-5 degrees and the box stood outside all night long",
    "@support why does nobody answer my five mails",
    "'=already quoted by somebody who exports spreadsheets",
    'one "quoted" word, a comma; a semicolon\nand a second line of the message',
    "\u202eright to left override and \U0001f4e6 a parcel emoji in it",
    "01234567890123456789 is the tracking code that your page refuses",
]


def make_texts(count: int, seed: int, label: str | None = None) -> list[str]:
    """Texts that are neither equal nor near each other."""
    rng = random.Random(f"{seed} {label}")
    labels = [label or LABELS[number % 3] for number in range(count)]
    return [" ".join(rng.sample(FILLERS, 6) + rng.sample(WORDS[name], 3) + [f"{rng.random():.8f}"]) for name in labels]


def write_own_rows(folder: Path, count: int = 240) -> None:
    """The recipe's own labelled rows."""
    texts = make_texts(count, seed=1)
    write_csv(
        folder / "rows.csv",
        [{"message": text, "queue": LABELS[number % 3]} for number, text in enumerate(texts)],
    )


def label(folder: Path, rows: object, *args: str) -> Path:
    """Run the command in this process. Return the path of its output."""
    output = folder / "to-label.csv"
    argv = [str(folder / f"{TASK_NAME}.yaml"), "--input", str(rows), "--output", str(output), "--hardware", "cpu"]
    assert __main__.main([*argv, "--runs", str(folder / "runs"), *args]) == 0
    return output


def read_label_file(path: Path) -> list[dict[str, str]]:
    assert path.read_bytes().startswith(b"\xef\xbb\xbf"), "spreadsheets recognize UTF-8 by it"
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))


def read_about(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = atomic_files.read_json(path.with_name(f"{path.name}.about.json"))
    return about


def fill_in(path: Path, answers: Sequence[dict[str, str]]) -> None:
    rows = [{**row, **answer} for row, answer in zip(read_label_file(path), answers, strict=True)]
    write_csv(path, rows)


def prepare_with(folder: Path, path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    recipe = load(str(folder / f"{TASK_NAME}.yaml"), [f"data.source.labelled=[{path}]"], "cpu").recipe
    data, _ = prepare.main(recipe, folder / "runs" / TASK_NAME)
    return {name: list(atomic_files.read_jsonl(data / f"{name}.jsonl")) for name in SPLITS}, atomic_files.read_json(
        data / "data.json"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe with rows, and no trained run."""
    make_recipe(tmp_path)
    write_own_rows(tmp_path)
    return tmp_path


@pytest.fixture
def trained(tmp_path: Path) -> PredictionRun:
    """A recipe with rows and a trained run."""
    prediction_run = make_run(tmp_path)
    write_own_rows(tmp_path)
    return prediction_run


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine(lambda text: ("late", 0.9))


@pytest.fixture
def address(engine: StandInEngine) -> Iterator[str]:
    with serve_engine(engine) as address:
        yield address


def test_from_unlabelled_rows_to_train_rows_and_back_hostile_cells_included(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = HOSTILE_TEXTS + make_texts(40, seed=2)
    rows = [{"message": text, "=note": f"@note {number}", "number": number} for number, text in enumerate(texts)]
    path = label(folder, write_csv(folder / "in.csv", rows), "--rows", "30")
    error = capsys.readouterr().err
    assert "fallback  no finished run below" in error and "a linear model on the train rows" in error
    written = read_label_file(path)
    columns = ["label_row_id", "message", "'=note", "number", "queue", "suggested_queue", "suggestion_confidence"]
    assert list(written[0]) == columns and len(written) == 30
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in written for cell in row.values())
    assert {row["queue"] for row in written} == {""} and {row["suggested_queue"] for row in written} <= {*LABELS}
    about = read_about(path)
    assert about["answered_by"].startswith("a linear model on") and about["fallback"] in error
    assert (about["rows_read"], about["rows_written"], about["suggestions"]) == (48, 30, True)
    assert about["labels"] == sorted(LABELS)
    labels = [LABELS[number % 3] if number < 25 else "" for number in range(30)]
    fill_in(path, [{"queue": name} for name in labels])
    splits, report = prepare_with(folder, path)
    added = {row["input"]["text"]: row for row in splits["train"] if "provenance" in row}
    expected = {text for text in texts if any(duplicate_key(text) == duplicate_key(found) for found in added)}
    assert {*added} == expected and len(added) == 25, "texts come back unchanged"
    assert report["rows"]["unlabelled"] == 5 and report["provenance"]["human_suggested"]["train"] == 25


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_chats_are_labelled_as_texts_and_come_back_as_chats(tmp_path: Path, delimiter: str) -> None:
    make_recipe(tmp_path, columns="{messages: chat.messages, label: queue}")
    system = {"role": "system", "content": "Route it."}

    def write_chats(name: str, texts: Sequence[str], labels: Sequence[str]) -> Path:
        chats = [[system, {"role": "user", "content": text}] for text in texts]
        for chat, queue in zip(chats, labels, strict=False):
            chat.append({"role": "assistant", "content": queue})
        path = tmp_path / name
        path.write_text("".join(json.dumps({"chat": {"messages": chat}}) + "\n" for chat in chats), encoding="utf-8")
        return path

    own_texts = make_texts(240, seed=1)
    write_chats("rows.jsonl", own_texts, [LABELS[number % 3] for number in range(240)])
    recipe_path = tmp_path / f"{TASK_NAME}.yaml"
    where = "  where: {chat.messages.0.content: Route it.}\n"
    recipe_text = recipe_path.read_text(encoding="utf-8").replace("rows.csv", "rows.jsonl")
    recipe_path.write_text(recipe_text.replace("data:\n", f"data:\n{where}"), encoding="utf-8")
    texts = HOSTILE_TEXTS + make_texts(30, seed=2)
    path = label(tmp_path, write_chats("in.jsonl", [*texts, *make_texts(4, seed=3)], []), "--rows", "20")
    written = read_label_file(path)
    assert [*written[0]][-4:] == ["label_text", "queue", "suggested_queue", "suggestion_confidence"]
    assert {restore_cell(row["label_text"]) for row in written} <= {*texts, *make_texts(4, seed=3)}
    labels = [LABELS[number % 3] if number < 15 else "" for number in range(20)]
    rows = [{**row, "queue": queue} for row, queue in zip(written, labels, strict=True)]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    splits, report = prepare_with(tmp_path, path)
    added = {row["input"]["text"]: row["target"] for row in splits["train"] if "provenance" in row}
    assert added == {restore_cell(row["label_text"]): row["queue"] for row in rows if row["queue"]}
    assert report["rows"]["unlabelled"] == 5 and report["provenance"]["human_suggested"]["train"] == 15
    answered = write_chats("answered.jsonl", make_texts(5, seed=4), [*LABELS][:2])
    about = read_about(label(tmp_path, answered, "--force", "--rows", "3"))
    assert about["left_out"]["labelled"] == 2, "a chat that ends in an answer has a label"


def test_all_hostile_cells_come_back_unchanged(folder: Path) -> None:
    path = label(folder, write_csv(folder / "in.csv", [{"message": text} for text in HOSTILE_TEXTS]))
    written = read_label_file(path)
    assert len(written) == len(HOSTILE_TEXTS)
    fill_in(path, [{"queue": "lost"}] * len(written))
    splits, _ = prepare_with(folder, path)
    assert {row["input"]["text"] for row in splits["train"] if "provenance" in row} == {*HOSTILE_TEXTS}


def test_without_suggestions_the_file_has_none_and_the_rows_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_csv(folder / "in.csv", [{"message": text} for text in make_texts(30, seed=2)])
    suggested = read_label_file(label(folder, rows, "--rows", "10"))
    monkeypatch.setenv("SUGGEST", "0")
    path = label(folder, rows, "--rows", "10")
    plain = read_label_file(path)
    assert list(plain[0]) == ["label_row_id", "message", "queue"]
    assert [row["label_row_id"] for row in plain] == [row["label_row_id"] for row in suggested]
    assert read_about(path)["suggestions"] is False
    fill_in(path, [{"queue": "late"}] * 10)
    splits, report = prepare_with(folder, path)
    assert report["provenance"]["human"]["train"] == 10 and "human_suggested" not in report["provenance"]
    assert all(row["id"].startswith("to-label.csv:label-") for row in splits["train"] if "provenance" in row)


def test_rows_of_the_prepared_data_are_never_proposed_nor_rows_near_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load(str(folder / f"{TASK_NAME}.yaml"), [], "cpu").recipe
    data, _ = prepare.main(recipe, folder / "runs" / TASK_NAME)
    texts = {name: [row["input"]["text"] for row in atomic_files.read_jsonl(data / f"{name}.jsonl")] for name in SPLITS}
    new = make_texts(5, seed=3)
    repeated = [text.upper() + " !" for name in SPLITS for text in texts[name][:4]]
    near = [f"{text} x" for name in SPLITS for text in texts[name][4:8]]
    rows = [{"message": text} for text in [*repeated, *new, *near, new[0].title(), f"{new[1]} y"]]
    rows.append({"message": make_texts(1, seed=9)[0], "queue": "late"})
    path = label(folder, write_csv(folder / "in.csv", [{"queue": "", **row} for row in rows]))
    assert {duplicate_key(row["message"]) for row in read_label_file(path)} <= {
        *map(duplicate_key, [*new, f"{new[1]} y"])
    }
    left_out = read_about(path)["left_out"]
    assert left_out == {
        **{f"in_{name}": 4 for name in SPLITS},
        **{f"near_{name}": 4 for name in SPLITS},
        "duplicate": 1,
        "near_duplicate": 1,
        "labelled": 1,
    }
    assert "near_test 4" in capsys.readouterr().err


def test_a_group_that_is_held_out_is_not_proposed(folder: Path) -> None:
    recipe_path = folder / f"{TASK_NAME}.yaml"
    recipe_path.write_text(
        recipe_path.read_text(encoding="utf-8").replace("queue}}", "queue}, split: {group: customer}}"),
        encoding="utf-8",
    )
    own = [
        {"message": text, "queue": LABELS[number % 3], "customer": f"c{number % 60}"}
        for number, text in enumerate(make_texts(240, seed=1))
    ]
    write_csv(folder / "rows.csv", own)
    new = [{"message": text, "customer": f"c{number}"} for number, text in enumerate(make_texts(60, seed=2))]
    path = label(folder, write_csv(folder / "in.csv", new), "--rows", "60")
    left_out = read_about(path)["left_out"]
    assert left_out["group_in_test"] > 3
    written = read_label_file(path)
    assert len(written) == 60 - sum(left_out.values())
    fill_in(path, [{"queue": "late"}] * len(written))
    splits, _ = prepare_with(folder, path)
    assert len([row for row in splits["train"] if "provenance" in row]) == len(written)


def test_a_trained_run_is_asked_once_and_its_uncertain_rows_come_first(
    trained: PredictionRun, engine: StandInEngine, address: str
) -> None:
    texts = make_texts(60, seed=2)
    unsure = {*texts[20:25]}
    engine.answer = lambda text: ("lost", 0.4) if text in unsure else ("late", 0.999)
    rows = write_csv(trained.folder / "in.csv", [{"message": text, "answer": "own"} for text in texts])
    args = ["--engine", "vllm", "--base-url", f"{address}/v1"]
    path = label(trained.folder, rows, "--rows", "5", *args)
    written = read_label_file(path)
    assert {row["message"] for row in written} == unsure
    assert {(row["suggested_queue"], row["suggestion_confidence"], row["answer"]) for row in written} == {
        ("lost", "0.4000", "own")
    }
    about = read_about(path)
    assert (about["run_id"], about["uncertainty"], about["fallback"]) == (trained.run.id, "1 - confidence", None)
    assert label(trained.folder, rows, "--rows", "8", *args) == path and len(read_label_file(path)) == 8
    assert engine.answer_counts == dict.fromkeys(texts, 1)


def test_a_row_that_the_model_cannot_answer_is_proposed_and_one_that_it_cannot_read_is_not(
    trained: PredictionRun, engine: StandInEngine, address: str
) -> None:
    texts = make_texts(20, seed=2)
    engine.answer = lambda text: ("pear", 0.99) if text == texts[3] else ("late", 0.99)
    rows = write_csv(trained.folder / "in.csv", [{"message": text} for text in [*texts, " "]])
    path = label(trained.folder, rows, "--rows", "3", "--base-url", f"{address}/v1", "--engine", "vllm")
    written = read_label_file(path)
    assert written[0]["message"] == texts[3] and written[0]["suggested_queue"] == ""
    assert read_about(path)["left_out"] == {"unusable_input": 1}


def test_records_are_filled_in_field_by_field(tmp_path: Path, engine: StandInEngine, address: str) -> None:
    trained = make_run(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}")
    texts = make_texts(90, seed=1)
    own = [{"message": f"order {n} {text}", "number": n, "day": "monday"} for n, text in enumerate(texts)]
    write_csv(tmp_path / "rows.csv", own)
    engine.answer = lambda text: ('{"number":"17","day":null}', 0.6)
    rows = write_csv(tmp_path / "in.csv", [{"message": text} for text in make_texts(12, seed=2)])
    path = label(tmp_path, rows, "--rows", "4", "--base-url", f"{address}/v1", "--engine", "vllm")
    written = read_label_file(path)
    assert [*written[0]][2:] == ["number", "day", "suggested_number", "suggested_day", "suggestion_confidence"]
    assert {(row["number"], row["suggested_number"], row["suggested_day"]) for row in written} == {("", "17", "")}
    fill_in(path, [{"number": "-7", "day": "friday"}, {"number": "8"}, {}, {}])
    splits, report = prepare_with(tmp_path, path)
    added = [row["target"] for row in splits["train"] if "provenance" in row]
    assert added == [{"number": "-7", "day": "friday"}, {"number": "8", "day": None}]
    assert report["rows"]["unlabelled"] == 2 and trained.run.id == read_about(path)["run_id"]


def test_a_file_that_was_filled_in_is_not_replaced_without_force(folder: Path) -> None:
    rows = write_csv(folder / "in.csv", [{"message": text} for text in make_texts(12, seed=2)])
    path = label(folder, rows, "--rows", "3")
    assert label(folder, rows, "--rows", "4") == path, "as it was written, it has no labels"
    fill_in(path, [{"queue": "late"}] * 4)
    filled = path.read_bytes()
    with pytest.raises(RecipeError, match="may have labels"):
        label(folder, rows, "--rows", "4")
    assert path.read_bytes() == filled
    label(folder, rows, "--rows", "5", "--force")
    assert len(read_label_file(path)) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"task": MULTILABEL_TASK},
            "task.kind",
        ),
        ({"task": "{kind: generation, instruction: Summarize it.}", "columns": "{text: message}"}, "task.kind"),
        ({"task": EXTRACTOR_TASK, "columns": "{text: message}"}, "run `make train` first"),
        ({"task": EXTRACTOR_TASK, "columns": "{messages: messages}"}, "data.columns.messages"),
    ],
)
def test_tasks_that_cannot_be_labelled_so_are_refused_in_words(
    tmp_path: Path, values: dict[str, str], message: str
) -> None:
    make_recipe(tmp_path, **values)
    write_own_rows(tmp_path)
    with pytest.raises(RecipeError, match=message):
        label(tmp_path, write_csv(tmp_path / "in.csv", [{"message": "a", "messages": "b"}]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "0"], "N: given '0'"),
        (["--rows", "many"], "N: given 'many'"),
        (["--engine", "grpc"], "ENGINE: given 'grpc'"),
        (["--output", "x.xlsx"], "OUTPUT: given x.xlsx"),
        (["--input", ""], "INPUT is missing"),
        (["--run", "none"], "RUN=none"),
    ],
)
def test_a_wrong_call_names_the_value_and_what_is_allowed(folder: Path, args: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        label(folder, write_csv(folder / "in.csv", [{"message": "a new text"}]), *args)


def test_if_no_row_is_left_the_reasons_are_counted(folder: Path) -> None:
    rows = [{"message": make_texts(240, seed=1)[0]}, {"message": ""}, {"message": "z" * 32_767}]
    with pytest.raises(RecipeError, match=r"none of 3 rows can be labelled \(.*long_cell 1"):
        label(folder, write_csv(folder / "in.csv", rows))


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = label(folder, write_csv(folder / "in.csv", [{"message": "a new text"}]), "--dry-run")
    assert not path.exists() and not (folder / "runs").exists()
    assert "would rank the rows of" in capsys.readouterr().out
