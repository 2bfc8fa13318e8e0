"""Checkpoints of a real transformers Trainer: whole or absent, found, and gone on from."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from insource.config.errors import StageError
from insource.system import atomic_files, disk_full
from tests.helpers.property_tests import examples
from tests.helpers.tiny_trainer import SELECT_BEST, UPDATES, CallAfterUpdate, TinyTrainer, make_trainer, resume_training
from train.loop import checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> TinyTrainer:
    """A training that nothing has interrupted."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


def test_a_checkpoint_names_the_hash_of_each_of_its_files_and_holds_no_path_of_the_machine(
    finished_run: TinyTrainer,
) -> None:
    folder = Path(finished_run.args.output_dir)
    assert names(folder) == ["checkpoint-12", "checkpoint-9"]
    checkpoint = folder / "checkpoint-12"
    seal = atomic_files.read_json(checkpoint / "checkpoint.json")
    assert set(seal["files"]) == set(names(checkpoint)) - {"checkpoint.json"}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(seal["files"])
    assert (seal["step"], seal["processes"]) == (12, 1)
    assert all(str(folder).encode() not in path.read_bytes() for path in checkpoint.iterdir())
    assert checkpoints.find_latest_valid(folder) == checkpoints.CheckpointScan(checkpoint)


@pytest.fixture
def best_is_3(tmp_path: Path) -> Path:
    """The checkpoints of three evaluations, of which the first went best."""
    trainer = make_trainer(tmp_path / "begun", max_steps=9, **SELECT_BEST)
    trainer.metric_values = iter([0.9, 0.4, 0.5])
    trainer.train()
    assert names(tmp_path / "begun") == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "begun" / "checkpoint-3")
    return tmp_path / "begun"


def test_the_best_checkpoint_is_kept_and_found_again_where_the_runs_were_moved(best_is_3: Path, tmp_path: Path) -> None:
    moved = best_is_3.rename(tmp_path / "moved")
    messages: list[str] = []
    trainer = resume_training(moved, [0.6], messages.append, load_best_model_at_end=True, **SELECT_BEST)
    assert trainer.state.best_model_checkpoint == str(moved / "checkpoint-3")
    trainer.save_model(str(tmp_path / "last"))
    weights = [atomic_files.sha256(path / "model.safetensors") for path in (tmp_path / "last", moved / "checkpoint-3")]
    assert weights[0] == weights[1]
    assert messages == []


def test_a_best_checkpoint_that_is_damaged_is_announced_and_another_one_becomes_best(best_is_3: Path) -> None:
    os.truncate(best_is_3 / "checkpoint-3" / "model.safetensors", 0)
    messages: list[str] = []
    trainer = resume_training(best_is_3, [0.6], messages.append, **SELECT_BEST)
    assert (
        len(messages) == 1 and "checkpoint-3" in messages[0] and "model.safetensors is cut short, 0 of" in messages[0]
    )
    assert trainer.state.best_model_checkpoint == str(best_is_3 / "checkpoint-12")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: os.truncate(path / "optimizer.pt", 100), "optimizer.pt is cut short, 100 of"),
    "empty": (lambda path: os.truncate(path / "trainer_state.json", 0), "trainer_state.json is cut short, 0 of"),
    "a bit": (lambda path: flip_last_bit(path / "model.safetensors"), "model.safetensors is not what was written"),
    "longer": (
        lambda path: (path / "scheduler.pt").write_bytes(bytes(100_000)),
        "scheduler.pt is not what was written",
    ),
    "missing": (lambda path: (path / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "a folder": (lambda path: ((path / "rng_state.pth").unlink(), (path / "rng_state.pth").mkdir()), "is missing"),
    "no seal": (lambda path: (path / "checkpoint.json").unlink(), "checkpoint.json is missing"),
    "cut seal": (lambda path: os.truncate(path / "checkpoint.json", 50), "checkpoint.json cannot be read"),
    "odd seal": (lambda path: (path / "checkpoint.json").write_text("[]"), "checkpoint.json cannot be read"),
    "binary seal": (lambda path: (path / "checkpoint.json").write_bytes(b"\xff\0"), "checkpoint.json cannot be read"),
}


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    kind: str, finished_run: TinyTrainer, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.args.output_dir, tmp_path / "runs")
    damage, message = DAMAGES[kind]
    damage(tmp_path / "runs" / "checkpoint-12")
    result = checkpoints.find_latest_valid(tmp_path / "runs")
    assert result.latest == tmp_path / "runs" / "checkpoint-9"
    assert len(result.damaged) == 1
    assert "checkpoint-12 is damaged" in result.damaged[0] and message in result.damaged[0]
    assert checkpoints.find_latest_valid(tmp_path / "runs") == checkpoints.CheckpointScan(result.latest)
    resumed = resume_training(tmp_path / "runs")
    assert torch.equal(resumed.model.line.weight, finished_run.model.line.weight)
    assert checkpoints.find_latest_valid(tmp_path / "runs").latest == tmp_path / "runs" / "checkpoint-12"


