"""What a run records: whole files, no secrets, and a W&B run that can be read back."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insource.config.load import load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking import metrics, wandb_logging
from insource.tracking import run as runs
from tests.conftest import ROOT
from train.report import learning_curve


def wandb_records(path: Path) -> Iterator[Any]:
    """Reads an offline .wandb file: a header of 7 bytes, then LevelDB log records in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, offset, payload = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while offset + 7 <= len(content):
        if (block_bytes := 32768 - offset % 32768) < 7:
            offset += block_bytes
            continue
        length, kind = struct.unpack("<HB", content[offset + 4 : offset + 7])
        payload += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # full, or the last piece
            record = Record()
            record.ParseFromString(payload)
            yield record
            payload = b""


SECRETS = {
    "OPENAI_API_KEY": "sk-test-0123456789abcdef",
    "HF_TOKEN": "hf_test0123456789",
    "ANTHROPIC_API_KEY": "sk-ant-test99",
}
METRICS = [
    {"step": 10, "epoch": 0.5, "loss": 1.25, "tokens_per_second": 1500.5, "tokens_saved_per_second": 9000.0},
    {"step": 10, "epoch": 0.5, "validation/accuracy": 0.75, "validation/seconds": 2.0},
    {"step": 20, "epoch": 1.0, "loss": 0.5, "tokens_per_second": 1510.0, "tokens_saved_per_second": 9100.0},
]
LABELS = [f"queue for matter {number}" for number in range(77)]
KILLED_RUN = """
import os, sys
from pathlib import Path
from insource.tracking import metrics, wandb_logging
from insource.tracking.run import Run
run = Run(Path(sys.argv[1]))
wandb_run = wandb_logging.init_run(run, run.recipe(), {})
for step in (10, 20, 30, 40):
    metrics.append(run.folder / "metrics.jsonl", {"step": step, "loss": 1 / step})
    wandb_logging.log_row(wandb_run, {"step": step, "loss": 1 / step})
os.kill(os.getpid(), 9)
"""


def offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> tuple[runs.Run, Recipe]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recipe = load("classifier", ["tracking.wandb.mode=offline", *settings], "cpu").recipe
    (tmp_path / "data").mkdir()
    return runs.create(tmp_path / "classifier", recipe, "digest", {}, tmp_path / "data"), recipe


def record_everything(run: runs.Run, recipe: Recipe) -> None:
    """Does what training does with W&B from the first to the last moment."""
    wandb_run = wandb_logging.init_run(run, recipe, wandb_logging.build_config(recipe, "pocket/model"))
    for row in METRICS:
        metrics.append(run.folder / "metrics.jsonl", row)
        wandb_logging.log_row(wandb_run, row)
    (run.folder / "adapter").mkdir()
    (run.folder / "adapter" / "adapter_model.safetensors").write_bytes(b"what was learnt")
    (run.folder / "adapter" / "prompt.json").write_text(json.dumps(LABELS), encoding="utf-8")
    for folder in (run.folder, run.folder / "adapter"):  # where it is, and where it was once
        (folder / "reference.jsonl").write_text("a prompt of the reference", encoding="utf-8")
    predictions = [LABELS[0], *LABELS[1:-1], None]
    rows = [
        {
            "id": f"ROW-{index}",
            "input": f"a customer's words, number {index}",
            "target": LABELS[index % 77],
            "answer": LABELS[index % 76],
            "right": index % 77 == index % 76,
            "log_probability": -index / 1000,
        }
        for index in range(300)
    ]
    wandb_logging.log_predictions(wandb_run, recipe, rows)
    wandb_logging.log_confusion(wandb_run, recipe, LABELS + LABELS[:1], [*predictions, LABELS[5]])
    learning_curve.draw(run.folder / "metrics.jsonl", run.folder / "learning_curve.png", run.id, 10)
    wandb_logging.log_image(wandb_run, run.folder / "learning_curve.png")
    wandb_logging.finish_run(wandb_run, run, {"validation/accuracy": 0.9}, {"data_train_sha256": "abc123"})


