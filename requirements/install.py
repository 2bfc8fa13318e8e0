"""`make setup`: install the lock with uv or pip into `.venv-cpu` or `.venv-gpu`, and link `.venv` to it.

It does nothing if the lock is installed. Two locks never share an environment. vLLM's builds for CPUs and for GPUs are
packages of different names with the same files. On a change back to the first lock, pip would keep the wrong files.

If uv is on PATH, it installs the lock: several times faster than pip, and from its cache in seconds. uv does not read
pip's configuration, so insource brings no uv of its own: where only pip is set up for a private index, pip installs.
It also installs what uv could not. pip installs packages one by one and spends most of its time unpacking. One pip for
each core, at most four, installs a part of the lock. The parts are independent, because the lock is complete and
nothing is resolved.

Needs Python 3.11 to 3.13, and for a GPU a C compiler and Python.h, with which Triton compiles kernels for PyTorch and
vLLM. The stamp in an environment marks it as insource's from the start, and in the end records the installed lock. An
interrupted set-up therefore resumes when it is called again. A second set-up waits for the first. An environment
without a stamp is not insource's: it is renamed, never removed.
"""

from __future__ import annotations  # so that an older Python reaches the version check

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

REQUIREMENTS_DIR = Path(__file__).parent
VENV_LINK = REQUIREMENTS_DIR.parent / ".venv"
STAMP_FILE = "insource.json"
# The stamp before the end: whether the environment itself, with its pip, is complete.
UNFINISHED_ENVIRONMENT, UNFINISHED_PACKAGES = {"unfinished": "environment"}, {"unfinished": "packages"}
MAX_PIP_PROCESSES = 4


