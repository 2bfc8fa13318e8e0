"""Separate virtual environments for programs with conflicting dependencies.

They are installed once by pip and identified by a stamp.
"""

import json
import re
import subprocess
import tempfile
import venv
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from insource.config.errors import StageError
from insource.system import atomic_files
from insource.system.console_log import log_line

STAMP_FILE = "insource.json"


def ensure_venv(folder: Path, requirements: Sequence[str], uninstall: Sequence[str] = ()) -> Path:
    """Return the Python of an environment with these requirements, installed if missing (minutes, once).

    `uninstall` lists packages that are removed after the installation. Raise StageError with pip's last line on
    failure.
    """

    def install(python: Path) -> None:
        _run_pip(python, "install", "--no-compile", *requirements)
        if uninstall:
            _run_pip(python, "uninstall", "-y", *uninstall)

    return _ensure_installed(
        folder, [*requirements, *(f"without {name}" for name in uninstall)], " ".join(requirements), install
    )


def ensure_venv_from_lock(folder: Path, lock: Path, excluded: Collection[str] = ()) -> Path:
    """Return the Python of an environment with the packages and hashes of a lock, except those in `excluded`.

    It is installed if it is missing or has another lock. Raise StageError with pip's last line on failure, for example
    for a file with another hash.
    """

    def install(python: Path) -> None:
        pins = [pin for pin in split_lock(lock.read_text(encoding="utf-8")) if pin.partition("==")[0] not in excluded]
        with tempfile.TemporaryDirectory() as temp_folder:
            requirements_path = Path(temp_folder) / "requirements.txt"
            requirements_path.write_text("\n".join(pins) + "\n", encoding="utf-8")
            # No resolution: the lock is complete.
            _run_pip(python, "install", "--no-compile", "--no-deps", "--require-hashes", "-r", str(requirements_path))

    stamp = [f"{lock.name} {atomic_files.sha256(lock)}", *(f"without {name}" for name in excluded)]
    return _ensure_installed(folder, stamp, lock.name, install)


def split_lock(lock: str) -> list[str]:
    """Return the requirements of a lock, each with its hashes."""
    return re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", lock, re.MULTILINE)


def _ensure_installed(folder: Path, expected: list[str], description: str, install: Callable[[Path], None]) -> Path:
    """Return the Python of an environment, installed unless its stamp equals `expected`."""
    python, stamp = folder / "bin" / "python", folder / STAMP_FILE
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == expected:
        return python
    log_line(f"setup     installing {description} into {folder}")
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    venv.create(folder, with_pip=True, clear=True)
    install(python)
    stamp.write_text(json.dumps(expected), encoding="utf-8")
    return python


def _run_pip(python: Path, *args: str) -> None:
    argv = [str(python), "-m", "pip", args[0], "-qq", *args[1:]]
    completed = subprocess.run(argv, capture_output=True, text=True, check=False)
    if completed.returncode:
        output_lines = (completed.stderr.strip() or completed.stdout.strip() or "no message").splitlines()
        raise StageError(f"pip {args[0]} ended with {completed.returncode}: {output_lines[-1]}", code="INS-X004")
