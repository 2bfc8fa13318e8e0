"""Environments of their own, for programs that do not fit into ours: made once by pip, found again by a stamp."""

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from recipes.errors import StageError

STAMP = "insource.json"


def python_of(folder: Path, requirements: Sequence[str], without: Sequence[str] = ()) -> Path:
    """Returns the Python of an environment with these requirements, made where it is not there yet (minutes, once).

    `without` is taken out again after the installation. Raises StageError with pip's last line where it cannot be made.
    """
    python, stamp = folder / "bin" / "python", folder / STAMP
    wanted = [*requirements, *(f"without {name}" for name in without)]
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return python
    print(f"setup     installing {' '.join(requirements)} into {folder}", file=sys.stderr, flush=True)
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    venv.create(folder, with_pip=True, clear=True)
    _pip(python, "install", "--no-compile", *requirements)
    if without:
        _pip(python, "uninstall", "-y", *without)
    stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return python


def _pip(python: Path, *words: str) -> None:
    asked = [str(python), "-m", "pip", words[0], "-qq", *words[1:]]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = (answer.stderr.strip() or answer.stdout.strip() or "nothing said").splitlines()
        raise StageError(f"pip {words[0]} ended with {answer.returncode}: {said[-1]}")