def main() -> None:
    """Install the lock of this machine unless it is installed."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"error: insource needs Python 3.11 to 3.13, this is {sys.version.split()[0]}; try PYTHON=python3.11")
    # The project itself is not installed.
    sys.path.insert(0, str(REQUIREMENTS_DIR.parent))
    from insource.config import hardware

    # HARDWARE as for recipes, else the hardware that they detect here.
    hardware_name = os.environ.get("HARDWARE") or hardware.detect()[0]
    family = "cpu" if hardware.uses_cpu(hardware_name) else "gpu"
    locks = ["torch.txt", "cpu.txt"] if family == "cpu" else ["gpu.txt"]
    sha256 = hashlib.sha256(b"".join((REQUIREMENTS_DIR / lock).read_bytes() for lock in locks)).hexdigest()
    expected = {"python": sys.version.split()[0], "locks": list(locks), "sha256": sha256}
    if read_stamp(VENV_LINK) == expected:
        return
    folder = REQUIREMENTS_DIR.parent / f".venv-{family}"
    if family == "gpu" and read_stamp(folder) != expected:
        if missing := hardware.compiler_problem():
            sys.exit(f"error: {missing}")
        if problem := hardware.driver_problem():
            log(f"warning   {problem}")
    with lock_environment(folder) as lock_fd:
        # Another set-up may have installed it during the wait.
        if read_stamp(folder) == expected:
            set_link(folder)
            log(f"setup     .venv is {folder.name}, which is installed")
            return
        log(f"setup     installing requirements/{locks[-1]} into {folder.name} (a few minutes, once)")
        started_at = time.monotonic()
        create_environment(folder, hardware.COMPILER_INSTALL_COMMAND)
        install_locks(folder, family, locks, lock_fd)
        write_stamp(folder, expected)
        set_link(folder)
        log(f"setup     done in {time.monotonic() - started_at:.0f} s")


def read_stamp(folder: Path) -> dict[str, object] | None:
    """Return the stamp of an environment, None if it is missing or torn."""
    try:
        return json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


def write_stamp(folder: Path, content: dict[str, object]) -> None:
    """Write the stamp of an environment."""
    (folder / STAMP_FILE).write_text(json.dumps(content), encoding="utf-8")


def is_managed(path: Path) -> bool:
    """Return whether insource created the path: an environment, complete or not, or a link to one."""
    return (path / STAMP_FILE).exists() or (path.is_symlink() and str(path.readlink()) in (".venv-cpu", ".venv-gpu"))


@contextlib.contextmanager
def lock_environment(path: Path) -> Iterator[int]:
    """Wait until no other set-up uses an environment, and yield the lock's file descriptor."""
    with path.with_name(f"{path.name}.lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"setup     waiting for another set-up of {path.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield file.fileno()


def create_environment(folder: Path, install_command: str) -> None:
    """Create an environment with pip, unless one exists that works with this Python.

    An earlier insource installed into `.venv` itself. That folder is renamed to `folder` if it has the same family.
    `install_command` is the command that installs what a Python may lack.
    """
    with lock_environment(VENV_LINK):
        installed_locks = [] if VENV_LINK.is_symlink() else (read_stamp(VENV_LINK) or {}).get("locks", [])
        if f"{folder.name.removeprefix('.venv-')}.txt" in installed_locks and not os.path.lexists(folder):
            VENV_LINK.rename(folder)
    if os.path.lexists(folder) and not is_managed(folder):
        rename_unmanaged(folder)
    if read_stamp(folder) != UNFINISHED_ENVIRONMENT and is_usable(folder / "bin" / "python"):
        write_stamp(folder, UNFINISHED_PACKAGES)
        return
    folder.mkdir(exist_ok=True)
    write_stamp(folder, UNFINISHED_ENVIRONMENT)
    clear_environment(folder)
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError:
        remove_environment(folder)
        sys.exit(f"error: this Python cannot make an environment with pip (ensurepip is missing): {install_command}")
    write_stamp(folder, UNFINISHED_PACKAGES)


def is_usable(python: Path) -> bool:
    """Return whether an environment's Python has this version and pip."""
    try:
        version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
        subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return version.split() == ["Python", sys.version.split()[0]]


def clear_environment(folder: Path) -> None:
    """Remove the content of a managed environment except its stamp, so that it stays managed if this is interrupted."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != STAMP_FILE:
            path.unlink()


def remove_environment(path: Path) -> None:
    """Remove a managed environment, or a link to one."""
    if path.is_symlink():
        path.unlink()
    else:
        clear_environment(path)
        shutil.rmtree(path)


def rename_unmanaged(path: Path) -> None:
    """Rename a path that insource did not create to `<name>.before`, or to the next free name."""
    number, new_path = 1, path.with_name(f"{path.name}.before")
    while os.path.lexists(new_path):
        number += 1
        new_path = path.with_name(f"{path.name}.before.{number}")
    try:
        path.rename(new_path)
    except OSError as error:
        sys.exit(f"error: {path.name} is not insource's and cannot be renamed to {new_path.name}: {error.strerror}")
    log(f"setup     {path.name} was not made by insource: renamed to {new_path.name}")


def set_link(folder: Path) -> None:
    """Link `.venv` to an environment beside it, whatever has that name now."""
    temp_link = VENV_LINK.with_name(f".venv.{os.getpid()}")
    with lock_environment(VENV_LINK):
        if os.path.lexists(VENV_LINK) and not is_managed(VENV_LINK):
            rename_unmanaged(VENV_LINK)
        elif VENV_LINK.is_dir() and not VENV_LINK.is_symlink():
            log("setup     removing .venv, which an earlier insource made for another lock")
            remove_environment(VENV_LINK)
        try:
            temp_link.symlink_to(folder.name)
            temp_link.replace(VENV_LINK)
        finally:
            temp_link.unlink(missing_ok=True)


def install_locks(folder: Path, family: str, locks: list[str], lock_fd: int) -> None:
    """Install the locks of a family into an environment. `lock_fd` is the descriptor that `lock_environment` yields."""
    python, builds = folder / "bin" / "python", []
    if family == "cpu" and (build := find_torch_cpu_build(python)):
        builds.append(build)
        locks = [name for name in locks if name != "torch.txt"]
    elif family == "cpu":
        log("setup     pip has no CPU build of torch here that the lock knows; the CUDA build runs too, and is larger")
        locks = [*locks, "cuda.txt"]
    pins = [pin for name in locks for pin in read_pins((REQUIREMENTS_DIR / name).read_text(encoding="utf-8"))]
    if uv := shutil.which("uv"):
        if uv_install(uv, python, builds + pins, lock_fd):
            return
        log("setup     uv could not install the lock, as it says above; pip installs it")
    pip_install(python, builds, pins, lock_fd)


def read_pins(lock: str) -> list[str]:
    """Return the requirements of a lock, each with its hashes."""
    return re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", lock, re.MULTILINE)


def uv_install(uv: str, python: Path, pins: list[str], lock_fd: int) -> bool:
    """Install with uv, without resolution, and return whether it succeeded. The next set-up waits for uv too."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(pins) + "\n")
        file.flush()
        argv = [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "--requirements", file.name]
        try:
            return subprocess.run(argv, pass_fds=[lock_fd], check=False).returncode == 0
        except KeyboardInterrupt:  # the terminal sends it to uv too
            sys.exit("error: interrupted; `make setup` goes on from here")


def pip_install(python: Path, builds: list[str], pins: list[str], lock_fd: int) -> None:
    """Install with several pips, without resolution (the lock is complete) and without compiling bytecode.

    The pips inherit `lock_fd`, so that the next set-up waits for those that outlive this process.
    """
    argv = [python, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    n_parts = min(MAX_PIP_PROCESSES, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        processes = [subprocess.Popen([*argv, build], pass_fds=[lock_fd]) for build in builds]
        for number in range(n_parts):
            part = Path(folder) / f"{number}.txt"
            part.write_text("\n".join(pins[number::n_parts]) + "\n", encoding="utf-8")
            processes.append(subprocess.Popen([*argv, "-r", str(part)], pass_fds=[lock_fd]))
        try:
            exit_codes = [process.wait() for process in processes]
        except KeyboardInterrupt:  # the terminal sends it to the pips too
            exit_codes = [process.wait() or 1 for process in processes]
    if any(exit_codes):
        sys.exit("error: pip could not install the lock, as it says above; `make setup` goes on from here")


def find_torch_cpu_build(python: Path) -> str | None:
    """Return the CPU build of torch that pip would install here, as address and hash, if the lock has the hash.

    pip runs without hashes first: with hashes it prefers a file whose hash its index lists, which is the CUDA build.
    """
    lock = (REQUIREMENTS_DIR / "torch.txt").read_text(encoding="utf-8")
    pin = next(line for line in lock.splitlines() if line.startswith("torch==")).split(" ")[0]
    argv = [python, "-m", "pip", "install", "-qq", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", pin]
    completed = subprocess.run(argv, capture_output=True, text=True, check=False)
    if completed.returncode:
        sys.exit(f"error: pip cannot find {pin}:\n{completed.stderr}")
    (package,) = json.loads(completed.stdout)["install"]
    sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
    if "+cpu" not in package["metadata"]["version"] or f"sha256:{sha256}" not in lock:
        return None
    return f"torch @ {package['download_info']['url']}#sha256={sha256}"


def log(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
