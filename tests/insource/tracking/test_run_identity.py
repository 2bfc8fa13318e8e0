"""Run identity: recipes of one name in two folders share nothing, and what they had before is still theirs."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import prepare
from insource.config import cli
from insource.config.errors import RecipeError
from insource.config.load import LoadedRecipe, load, make_recipe_name
from insource.system import atomic_files
from insource.tracking import run
from insource.tracking.folder_ownership import claim_folder, resolve_name
from tests.conftest import ROOT, Command
from tests.helpers.errors import raises_error


def recipe_in(folder: Path, name: str = "tickets.yaml", rows: int = 40) -> LoadedRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"message {n * 7919} of {folder.name} about {'cats' if n % 2 else 'dogs'},{'ab'[n % 2]}" for n in range(rows)
    ]
    (folder / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    (folder / name).write_text(
        "task: {kind: classification, instruction: Say what it is about.}\nmodel: {base: pocket}\n"
        "data: {source: {path: rows.csv}, split: {test: 0.3, validation: 0.2}}\n",
        encoding="utf-8",
    )
    return load(str(folder / name), (), "cpu")


def test_the_second_recipe_of_a_name_has_runs_of_its_own_and_both_keep_theirs(tmp_path: Path) -> None:
    acme, globex, runs = recipe_in(tmp_path / "acme"), recipe_in(tmp_path / "globex"), tmp_path / "runs"
    names = [claim_folder(loaded, runs).name for loaded in (acme, globex)]
    assert names[0] == "tickets"
    assert names[1].startswith("tickets-")
    for _ in range(2):
        assert [claim_folder(loaded, runs).name for loaded in (acme, globex)] == names
        assert [resolve_name(loaded, runs).name for loaded in (acme, globex)] == names
    assert resolve_name(globex, tmp_path / "registry").name == "tickets"


def test_a_recipe_that_was_moved_keeps_its_runs(tmp_path: Path) -> None:
    loaded, runs = recipe_in(tmp_path / "before"), tmp_path / "runs"
    assert claim_folder(loaded, runs).name == "tickets"
    (tmp_path / "before").rename(tmp_path / "after")
    assert claim_folder(load(str(tmp_path / "after" / "tickets.yaml"), (), "cpu"), runs).name == "tickets"


def prepared(loaded: LoadedRecipe, runs: Path) -> str:
    name = claim_folder(loaded, runs).name
    prepare.main(loaded.recipe, runs / name)
    return name


def test_the_second_recipe_of_a_name_keeps_its_runs_where_it_is_moved(tmp_path: Path) -> None:
    acme, globex, runs = recipe_in(tmp_path / "acme"), recipe_in(tmp_path / "globex"), tmp_path / "runs"
    _, second_name = (prepared(loaded, runs) for loaded in (acme, globex))
    (tmp_path / "globex").rename(tmp_path / "after")
    moved = load(str(tmp_path / "after" / "tickets.yaml"), (), "cpu")
    assert claim_folder(moved, runs).name == second_name
    # What comes to its old place is another recipe.
    assert claim_folder(recipe_in(tmp_path / "globex", rows=44), runs).name not in ("tickets", second_name)
    assert resolve_name(moved, runs).name == second_name


def test_a_path_that_is_not_there_does_not_give_its_runs_to_another_recipe(tmp_path: Path) -> None:
    # As in two containers, of which each has its recipe at a path that the other does not have.
    acme, runs = recipe_in(tmp_path / "acme"), tmp_path / "runs"
    prepared(acme, runs)
    (tmp_path / "acme").rename(tmp_path / "elsewhere")
    globex = recipe_in(tmp_path / "globex")
    assert globex.path.read_bytes() == (tmp_path / "elsewhere" / "tickets.yaml").read_bytes()
    assert claim_folder(globex, runs).name != "tickets"
    assert claim_folder(load(str(tmp_path / "elsewhere" / "tickets.yaml"), (), "cpu"), runs).name == "tickets"


def test_without_data_a_recipe_that_was_changed_elsewhere_is_another(tmp_path: Path) -> None:
    acme, registry = recipe_in(tmp_path / "acme"), tmp_path / "registry"
    claim_folder(acme, registry)
    (tmp_path / "acme").rename(tmp_path / "server")
    copied = load(str(tmp_path / "server" / "tickets.yaml"), (), "cpu")
    assert resolve_name(copied, registry).name == "tickets"
    with copied.path.open("a", encoding="utf-8") as file:
        file.write("privacy: {redact: [email]}\n")
    assert resolve_name(load(str(copied.path), (), "cpu"), registry).name != "tickets"


def test_gateways_of_two_recipes_of_one_name_do_not_serve_each_others_versions(tmp_path: Path, python: Command) -> None:
    acme, globex, registry = recipe_in(tmp_path / "acme"), recipe_in(tmp_path / "globex"), tmp_path / "registry"
    names = [claim_folder(loaded, registry).name for loaded in (acme, globex)]
    for loaded, name in zip((acme, globex), names, strict=True):
        completed = python("deploy.gateway", loaded.path, "--dry-run", "--registry", registry)
        assert completed.returncode == cli.USAGE_ERROR
        assert f"nothing is deployed below {registry / name};" in completed.stderr


def test_a_disk_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    acme = recipe_in(tmp_path / "acme")
    assert claim_folder(acme, tmp_path / "runs").name == "tickets"
    assert claim_folder(recipe_in(tmp_path / "globex"), tmp_path / "runs").name != "tickets"


def test_runs_of_before_owners_were_written_down_are_found_by_their_data(tmp_path: Path) -> None:
    acme, globex, runs = recipe_in(tmp_path / "acme"), recipe_in(tmp_path / "globex"), tmp_path / "runs"
    (tmp_path / "data").mkdir()
    created = run.create(runs / "tickets", acme.recipe, "d" * 16, {}, tmp_path / "data")
    run.set_latest(created)
    assert resolve_name(globex, runs).name != "tickets"
    assert run.find(runs / resolve_name(acme, runs).name, None).id == created.id


def test_runs_under_a_name_of_before_are_found_and_nothing_is_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, runs = recipe_in(tmp_path / "acme", "my tickets.yaml"), tmp_path / "runs"
    data, _ = prepare.main(recipe.recipe, runs / "my tickets")
    created = run.create(runs / "my tickets", recipe.recipe, "d" * 16, {}, data)
    run.set_latest(created)
    for resolve in (resolve_name, claim_folder):
        assert resolve(recipe, runs).name == "my-tickets"
    assert "my-tickets now leads there" in capsys.readouterr().err
    found_run = run.find(runs / "my-tickets", None)
    assert (found_run.id, found_run.recipe_name) == (created.id, "my-tickets")
    assert run.find(runs / "my-tickets", created.id).recipe() == created.recipe()
    assert [listed_run.id for listed_run in run.find_by_digest(runs / "my-tickets", "d" * 16)] == [created.id]
    assert created.folder.is_dir()
    assert prepare.main(recipe.recipe, runs / "my-tickets")[1] is False
    # Another recipe of that old name does not get them.
    assert claim_folder(recipe_in(tmp_path / "globex", "my tickets.yaml"), runs).name not in (
        "my-tickets",
        "my tickets",
    )


def test_a_recipe_whose_file_was_renamed_finds_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, runs = recipe_in(tmp_path / "acme"), tmp_path / "runs"
    prepared(recipe, runs)
    registry = tmp_path / "registry"
    claim_folder(recipe, registry)
    recipe.path.rename(tmp_path / "acme" / "support.yaml")
    renamed = load(str(tmp_path / "acme" / "support.yaml"), (), "cpu")
    assert resolve_name(renamed, runs).name == claim_folder(renamed, runs).name == "support"
    assert "support now leads there" in capsys.readouterr().err
    assert prepare.main(renamed.recipe, runs / "support")[1] is False
    # So does the registry, which has no data to compare; of a recipe of the same words in another folder it does not.
    other_path = tmp_path / "elsewhere" / "other.yaml"
    other_path.parent.mkdir()
    other_path.write_bytes(renamed.path.read_bytes())
    assert not (registry / claim_folder(load(str(other_path), (), "cpu"), registry).name).is_symlink()
    assert (registry / resolve_name(renamed, registry).name).is_symlink()
    # What comes to the old name is another recipe.
    assert claim_folder(recipe_in(tmp_path / "acme", rows=44), runs).name not in ("tickets", "support")


def test_a_copy_of_a_recipe_and_one_of_other_data_have_runs_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, runs = recipe_in(tmp_path / "acme"), tmp_path / "runs"
    prepared(recipe, runs)
    (tmp_path / "acme" / "copy.yaml").write_bytes(recipe.path.read_bytes())
    assert not (runs / claim_folder(load(str(tmp_path / "acme" / "copy.yaml"), (), "cpu"), runs).name).is_symlink()
    recipe.path.unlink()
    copied = recipe_in(tmp_path / "globex", "support.yaml")
    assert not (runs / claim_folder(copied, runs).name).is_symlink()
    changed_path = tmp_path / "acme" / "changed.yaml"
    changed_path.write_text(
        f"{(tmp_path / 'acme' / 'copy.yaml').read_text(encoding='utf-8')}# more\n", encoding="utf-8"
    )
    assert not (runs / claim_folder(load(str(changed_path), (), "cpu"), runs).name).is_symlink()
    assert f"tickets.yaml, which is not there; if this is that recipe: ln -s tickets {runs}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my tickets.yaml", "my-tickets"),
        ("tickets_lr=1e-4.yaml", "tickets_lr-1e-4"),
        ("donn\u00e9es#2.yaml", "donnees-2"),
        ("\u0442\u0438\u043a\u0435\u0442\u044b.yaml", "recipe"),
        ("plain_v1.2.yaml", "plain_v1.2"),
        ("x" * 200 + ".yaml", "x" * 100),
    ],
)
def test_a_recipe_bears_a_name_that_servers_and_wandb_take(file: str, name: str) -> None:
    assert make_recipe_name(Path(file)) == name


def test_names_that_become_the_same_do_not_share_runs(tmp_path: Path) -> None:
    spaced, hyphenated = recipe_in(tmp_path, "my tickets.yaml"), recipe_in(tmp_path, "my-tickets.yaml")
    assert spaced.name == hyphenated.name
    assert claim_folder(spaced, tmp_path / "runs").name != claim_folder(hyphenated, tmp_path / "runs").name


@pytest.mark.parametrize(
    "key", ["tracking.wandb.project=a/b", "tracking.wandb.project=10%", "tracking.wandb.entity=a:b"]
)
def test_a_name_that_wandb_refuses_is_refused_when_the_recipe_is_read(key: str) -> None:
    with raises_error(RecipeError, "INS-R001", match=r"tracking.wandb.*W&B takes no such name"):
        load("classifier", [key], "cpu")


def test_two_processes_that_make_one_folder_both_end_well(tmp_path: Path) -> None:
    # What a process of another container works at looks like what a dead process left: the lock alone tells.
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom insource.system import atomic_files\n"
        "with atomic_files.atomic_folder(Path(sys.argv[1]), keep_existing=True) as aside:\n"
        "    (aside / 'a').write_text('one'); print('in', flush=True); time.sleep(float(sys.argv[2]))\n"
        "    assert (aside / 'a').read_text() == 'one'\n"
    )
    target = tmp_path / "made"
    argv = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen([*argv, "2"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert subprocess.run([*argv, "0"], cwd=ROOT, check=False, stdout=subprocess.PIPE).returncode == 0
    assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".made.12ab34cd", ".made.4711"):
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / ".made.12ab34cd.lock").touch()
    (tmp_path / ".made.0f0f0f0f.lock").touch()
    with atomic_files.atomic_folder(tmp_path / "made") as temp_folder:
        assert sorted(tmp_path.iterdir()) == [temp_folder, temp_folder.with_name(f"{temp_folder.name}.lock")]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_the_operating_system_refuses_is_told_in_words(tmp_path: Path, python: Command) -> None:
    recipe_in(tmp_path / "acme")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    completed = python("data_prep", tmp_path / "acme" / "tickets.yaml", RUNS=str(tmp_path / "file"))
    assert completed.returncode == cli.USAGE_ERROR
    assert str(tmp_path / "file") in completed.stderr
    assert "RUNS=<folder>" in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/runs/x"), "/runs/x: No space left on device; free some space"),
        (PermissionError(13, "Permission denied", "/runs"), "/runs: Permission denied; give this user permission"),
        (ConnectionError("gone"), "gone"),
    ],
)
def test_an_oserror_of_a_stage_is_a_line_and_not_a_traceback(error: OSError, message: str, capsys: object) -> None:
    def stage() -> int:
        raise error

    with pytest.raises(SystemExit) as raised:
        cli.run_cli(stage)
    assert raised.value.code == cli.FAILED
    assert message in capsys.readouterr().err  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    recipe_in(tmp_path / "acme")
    argv = [sys.executable, "-m", "data_prep", str(tmp_path / "acme" / "tickets.yaml"), "--dry-run"]
    with Path("/dev/full").open("w") as full:
        completed = subprocess.run(argv, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert completed.returncode == cli.FAILED
    assert completed.stderr.splitlines()[-1].startswith("failed[INS-X001]: No space left on device; free some space")


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs mount")
def test_a_full_disk_while_preparing_is_told_and_leaves_nothing(tmp_path: Path, python: Command) -> None:
    recipe_in(tmp_path / "acme", rows=4000)
    small_disk = tmp_path / "small"
    small_disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small_disk], check=False)
    if mounted.returncode:
        pytest.skip("this machine may not mount")
    try:
        completed = python("data_prep", tmp_path / "acme" / "tickets.yaml", RUNS=str(small_disk))
        assert completed.returncode in (cli.FAILED, cli.USAGE_ERROR)
        assert "Traceback" not in completed.stderr
        assert "No space left" in completed.stderr
        assert not list(small_disk.rglob("*.jsonl"))
    finally:
        subprocess.run(["umount", small_disk], check=True)
