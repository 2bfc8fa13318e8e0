"""What a newcomer meets first: the Makefile, the README, the locks."""

import hashlib
import os
import re
import runpy
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from insource.config.errors import StageError
from insource.system import venvs
from tests.conftest import ROOT
from train.export import gptq

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_make_help_names_every_target() -> None:
    completed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
    assert [target for target in targets if f"  {target} " not in completed.stdout] == []


def test_the_readme_gets_to_a_result_in_its_first_screen_with_commands_that_are_there() -> None:
    assert "make train RECIPE=classifier" in "\n".join(README.splitlines()[:12])
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets | {"sure"}
    for path in re.findall(r"\]\(([\w/.-]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_locks_hold_every_dependency_by_hash_and_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for lock, extra in (("cpu.txt", "cpu"), ("gpu.txt", "gpu")):
        text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
        if lock == "cpu.txt":
            text += (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8")
        requirements = project["dependencies"] + extras[extra] + extras["dev"]
        for name in (re.split(r"[<>=]", line)[0].replace(".", "-") for line in requirements):
            assert re.search(rf"^{re.escape(name)}==.*\\\n    --hash=sha256:", text, re.MULTILINE), (lock, name)
        assert "://" not in text
        pins = re.split(r"\n(?=[a-zA-Z])", text)
        assert all("--hash=sha256:" in pin for pin in pins if "==" in pin)
    assert "\ntorch==2.13" in (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8")
    assert "torchvision" not in (ROOT / "requirements" / "cpu.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("lock", [gptq.LOCK, ROOT / "requirements" / "schemathesis.txt"], ids=lambda lock: lock.stem)
def test_the_lock_of_a_separate_environment_is_whole_and_hashed(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    requirements = lock.with_suffix(".in").read_text(encoding="utf-8").split()
    locked = venvs.split_lock(text)
    assert all(any(pin.startswith(f"{name} ") for pin in locked) for name in requirements)
    assert len(locked) > 20 and all("--hash=sha256:" in pin for pin in locked) and "://" not in text


@pytest.mark.parametrize("correct", [True, False])
def test_an_environment_takes_what_its_lock_has_the_hash_of_and_nothing_else(
    correct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "VALUE = 7\n")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    lock, folder = tmp_path / "lock.txt", tmp_path / "venvs" / "tiny"
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest() if correct else "0" * 64
    lock.write_text(f"absent==2.0 \\\n    --hash=sha256:{sha256}\ntiny==1.0 \\\n    --hash=sha256:{sha256}\n")
    if not correct:
        with pytest.raises(StageError, match="pip install ended with 1"):
            venvs.ensure_venv_from_lock(folder, lock, ("absent",))
        assert not (folder / venvs.STAMP_FILE).exists()
        return
    python = venvs.ensure_venv_from_lock(folder, lock, ("absent",))
    completed = subprocess.run(
        [python, "-c", "import tiny; print(tiny.VALUE)"], capture_output=True, text=True, check=True
    )
    assert completed.stdout == "7\n"
    stamped_at = (folder / venvs.STAMP_FILE).stat().st_mtime_ns
    assert venvs.ensure_venv_from_lock(folder, lock, ("absent",)) == python
    assert (folder / venvs.STAMP_FILE).stat().st_mtime_ns == stamped_at


def test_what_pips_install_side_by_side_is_the_whole_lock() -> None:
    install_module = runpy.run_path(str(ROOT / "requirements" / "install.py"))
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert "\n".join(install_module["read_pins"](text)).splitlines() == lines, lock.name


def test_every_direct_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    dependencies = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    assert [name for name in (re.split(r"[<>=]", line)[0] for line in dependencies) if name not in page] == []


def test_the_doctor_names_keys_and_never_shows_them(python) -> None:  # type: ignore[no-untyped-def]
    completed = python("insource.tracking.doctor", OPENAI_API_KEY="sk-test-0123456789")
    assert completed.returncode == 0
    assert "OPENAI_API_KEY" in completed.stdout
    assert "0123456789" not in completed.stdout
    assert "pocket" in completed.stdout


def test_make_takes_modules_from_the_lock_whatever_the_shell_has_before_it() -> None:
    rule = 'show:\n\t@echo "[$$PYTHONPATH]"\n'
    argv = ["make", "-s", "-f", "Makefile", "-f", "-", "show"]
    settings = {**os.environ, "PYTHONPATH": "/other"}
    completed = subprocess.run(argv, cwd=ROOT, env=settings, input=rule, capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"