def test_where_all_are_damaged_training_begins_anew(finished_run: TinyTrainer, tmp_path: Path) -> None:
    shutil.copytree(finished_run.args.output_dir, tmp_path / "runs")
    for path in (tmp_path / "runs").iterdir():
        (path / "optimizer.pt").unlink()
    result = checkpoints.find_latest_valid(tmp_path / "runs")
    assert result.latest is None and len(result.damaged) == 2
    assert checkpoints.find_latest_valid(tmp_path / "nowhere") == checkpoints.CheckpointScan(None)


@examples(60)
@given(data=st.data())
def test_whatever_byte_is_changed_or_cut_off_it_is_found(data: st.DataObject, finished_run: TinyTrainer) -> None:
    path = Path(finished_run.args.output_dir) / "checkpoint-9"
    file = path / data.draw(st.sampled_from([name for name in names(path) if name != "checkpoint.json"]))
    content = file.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    changed_byte = bytes([content[position] ^ data.draw(st.integers(1, 255))])
    try:
        file.write_bytes(
            data.draw(
                st.sampled_from([content[:position], content[:position] + changed_byte + content[position + 1 :]])
            )
        )
        assert file.name in str(checkpoints.find_corruption(path))
    finally:
        file.write_bytes(content)
    assert checkpoints.find_corruption(path) is None


TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def test_a_kill_at_any_touch_of_the_disk_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=6)
    trainer.train()
    n_kills, steps = 0, set()
    while True:
        if (child := os.fork()) == 0:
            try:
                trainer.state.global_step = 9
                kill_at_touch(n_kills + 1)
                trainer._save_checkpoint(trainer.model, None)
            finally:
                os._exit(0)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            break
        n_kills += 1
        checkpoint = checkpoints.find_latest_valid(tmp_path)
        assert checkpoint.latest is not None and checkpoint.damaged == ()
        steps.add(checkpoint.latest.name)
        assert not list(tmp_path.glob(".*"))
        shutil.rmtree(tmp_path / "checkpoint-9", ignore_errors=True)
    assert n_kills > 15
    assert steps == {"checkpoint-6", "checkpoint-9"}
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-9"]


def kill_at_touch(number: int) -> None:
    """Kills this process before its n-th touch of the disk."""
    n_touches = 0

    def count(event: str, _: tuple[object, ...]) -> None:
        nonlocal n_touches
        if event in TOUCHES:
            n_touches += 1
            if n_touches == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int], None]]:
    """Sets how many bytes a file may have, until the test ends: a disk that takes no more, which needs no mount."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda max_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, previous[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, previous)


@pytest.mark.parametrize("max_bytes", [10, 40_000])
def test_a_full_disk_is_told_in_words_and_leaves_the_checkpoints_before(
    max_bytes: int, limit_file_size: Callable[[int], None], tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, width=8_000, max_steps=9)  # 32 kB of weights, 64 kB of optimizer
    trainer.add_callback(CallAfterUpdate(7, lambda: limit_file_size(max_bytes)))
    with pytest.raises(StageError) as failed:
        trainer.train()
    limit_file_size(resource.RLIM_INFINITY)
    assert "checkpoint-9 could not be written, the disk is full" in str(failed.value)
    assert "bytes are free" in str(failed.value)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-6"]
    assert checkpoints.find_latest_valid(tmp_path) == checkpoints.CheckpointScan(tmp_path / "checkpoint-6")
    assert resume_training(tmp_path, width=8_000).state.global_step == UPDATES


def test_no_space_is_told_from_other_errors() -> None:
    with pytest.raises(StageError, match="No space left on device"), disk_full.raise_on_full_disk(Path("x")):
        Path("/dev/full").write_text("full", encoding="utf-8")
    with pytest.raises(StageError, match="the disk is full"), disk_full.raise_on_full_disk(Path("x")):
        torch.save(torch.zeros(5), "/dev/full")
    with pytest.raises(FileNotFoundError), disk_full.raise_on_full_disk(Path("x")):
        Path("/nowhere/at/all").write_text("", encoding="utf-8")
    with pytest.raises(RuntimeError, match="shape"), disk_full.raise_on_full_disk(Path("x")):
        raise RuntimeError("wrong shape")
