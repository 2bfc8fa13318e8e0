"""Environments of their own, for programs that do not fit into ours: made once by pip, found again by a stamp."""

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from insource.config.errors import StageError
from insource.system import atomic_files

STAMP_FILE = "insource.json"


def ensure_venv(folder: Path, requirements: Sequence[str], uninstall: Sequence[str] = ()) -> Path:
    """Returns the Python of an environment with these requirements, made where it is not there yet (minutes, once).

    `uninstall` is taken out again after the installation. Raises StageError with pip's last line where it cannot be
    made.
    """

    def install(python: Path) -> None:
        _run_pip(python, "install", "--no-compile", *requirements)
        if uninstall:
            _run_pip(python, "uninstall", "-y", *uninstall)

    return _ensure_installed(
        folder, [*requirements, *(f"without {name}" for name in uninstall)], " ".join(requirements), install
    )


def ensure_venv_from_lock(folder: Path, lock: Path, excluded: Collection[str] = ()) -> Path:
    """Returns the Python of an environment that holds what a lock names, each file with a hash that the lock has, but
    for the packages of `excluded`. Made where it is not there yet, or holds another lock.

    Raises StageError with pip's last line where it cannot be made, such as for a file with another hash.
    """

    def install(python: Path) -> None:
        pins = [pin for pin in split_lock(lock.read_text(encoding="utf-8")) if pin.partition("==")[0] not in excluded]
        with tempfile.TemporaryDirectory() as temp_folder:
            requirements_path = Path(temp_folder) / "requirements.txt"
            requirements_path.write_text("\n".join(pins) + "\n", encoding="utf-8")
            # Nothing is resolved, since the lock is complete.
            _run_pip(python, "install", "--no-compile", "--no-deps", "--require-hashes", "-r", str(requirements_path))

    stamp = [f"{lock.name} {atomic_files.sha256(lock)}", *(f"without {name}" for name in excluded)]
    return _ensure_installed(folder, stamp, lock.name, install)


def split_lock(lock: str) -> list[str]:
    """Returns the requirements of a lock, each with its hashes."""
    return re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", lock, re.MULTILINE)


def _ensure_installed(folder: Path, expected: list[str], description: str, install: Callable[[Path], None]) -> Path:
    """The Python of an environment, installed unless its stamp says that it is what is wanted."""
    python, stamp = folder / "bin" / "python", folder / STAMP_FILE
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == expected:
        return python
    print(f"setup     installing {description} into {folder}", file=sys.stderr, flush=True)
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
        output_lines = (completed.stderr.strip() or completed.stdout.strip() or "nothing said").splitlines()
        raise StageError(f"pip {args[0]} ended with {completed.returncode}: {output_lines[-1]}")
