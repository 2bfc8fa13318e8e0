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

RECIPE = load("classifier", (), "cpu").recipe


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[str], Run]:
    """Makes a run that looks trained, its weights the given text."""

    def made(weights: str) -> Run:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        here = run.create(tmp_path / "runs" / "classifier", RECIPE, "digest", {}, data)
        (here.folder / "adapter").mkdir()
        (here.folder / "adapter" / "adapter_model.safetensors").write_text(weights, encoding="utf-8")
        (here.folder / REFERENCES_FILE).write_text(f"a row that {weights} answers", encoding="utf-8")
        told = {"rows": 1, "sha256": atomic_files.sha256(here.folder / REFERENCES_FILE)}
        base = {"name": "some/model", "commit": "abc"}
        atomic_files.write_json(here.folder / "adapter" / "prompt.json", {"base": base, "references": told})
        atomic_files.write_checksums(here.folder / "adapter")
        run.start_stage(here, "train", {})
        run.end_stage(here, "train", "done", "done")
        return here

    return made


def passed(here: Run, passed: bool = True) -> Run:
    sums = {f"adapter/{atomic_files.CHECKSUMS}": atomic_files.sha256(here.folder / "adapter" / atomic_files.CHECKSUMS)}
    run.start_stage(here, "parity", sums)
    run.end_stage(here, "parity", "done" if passed else "failed", "done" if passed else "answers differ", passed=passed)
    return here


def test_versions_follow_their_bytes_and_history_tells(trained: Callable[[str], Run], tmp_path: Path) -> None:
    place = tmp_path / "registry" / "classifier"
    one, two = trained("one"), trained("two")
    first, second = registry.promote(place, one, []), registry.promote(place, two, ["parity failed"])
    assert first != second and registry.current_version(place) == second
    assert registry.promote(place, one, []) == first  # the same bytes are the same version
    assert sorted(path.name for path in (place / "versions").iterdir()) == sorted([first, second])
    told = registry.read_history(place)
    assert [(line["from"], line["to"]) for line in told] == [(None, first), (first, second), (second, first)]
    assert [line["forced"] for line in told] == [False, True, False]
    assert told[1]["overridden"] == ["parity failed"] and told[1]["run_id"] == two.id
    assert (place / "current" / "adapter" / "adapter_model.safetensors").read_text(encoding="utf-8") == "one"


def test_rolling_back_twice_goes_further_back(trained: Callable[[str], Run], tmp_path: Path) -> None:
    place = tmp_path / "registry" / "classifier"
    order = [registry.promote(place, trained(weights), []) for weights in ("one", "two", "three")]
    assert registry.roll_back(place, None) == (order[2], order[1])
    assert registry.roll_back(place, None) == (order[1], order[0])
    with pytest.raises(RecipeError, match="only version"):
        registry.roll_back(place, None)
    assert registry.roll_back(place, order[2]) == (order[0], order[2])
    assert registry.current_version(place) == order[2]
    with pytest.raises(RecipeError, match=f"no whole version nonsense .* there are {min(order)}"):
        registry.roll_back(place, "nonsense")


def test_a_version_that_was_deployed_twice_is_rolled_back_to_the_one_between(
    trained: Callable[[str], Run], tmp_path: Path
) -> None:
    place, one, two = tmp_path / "registry" / "classifier", trained("one"), trained("two")
    first, second = registry.promote(place, one, []), registry.promote(place, two, [])
    registry.promote(place, one, [])
    assert list(versions.iter_candidates(place)) == [first, second]
    assert registry.roll_back(place, None) == (first, second)
    assert registry.roll_back(place, None) == (second, first)
    registry.promote(place, two, [])
    assert registry.roll_back(place, None) == (second, first)