def records_of(run: runs.Run) -> list[Any]:
    """Waits for the last record: W&B's own process writes the file, and goes on a little after `finish`."""
    (path,) = (run.folder / "wandb").rglob("*.wandb")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.stat().st_size > 7 and any(
            record.WhichOneof("record_type") == "exit" for record in wandb_records(path)
        ):
            return list(wandb_records(path))
        time.sleep(0.05)
    raise AssertionError(f"{path} never ended")


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = [
        {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item} for record in records
    ]
    return [{name: json.loads(value) for name, value in row.items()} for row in rows if row]


def everything_in(run: runs.Run) -> bytes:
    return b"".join(file.read_bytes() for file in (run.folder / "wandb").rglob("*") if file.is_file())


def table(run: runs.Run, name: str) -> dict[str, Any]:
    (path,) = (run.folder / "wandb").rglob(f"media/table/{name}_*.table.json")
    return atomic_files.read_json(path)  # type: ignore[no-any-return]


def test_an_offline_wandb_run_holds_config_history_and_adapter_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = offline_run(tmp_path, monkeypatch)
    record_everything(run, recipe)
    records = records_of(run)
    config = {
        item.key: json.loads(item.value_json)
        for record in records
        for item in record.run.config.update
        if item.key != "_wandb"
    }
    config |= {
        ".".join(item.nested_key): json.loads(item.value_json)
        for record in records
        for item in record.config.update
        if item.nested_key
    }
    assert config["train.learning_rate"] == recipe.train.learning_rate
    assert config["model.base"] == "pocket/model"
    assert not [key for key in config if key.startswith(("data", "privacy", "compare", "tracking"))]
    history_rows = history(records)
    # One row a step: what training and what validation found there, under the names that metrics.jsonl has.
    assert [row["_step"] for row in history_rows] == [10, 20]
    assert METRICS[0].items() | METRICS[1].items() <= history_rows[0].items()
    assert (
        METRICS[2].items()
        <= {name: value for name, value in history_rows[1].items() if isinstance(value, float | int)}.items()
    )
    (run_record,) = [record.run for record in records if record.run.run_id and record.run.display_name][:1]
    assert (run_record.run_group, run_record.run_id, run_record.display_name) == ("classifier", run.id, run.id)
    artifacts = [record.request.log_artifact.artifact for record in records] + [record.artifact for record in records]
    (artifact,) = [candidate for candidate in artifacts if candidate.type == "model"]
    assert artifact.name == "classifier-adapter"
    assert json.loads(artifact.metadata)["data_train_sha256"] == "abc123"
    assert {entry.path for entry in artifact.manifest.contents} == {"adapter_model.safetensors", "prompt.json"}
    content = everything_in(run)
    for value in (*SECRETS.values(), "a prompt of the reference", str(ROOT)):
        assert value.encode() not in content


def test_wandb_gets_the_predictions_with_the_wrong_ones_first_the_confusions_and_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = offline_run(tmp_path, monkeypatch)
    record_everything(run, recipe)
    last_row = history(records_of(run))[-1]
    assert {name.split(".")[0] for name in last_row if name.startswith(("validation/", "learning"))} == {
        "validation/predictions",
        "validation/confusion_matrix_table",
        "validation/confusions",
        "learning_curve",
    }
    predictions = table(run, "validation/predictions")
    columns = predictions["columns"]
    prediction_rows = [dict(zip(columns, row, strict=True)) for row in predictions["data"]]
    assert columns == ["id", "input", "target", "answer", "right", "log_probability"]
    assert len(prediction_rows) == 100 and not any(row["right"] for row in prediction_rows)
    assert prediction_rows[0]["input"] == "a customer's words, number 76"
    matrix = table(run, "validation/confusion_matrix_table")["data"]
    assert len(matrix) == 78 * 78
    cells = {(target, answer): count for target, answer, count in matrix}
    assert sum(cells.values()) == 78
    assert cells[LABELS[0], LABELS[0]] == cells[LABELS[0], LABELS[5]] == cells[LABELS[76], "(no valid answer)"] == 1
    assert table(run, "validation/confusions")["data"] == [
        [LABELS[0], LABELS[5], 1, 0.5],
        [LABELS[76], "(no valid answer)", 1, 1.0],
    ]
    (picture,) = (run.folder / "wandb").rglob("learning_curve_*.png")
    assert picture.read_bytes() == (run.folder / "learning_curve.png").read_bytes()


