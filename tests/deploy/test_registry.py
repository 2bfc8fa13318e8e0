"""What is deployed: promoted, rolled back, never half."""

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import gates, registry
from deploy.gateway import versions
from insource.config.errors import RecipeError, StageError
from insource.config.load import load
from insource.system import atomic_files
from insource.tracking import run
from insource.tracking.run import REFERENCES_FILE, Run
from tests.conftest import Command
from tests.helpers.errors import raises_error

RECIPE = load("classifier", (), "cpu").recipe


@pytest.fixture
def make_trained_run(tmp_path: Path) -> Callable[[str], Run]:
    """Makes a run that looks trained, its weights the given text."""

    def make(weights: str) -> Run:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        created_run = run.create(tmp_path / "runs" / "classifier", RECIPE, "digest", {}, data)
        (created_run.folder / "adapter").mkdir()
        (created_run.folder / "adapter" / "adapter_model.safetensors").write_text(weights, encoding="utf-8")
        (created_run.folder / REFERENCES_FILE).write_text(f"a row that {weights} answers", encoding="utf-8")
        references = {"rows": 1, "sha256": atomic_files.sha256(created_run.folder / REFERENCES_FILE)}
        base = {"name": "some/model", "commit": "abc"}
        prompt = {"max_answer_tokens": 16, "base": base, "references": references}
        atomic_files.write_json(created_run.folder / "adapter" / "prompt.json", prompt)
        atomic_files.write_checksums(created_run.folder / "adapter")
        run.start_stage(created_run, "train", {})
        run.end_stage(created_run, "train", "done", "done")
        return created_run

    return make


def passed(trained_run: Run, passed: bool = True) -> Run:
    sums = {
        f"adapter/{atomic_files.CHECKSUMS}": atomic_files.sha256(
            trained_run.folder / "adapter" / atomic_files.CHECKSUMS
        )
    }
    run.start_stage(trained_run, "parity", sums)
    run.end_stage(
        trained_run, "parity", "done" if passed else "failed", "done" if passed else "answers differ", passed=passed
    )
    return trained_run


def test_versions_follow_their_bytes_and_history_tells(make_trained_run: Callable[[str], Run], tmp_path: Path) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    first_run, second_run = make_trained_run("one"), make_trained_run("two")
    first, second = (
        registry.promote(registry_dir, first_run, []),
        registry.promote(registry_dir, second_run, ["parity failed"]),
    )
    assert first != second and registry.current_version(registry_dir) == second
    assert registry.promote(registry_dir, first_run, []) == first  # the same bytes are the same version
    assert sorted(path.name for path in (registry_dir / "versions").iterdir()) == sorted([first, second])
    history = registry.read_history(registry_dir)
    assert [(line["from"], line["to"]) for line in history] == [(None, first), (first, second), (second, first)]
    assert [line["forced"] for line in history] == [False, True, False]
    assert history[1]["overridden"] == ["parity failed"] and history[1]["run_id"] == second_run.id
    assert (registry_dir / "current" / "adapter" / "adapter_model.safetensors").read_text(encoding="utf-8") == "one"


def test_rolling_back_twice_goes_further_back(make_trained_run: Callable[[str], Run], tmp_path: Path) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    deployed = [registry.promote(registry_dir, make_trained_run(weights), []) for weights in ("one", "two", "three")]
    assert registry.roll_back(registry_dir, None) == (deployed[2], deployed[1])
    assert registry.roll_back(registry_dir, None) == (deployed[1], deployed[0])
    with raises_error(RecipeError, "INS-G002", match="only version"):
        registry.roll_back(registry_dir, None)
    assert registry.roll_back(registry_dir, deployed[2]) == (deployed[0], deployed[2])
    assert registry.current_version(registry_dir) == deployed[2]
    with raises_error(RecipeError, "INS-G002", match=f"no complete version nonsense .* there are {min(deployed)}"):
        registry.roll_back(registry_dir, "nonsense")