def test_nothing_to_roll_back(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing is deployed"):
        registry.roll_back(tmp_path / "classifier", None)


def test_a_damaged_version_is_not_gone_back_to_and_is_written_anew(
    trained: Callable[[str], Run], tmp_path: Path
) -> None:
    place = tmp_path / "registry" / "classifier"
    here = trained("one")
    first = registry.promote(place, here, [])
    registry.promote(place, trained("two"), [])
    (place / "versions" / first / "adapter" / "adapter_model.safetensors").write_text("hal", encoding="utf-8")
    with pytest.raises(RecipeError, match="no whole version"):
        registry.roll_back(place, None)
    assert registry.promote(place, here, []) == first and registry.is_complete(place / "versions" / first)


def test_an_adapter_that_changed_after_training_is_not_deployed(trained: Callable[[str], Run], tmp_path: Path) -> None:
    here = trained("one")
    (here.folder / "adapter" / "adapter_model.safetensors").write_text("two", encoding="utf-8")
    with pytest.raises(StageError, match="was changed"):
        registry.promote(tmp_path / "registry" / "classifier", here, [])
    assert registry.current_version(tmp_path / "registry" / "classifier") is None
    assert not list((tmp_path / "registry" / "classifier" / "versions").iterdir())


def test_reference_answers_go_along_beside_the_adapter_and_changed_ones_do_not(
    trained: Callable[[str], Run], tmp_path: Path
) -> None:
    place, one, two = tmp_path / "registry" / "classifier", trained("one"), trained("two")
    version = Run(place / "versions" / registry.promote(place, one, []))
    assert version.references == version.folder / REFERENCES_FILE
    assert version.references.read_text(encoding="utf-8") == "a row that one answers"
    assert not (version.folder / "adapter" / REFERENCES_FILE).exists()
    (two.folder / REFERENCES_FILE).write_text("others", encoding="utf-8")
    with pytest.raises(StageError, match=r"reference.jsonl is not as training wrote it"):
        registry.promote(place, two, [])
    assert registry.current_version(place) == version.id


def test_a_run_of_an_earlier_version_has_them_in_the_adapter(trained: Callable[[str], Run], tmp_path: Path) -> None:
    here = trained("one")
    prompt = atomic_files.read_json(here.folder / "adapter" / "prompt.json")
    (here.folder / REFERENCES_FILE).rename(here.folder / "adapter" / REFERENCES_FILE)
    atomic_files.write_json(here.folder / "adapter" / "prompt.json", {"base": prompt["base"]})
    atomic_files.write_checksums(here.folder / "adapter")
    place = tmp_path / "registry" / "classifier"
    version = Run(place / "versions" / registry.promote(place, here, []))
    assert version.references == version.folder / "adapter" / REFERENCES_FILE and version.references.is_file()
    assert registry.is_complete(version.folder)


def test_a_run_without_an_adapter_is_not_deployed_by_force_either(
    trained: Callable[[str], Run], tmp_path: Path
) -> None:
    here = trained("one")
    shutil.rmtree(here.folder / "adapter")
    assert "not trained to its end" in gates.find_failures(here, RECIPE)[0]
    with pytest.raises(StageError, match="has no adapter to deploy"):
        registry.promote(tmp_path / "registry" / "classifier", here, ["forced"])


def test_the_gates(trained: Callable[[str], Run]) -> None:
    here = trained("one")
    (told,) = gates.find_failures(here, RECIPE)
    assert "parity was not measured" in told and f"make parity RECIPE=classifier RUN={here.id}" in told
    passed(here)
    assert gates.find_failures(here, RECIPE) == []
    passed(here, False)
    assert gates.find_failures(here, RECIPE) == ["parity of the adapter failed: answers differ"]
    passed(here)
    (here.folder / "adapter" / atomic_files.CHECKSUMS).write_text("", encoding="utf-8")
    (told,) = gates.find_failures(here, RECIPE)
    assert "on another adapter" in told
    dora = load("classifier", ["lora.use_dora=true"], "cpu").recipe
    assert "adapters are deployed unmerged" in gates.find_failures(here, dora)[0]


def test_the_command_deploys_refuses_forces_and_rolls_back(
    trained: Callable[[str], Run], tmp_path: Path, python: Command
) -> None:
    first, second = passed(trained("one")), trained("two")
    place = tmp_path / "registry" / "classifier"
    words = ("deploy", "classifier", "--hardware", "cpu")
    settings = {"REGISTRY": str(tmp_path / "registry")}
    done = python(*words, "--run", first.id, **settings)
    assert done.returncode == 0, done.stderr
    assert f"run {first.id}" in done.stdout
    refused = python(*words, "--run", second.id, **settings)
    assert refused.returncode == 3 and "FORCE=1" in refused.stderr and "make parity" in refused.stderr
    assert registry.current_version(place) == registry.compute_version(first.folder / "adapter")
    forced = python(*words, "--run", second.id, **settings, FORCE="1")
    assert forced.returncode == 0 and registry.read_history(place)[-1]["forced"]
    assert second.stage("deploy")["metrics"]["overridden"]
    back = python(*words, "--rollback", **settings)
    assert back.returncode == 0 and registry.current_version(place) == registry.compute_version(
        first.folder / "adapter"
    )
    unknown = python(*words, "--run", "nonsense", **settings)
    assert unknown.returncode == 2 and "no such run" in unknown.stderr
    lines = (place / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["deploy", "deploy", "rollback"]
    assert (place / "current").readlink().parent.name == "versions"


@pytest.mark.parametrize("torn", [b'{"at": "2026-11-29T01:00:00Z", "from": "', b"\xff\xfe", b"[]\n{}\nnull\n"])
def test_torn_lines_of_the_history_change_nothing(trained: Callable[[str], Run], tmp_path: Path, torn: bytes) -> None:
    place = tmp_path / "registry" / "classifier"
    one, two = registry.promote(place, trained("one"), []), registry.promote(place, trained("two"), [])
    with (place / "history.jsonl").open("ab") as file:
        file.write(torn)
    assert registry.roll_back(place, None) == (two, one)
    three = registry.promote(place, trained("three\u2028"), ["a gate said\u2028no"])
    assert registry.roll_back(place, None) == (three, one)
    assert [line["to"] for line in registry.read_history(place)] == [one, two, one, three, one]


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("adapter/adapter_model.safetensors", True),
        ("adapter/prompt.json", True),
        ("adapter/more", False),
        (REFERENCES_FILE, False),
    ],
)
def test_a_version_whose_files_were_changed_is_not_whole(
    trained: Callable[[str], Run], tmp_path: Path, name: str, again: bool
) -> None:
    place = tmp_path / "registry" / "classifier"
    version = registry.promote(place, trained("one"), [])
    folder = place / "versions" / version
    assert registry.is_complete(folder)
    (folder / name).write_text("others", encoding="utf-8")
    if again:
        atomic_files.write_checksums(folder / "adapter")
    assert not registry.is_complete(folder)