def test_with_data_that_may_not_leave_wandb_gets_figures_and_nothing_that_tells_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = offline_run(
        tmp_path, monkeypatch, "privacy.data_may_leave=false", "compare.baselines=[]", "compare.primary=null"
    )
    record_everything(run, recipe)
    records = records_of(run)
    assert [row["_step"] for row in history(records)] == [10, 20]
    assert not [
        artifact
        for record in records
        for artifact in (record.artifact, record.request.log_artifact.artifact)
        if artifact.name
    ]
    content = everything_in(run)
    assert b"validation/accuracy" in content and b"abc123" in content
    assert list((run.folder / "wandb").rglob("learning_curve_*.png"))
    row_texts = ("customer", "ROW-", "queue for matter", "damaged_item", "a prompt of", "what was learnt")
    for value in (*row_texts, *SECRETS.values()):
        assert value.encode() not in content, value


def test_more_labels_than_wandb_draws_are_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recipe = offline_run(tmp_path, monkeypatch)
    labels = [f"label {number:03}" for number in range(300)]
    # The labels that are hard, the last fifty, are kept.
    predictions = labels[:250] + labels[251:] + labels[250:251]
    wandb_run = wandb_logging.init_run(run, recipe, {})
    wandb_logging.log_confusion(wandb_run, recipe, labels, predictions)
    wandb_run.finish()
    matrix = table(run, "validation/confusion_matrix_table")["data"]
    assert len(matrix) == 100 * 100
    assert {target for target, _, _ in matrix} == {*labels[:49], *labels[250:], wandb_logging.OTHER_LABELS}
    assert sum(count for target, answer, count in matrix if target != answer) == 50
    assert len(table(run, "validation/confusions")["data"]) == 50


def test_an_offline_run_that_was_killed_goes_on_as_one_run_without_gaps_or_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = offline_run(tmp_path, monkeypatch)
    # Not with the W&B service of this process, which would hold the run open.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    completed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(run.folder)], cwd=ROOT, env=environment, check=False
    )
    assert completed.returncode == -9
    metrics.truncate_after(run.folder / "metrics.jsonl", 20)
    wandb_run = wandb_logging.init_run(run, recipe, {})
    wandb_logging.replay_rows(wandb_run, run.folder / "metrics.jsonl")
    for step in (20, 30, 40, 50):  # 20 again: W&B has it
        wandb_logging.log_row(wandb_run, {"step": step, "loss": 1 / step})
    wandb_run.finish()
    assert [(row["step"], row["loss"]) for row in history(records_of(run))] == [
        (s, 1 / s) for s in (10, 20, 30, 40, 50)
    ]


@pytest.mark.parametrize("may_leave", [True, False])
def test_before_wandb_gets_rows_a_line_says_so(
    may_leave: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    lines: list[str] = []

    def refuse(**_: Any) -> None:
        lines.append(capsys.readouterr().err)
        raise ConnectionError

    monkeypatch.setattr(wandb, "init", refuse)
    overrides = ["tracking.wandb.mode=online", f"privacy.data_may_leave={str(may_leave).lower()}"]
    with pytest.raises(ConnectionError):
        wandb_logging.init_run(runs.Run(tmp_path), load("classifier", overrides, "cpu").recipe, {})
    assert ("insource gets rows of the data, with labels and answers, and the adapter" in lines[0]) == may_leave


def test_wandb_mode_off_is_respected(tmp_path: Path) -> None:
    recipe = load("classifier", ["tracking.wandb.mode=off"], "cpu").recipe
    assert wandb_logging.init_run(runs.Run(tmp_path), recipe, {}) is None
    assert not list(tmp_path.iterdir())