def test_a_version_that_was_deployed_twice_is_rolled_back_to_the_one_between(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    registry_dir, first_run, second_run = (
        tmp_path / "registry" / "classifier",
        make_trained_run("one"),
        make_trained_run("two"),
    )
    first, second = registry.promote(registry_dir, first_run, []), registry.promote(registry_dir, second_run, [])
    registry.promote(registry_dir, first_run, [])
    assert list(versions.iter_candidates(registry_dir)) == [first, second]
    assert registry.roll_back(registry_dir, None) == (first, second)
    assert registry.roll_back(registry_dir, None) == (second, first)
    registry.promote(registry_dir, second_run, [])
    assert registry.roll_back(registry_dir, None) == (second, first)


def test_nothing_to_roll_back(tmp_path: Path) -> None:
    with raises_error(RecipeError, "INS-G001", match="nothing is deployed"):
        registry.roll_back(tmp_path / "classifier", None)


def test_a_damaged_version_is_not_gone_back_to_and_is_written_anew(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    trained_run = make_trained_run("one")
    first = registry.promote(registry_dir, trained_run, [])
    registry.promote(registry_dir, make_trained_run("two"), [])
    (registry_dir / "versions" / first / "adapter" / "adapter_model.safetensors").write_text("hal", encoding="utf-8")
    with raises_error(RecipeError, "INS-G002", match="no complete version"):
        registry.roll_back(registry_dir, None)
    assert registry.promote(registry_dir, trained_run, []) == first and registry.is_complete(
        registry_dir / "versions" / first
    )


def test_an_adapter_that_changed_after_training_is_not_deployed(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    trained_run = make_trained_run("one")
    (trained_run.folder / "adapter" / "adapter_model.safetensors").write_text("two", encoding="utf-8")
    with raises_error(StageError, "INS-E014", match="was changed"):
        registry.promote(tmp_path / "registry" / "classifier", trained_run, [])
    assert registry.current_version(tmp_path / "registry" / "classifier") is None
    assert not list((tmp_path / "registry" / "classifier" / "versions").iterdir())


def test_reference_answers_go_along_beside_the_adapter_and_changed_ones_do_not(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    registry_dir, first_run, second_run = (
        tmp_path / "registry" / "classifier",
        make_trained_run("one"),
        make_trained_run("two"),
    )
    version = Run(registry_dir / "versions" / registry.promote(registry_dir, first_run, []))
    assert version.references_path == version.folder / REFERENCES_FILE
    assert version.references_path.read_text(encoding="utf-8") == "a row that one answers"
    assert not (version.folder / "adapter" / REFERENCES_FILE).exists()
    (second_run.folder / REFERENCES_FILE).write_text("others", encoding="utf-8")
    with raises_error(StageError, "INS-E011", match=r"reference.jsonl was changed after training"):
        registry.promote(registry_dir, second_run, [])
    assert registry.current_version(registry_dir) == version.id


def test_a_run_of_an_earlier_version_has_them_in_the_adapter(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    trained_run = make_trained_run("one")
    prompt_path = trained_run.folder / "adapter" / "prompt.json"
    base = atomic_files.read_json(prompt_path)["base"]
    (trained_run.folder / REFERENCES_FILE).rename(trained_run.folder / "adapter" / REFERENCES_FILE)
    atomic_files.write_json(prompt_path, {"max_answer_tokens": 16, "base": base})
    atomic_files.write_checksums(trained_run.folder / "adapter")
    registry_dir = tmp_path / "registry" / "classifier"
    version = Run(registry_dir / "versions" / registry.promote(registry_dir, trained_run, []))
    assert version.references_path == version.folder / "adapter" / REFERENCES_FILE and version.references_path.is_file()
    assert registry.is_complete(version.folder)


def test_a_run_without_an_adapter_is_not_deployed_by_force_either(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    trained_run = make_trained_run("one")
    shutil.rmtree(trained_run.folder / "adapter")
    assert "has not finished training" in gates.find_failures(trained_run, RECIPE)[0]
    with raises_error(StageError, "INS-E014", match="has no adapter to deploy"):
        registry.promote(tmp_path / "registry" / "classifier", trained_run, ["forced"])


def test_the_gates(make_trained_run: Callable[[str], Run]) -> None:
    trained_run = make_trained_run("one")
    (failure,) = gates.find_failures(trained_run, RECIPE)
    assert "parity was not measured" in failure and f"make parity RECIPE=classifier RUN={trained_run.id}" in failure
    passed(trained_run)
    assert gates.find_failures(trained_run, RECIPE) == []
    passed(trained_run, False)
    assert gates.find_failures(trained_run, RECIPE) == ["parity of the adapter failed: answers differ"]
    passed(trained_run)
    (trained_run.folder / "adapter" / atomic_files.CHECKSUMS).write_text("", encoding="utf-8")
    (failure,) = gates.find_failures(trained_run, RECIPE)
    assert "on another adapter" in failure
    dora = load("classifier", ["lora.use_dora=true"], "cpu").recipe
    assert "adapters are deployed unmerged" in gates.find_failures(trained_run, dora)[0]


def test_the_command_deploys_refuses_forces_and_rolls_back(
    make_trained_run: Callable[[str], Run], tmp_path: Path, python: Command
) -> None:
    first, second = passed(make_trained_run("one")), make_trained_run("two")
    registry_dir = tmp_path / "registry" / "classifier"
    args = ("deploy", "classifier", "--hardware", "cpu")
    settings = {"REGISTRY": str(tmp_path / "registry")}
    deployed = python(*args, "--run", first.id, **settings)
    assert deployed.returncode == 0, deployed.stderr
    assert f"run {first.id}" in deployed.stdout
    refused = python(*args, "--run", second.id, **settings)
    assert refused.returncode == 3 and "FORCE=1" in refused.stderr and "make parity" in refused.stderr
    assert registry.current_version(registry_dir) == registry.compute_version(first.folder / "adapter")
    forced = python(*args, "--run", second.id, **settings, FORCE="1")
    assert forced.returncode == 0 and registry.read_history(registry_dir)[-1]["forced"]
    assert second.stage("deploy").metrics["overridden"]
    rolled_back = python(*args, "--rollback", **settings)
    assert rolled_back.returncode == 0 and registry.current_version(registry_dir) == registry.compute_version(
        first.folder / "adapter"
    )
    unknown = python(*args, "--run", "nonsense", **settings)
    assert unknown.returncode == 2 and "no such run" in unknown.stderr
    lines = (registry_dir / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["deploy", "deploy", "rollback"]
    assert (registry_dir / "current").readlink().parent.name == "versions"


@pytest.mark.parametrize("torn_lines", [b'{"at": "2026-11-29T01:00:00Z", "from": "', b"\xff\xfe", b"[]\n{}\nnull\n"])
def test_torn_lines_of_the_history_change_nothing(
    make_trained_run: Callable[[str], Run], tmp_path: Path, torn_lines: bytes
) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    first, second = (
        registry.promote(registry_dir, make_trained_run("one"), []),
        registry.promote(registry_dir, make_trained_run("two"), []),
    )
    with (registry_dir / "history.jsonl").open("ab") as file:
        file.write(torn_lines)
    assert registry.roll_back(registry_dir, None) == (second, first)
    third = registry.promote(registry_dir, make_trained_run("three\u2028"), ["a gate said\u2028no"])
    assert registry.roll_back(registry_dir, None) == (third, first)
    assert [line["to"] for line in registry.read_history(registry_dir)] == [first, second, first, third, first]


@pytest.mark.parametrize(
    ("name", "rewrite_checksums"),
    [
        ("adapter/adapter_model.safetensors", True),
        ("adapter/prompt.json", True),
        ("adapter/more", False),
        (REFERENCES_FILE, False),
    ],
)
def test_a_version_whose_files_were_changed_is_not_whole(
    make_trained_run: Callable[[str], Run], tmp_path: Path, name: str, rewrite_checksums: bool
) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    version = registry.promote(registry_dir, make_trained_run("one"), [])
    folder = registry_dir / "versions" / version
    assert registry.is_complete(folder)
    (folder / name).write_text("others", encoding="utf-8")
    if rewrite_checksums:
        atomic_files.write_checksums(folder / "adapter")
    assert not registry.is_complete(folder)


def test_a_version_whose_recipe_was_changed_is_not_whole_and_is_written_anew(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    trained_run = make_trained_run("one")
    version = registry.promote(registry_dir, trained_run, [])
    recipe = registry_dir / "versions" / version / "recipe.yaml"
    recipe.write_text("model: {base: /elsewhere}\n", encoding="utf-8")
    assert not registry.is_complete(recipe.parent)
    registry.promote(registry_dir, trained_run, [])
    assert registry.is_complete(recipe.parent) and "elsewhere" not in recipe.read_text(encoding="utf-8")


def test_what_the_registry_does_not_hold_is_not_gone_back_to(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    registry_dir, other_folder = tmp_path / "registry" / "classifier", tmp_path / "registry" / "other"
    version = registry.promote(registry_dir, make_trained_run("one"), [])
    foreign = registry.promote(other_folder, make_trained_run("two"), [])
    shutil.copytree(other_folder / "versions" / foreign, registry_dir / "versions" / foreign)
    for target in (foreign, f"../../other/versions/{foreign}", "..", ""):
        with raises_error(RecipeError, "INS-G002", match=r"no complete version|only version"):
            registry.roll_back(registry_dir, target)
    assert registry.current_version(registry_dir) == version


def test_while_another_process_changes_the_registry_nothing_is_deployed(
    make_trained_run: Callable[[str], Run], tmp_path: Path
) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    first, second = registry.promote(registry_dir, make_trained_run("one"), []), make_trained_run("two")
    argv = ["flock", "--no-fork", registry_dir / ".lock", "sh", "-c", "echo held; exec sleep 60"]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    for attempt in (
        lambda: registry.promote(registry_dir, second, []),
        lambda: registry.roll_back(registry_dir, first),
    ):
        with raises_error(StageError, "INS-X003", match="in use by another process"):
            attempt()
    holder.kill()
    holder.communicate()
    assert registry.current_version(registry_dir) == first
    assert registry.promote(registry_dir, second, []) == registry.current_version(registry_dir)


def test_on_a_full_disk_what_is_deployed_stays(make_trained_run: Callable[[str], Run], tmp_path: Path) -> None:
    registry_dir = tmp_path / "registry" / "classifier"
    first, second = registry.promote(registry_dir, make_trained_run("one"), []), make_trained_run("two")
    history = (registry_dir / "history.jsonl").read_bytes()
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            max_bytes = len(history) + 50
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
            registry.set_current(
                registry_dir,
                registry.compute_version(second.folder / "adapter"),
                {"action": "deploy", "more": "x" * 99},
            )
        except StageError as error:
            code = 0 if "nothing was deployed" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert registry.current_version(registry_dir) == first and (registry_dir / "history.jsonl").read_bytes() == history