def test_a_version_whose_recipe_was_changed_is_not_whole_and_is_written_anew(
    trained: Callable[[str], Run], tmp_path: Path
) -> None:
    place = tmp_path / "registry" / "classifier"
    here = trained("one")
    version = registry.promote(place, here, [])
    recipe = place / "versions" / version / "recipe.yaml"
    recipe.write_text("model: {base: /elsewhere}\n", encoding="utf-8")
    assert not registry.is_complete(recipe.parent)
    registry.promote(place, here, [])
    assert registry.is_complete(recipe.parent) and "elsewhere" not in recipe.read_text(encoding="utf-8")


def test_what_the_registry_does_not_hold_is_not_gone_back_to(trained: Callable[[str], Run], tmp_path: Path) -> None:
    place, other = tmp_path / "registry" / "classifier", tmp_path / "registry" / "other"
    version = registry.promote(place, trained("one"), [])
    elsewhere = registry.promote(other, trained("two"), [])
    shutil.copytree(other / "versions" / elsewhere, place / "versions" / elsewhere)
    for to in (elsewhere, f"../../other/versions/{elsewhere}", "..", ""):
        with pytest.raises(RecipeError, match=r"no whole version|only version"):
            registry.roll_back(place, to)
    assert registry.current_version(place) == version


def test_while_another_process_changes_the_registry_nothing_is_deployed(
    trained: Callable[[str], Run], tmp_path: Path
) -> None:
    place = tmp_path / "registry" / "classifier"
    one, second = registry.promote(place, trained("one"), []), trained("two")
    asked = ["flock", "--no-fork", place / ".lock", "sh", "-c", "echo held; exec sleep 60"]
    holder = subprocess.Popen(asked, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    for attempt in (lambda: registry.promote(place, second, []), lambda: registry.roll_back(place, one)):
        with pytest.raises(StageError, match="being changed by another process"):
            attempt()
    holder.kill()
    holder.communicate()
    assert registry.current_version(place) == one
    assert registry.promote(place, second, []) == registry.current_version(place)


def test_on_a_full_disk_what_is_deployed_stays(trained: Callable[[str], Run], tmp_path: Path) -> None:
    place = tmp_path / "registry" / "classifier"
    one, second = registry.promote(place, trained("one"), []), trained("two")
    history = (place / "history.jsonl").read_bytes()
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            most = len(history) + 50
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            registry.set_current(
                place, registry.compute_version(second.folder / "adapter"), {"action": "deploy", "more": "x" * 99}
            )
        except StageError as error:
            code = 0 if "nothing was deployed" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert registry.current_version(place) == one and (place / "history.jsonl").read_bytes() == history
