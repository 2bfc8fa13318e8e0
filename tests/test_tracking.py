"""What a run records: whole files, no secrets, and a W&B run that can be read back."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.load import load
from tests.conftest import ROOT
from tracking import digests, files, metrics, weights_and_biases
from tracking import run as runs

KILLED = """
import os, sys
from pathlib import Path
from tracking import files
with files.whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half.jsonl").touch()
    os.kill(os.getpid(), 9)
"""


def wandb_records(path: Path) -> Iterator[Any]:
    """Reads an offline .wandb file: a header of 7 bytes, then LevelDB log records in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last piece
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_an_offline_wandb_run_holds_config_history_and_adapter_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "OPENAI_API_KEY": "sk-test-0123456789abcdef",
        "HF_TOKEN": "hf_test0123456789",
        "ANTHROPIC_API_KEY": "sk-ant-test99",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recipe = load("classifier", ["tracking.wandb.mode=offline"], "cpu").recipe
    (tmp_path / "data").mkdir()
    run = runs.create(tmp_path / "classifier", recipe, "digest", {}, tmp_path / "data")
    wandb_run = weights_and_biases.start(run, recipe, weights_and_biases.config(recipe, "pocket/model"))
    wandb_run.log({"train/loss": 1.25}, step=10)
    (run.folder / "adapter").mkdir()
    (run.folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (run.folder / "adapter" / "reference.jsonl").write_text("a customer's words", encoding="utf-8")
    weights_and_biases.finish(wandb_run, run, {"validation/accuracy": 0.9}, {"data_train_sha256": "abc123"})

    (path,) = (run.folder / "wandb").rglob("*.wandb")
    records = list(wandb_records(path))
    config = {
        item.key: json.loads(item.value_json) for r in records for item in r.run.config.update if item.key != "_wandb"
    }
    config |= {
        ".".join(item.nested_key): json.loads(item.value_json)
        for r in records
        for item in r.config.update
        if item.nested_key
    }
    assert config["train.learning_rate"] == recipe.train.learning_rate
    assert config["model.base"] == "pocket/model"
    assert not [key for key in config if key.startswith(("data", "privacy", "compare", "tracking"))]
    history = {item.key or ".".join(item.nested_key): item.value_json for r in records for item in r.history.item}
    assert json.loads(history["train/loss"]) == 1.25
    (named,) = [r.run for r in records if r.run.run_id and r.run.display_name][:1]
    assert (named.run_group, named.run_id, named.display_name) == ("classifier", run.id, run.id)
    artifacts = [r.request.log_artifact.artifact for r in records] + [r.artifact for r in records]
    (artifact,) = [one for one in artifacts if one.name]
    assert artifact.name == "classifier-adapter"
    assert json.loads(artifact.metadata)["data_train_sha256"] == "abc123"
    assert [one.path for one in artifact.manifest.contents] == ["adapter_model.safetensors"]
    everything = b"".join(file.read_bytes() for file in (run.folder / "wandb").rglob("*") if file.is_file())
    for value in (*secrets.values(), "a customer's words", str(ROOT)):
        assert value.encode() not in everything


def test_wandb_mode_off_is_respected(tmp_path: Path) -> None:
    recipe = load("classifier", ["tracking.wandb.mode=off"], "cpu").recipe
    assert weights_and_biases.start(runs.Run(tmp_path), recipe, {}) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "made") as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.whole_folder(tmp_path / "made") as folder:
        (folder / "all").write_text("all", encoding="utf-8")
        assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "all"]


def test_metrics_after_the_resumed_step_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (10, 20, 30):
        metrics.append(path, {"step": step, "loss": 1.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "lo')
    metrics.keep_up_to(path, 20)
    assert [line["step"] for line in files.read_jsonl(path)] == [10, 20]


def test_what_a_killed_process_left_of_a_folder_goes_with_the_next_attempt(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "prepared")], cwd=ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "half.jsonl").exists()
    with files.whole_folder(tmp_path / "prepared") as folder:
        (folder / "whole.jsonl").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_not_a_number_is_never_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        metrics.append(tmp_path / "metrics.jsonl", {"loss": float("nan")})


def test_digests_change_with_what_they_depend_on_and_with_nothing_else() -> None:
    plain = load("classifier", (), "cpu").recipe
    sources = [("all", "tickets.csv", "sha256 of it")]
    data, training = digests.of_data(plain, sources), digests.of_training(plain, "data")

    def changed(setting: str) -> tuple[bool, bool]:
        recipe = load("classifier", [setting], "cpu").recipe
        return digests.of_data(recipe, sources) != data, digests.of_training(recipe, "data") != training

    assert changed("data.split.seed=18") == (True, False)
    assert changed("train.learning_rate=1e-4") == (False, True)
    # How long a row is depends on the prompt, and what is too long leaves train.
    assert changed("task.instruction=Do something else entirely.") == (True, True)
    assert changed("train.max_length=512") == (True, True)
    assert changed("data.num_proc=2") == (False, False)
    assert digests.of_data(plain, [("all", "tickets.csv", "another sha256")]) != data
    assert changed("cost.gpu_usd_per_hour=9") == (False, False)
    assert changed("tracking.wandb.mode=off") == (False, False)


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    recipe = load("classifier", (), "cpu").recipe
    run = runs.create(tmp_path / "classifier", recipe, "digest", {}, tmp_path / "data")
    assert run.recipe() == recipe
