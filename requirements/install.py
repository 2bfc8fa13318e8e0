"""`make setup`: installs the lock into `.venv` with plain pip; does nothing where it is installed already.

Needs Python 3.11 to 3.13 and nothing else. The stamp in `.venv` holds the digest of what was installed and is written
last, so that a set-up that was interrupted goes on when it is called again.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
VENV = HERE.parent / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "insource.json"


def main() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"error: insource needs Python 3.11 to 3.13, this is {sys.version.split()[0]}; try PYTHON=python3.11")
    # HARDWARE as the recipes have it: cpu, or one of those with a GPU.
    asked = os.environ.get("HARDWARE") or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    locks = ["cpu.txt"] if asked == "cpu" else ["gpu.txt"]
    wanted = {
        "python": sys.version.split()[0],
        "lock": locks[0],
        "sha256": hashlib.sha256((HERE / locks[0]).read_bytes()).hexdigest(),
    }
    if STAMP.exists() and json.loads(STAMP.read_text(encoding="utf-8")) == wanted:
        return
    say(f"setup     installing requirements/{locks[0]} into .venv (a few minutes, once)")
    began = time.monotonic()
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    STAMP.unlink(missing_ok=True)
    if locks == ["cpu.txt"] and not torch_is_cpu_build():
        say("setup     pip offers torch only as its CUDA build here; it runs on a CPU too, and is larger")
        locks.append("cuda.txt")
    # The lock is complete, so nothing is resolved; --no-compile, because most of what is installed is never imported.
    asked_pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    for lock in locks:
        asked_pip += ["-r", HERE / lock]
    code = subprocess.run(asked_pip, check=False).returncode
    if code:
        sys.exit(
            f"error: pip could not install requirements/{locks[0]}, as it says above; `make setup` goes on from here"
        )
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    say(f"setup     done in {time.monotonic() - began:.0f} s")


def torch_is_cpu_build() -> bool:
    """Returns whether pip, as it is configured here, takes torch's CPU build, which needs no CUDA libraries."""
    pin = next(
        line for line in (HERE / "cpu.txt").read_text(encoding="utf-8").splitlines() if line.startswith("torch==")
    )
    asked = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--report",
        "-",
        pin.split(" ")[0],
    ]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(f"error: pip cannot find {pin.split(' ')[0]}:\n{answer.stderr}")
    return any("+cpu" in package["metadata"]["version"] for package in json.loads(answer.stdout)["install"])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
