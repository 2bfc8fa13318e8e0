"""`make setup`: installs the lock into `.venv` with plain pip; does nothing where it is installed already.

pip installs one package after the other and spends most of its time unpacking: as many pips as there are cores each
install a part of the lock, which share nothing because the lock is complete and nothing is resolved.

Needs Python 3.11 to 3.13 and nothing else. The stamp in `.venv` holds the digest of what was installed and is written
last, so that a set-up that was interrupted goes on when it is called again.
"""

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
from pathlib import Path

HERE = Path(__file__).parent
VENV = HERE.parent / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "insource.json"
MOST_PIPS = 4


def main() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"error: insource needs Python 3.11 to 3.13, this is {sys.version.split()[0]}; try PYTHON=python3.11")
    # HARDWARE as the recipes have it: cpu, or one of those with a GPU.
    asked = os.environ.get("HARDWARE") or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    locks = ["torch.txt", "cpu.txt"] if asked == "cpu" else ["gpu.txt"]
    sha256 = hashlib.sha256(b"".join((HERE / lock).read_bytes() for lock in locks)).hexdigest()
    wanted = {"python": sys.version.split()[0], "locks": list(locks), "sha256": sha256}
    if STAMP.exists() and json.loads(STAMP.read_text(encoding="utf-8")) == wanted:
        return
    say(f"setup     installing requirements/{locks[-1]} into .venv (a few minutes, once)")
    began = time.monotonic()
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    STAMP.unlink(missing_ok=True)
    builds = []
    if asked == "cpu" and (build := torch_cpu_build()):
        builds.append(build)
        locks.remove("torch.txt")
    elif asked == "cpu":
        say("setup     pip has no CPU build of torch here that the lock knows; the CUDA build runs too, and is larger")
        locks.append("cuda.txt")
    install(builds, [pin for lock in locks for pin in pins((HERE / lock).read_text(encoding="utf-8"))])
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    say(f"setup     done in {time.monotonic() - began:.0f} s")


def pins(lock: str) -> list[str]:
    """Returns the requirements of a lock, each with its hashes."""
    return re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", lock, re.MULTILINE)


def install(builds: list[str], wanted: list[str]) -> None:
    """Installs with pip: nothing is resolved, the lock is complete; nothing is compiled that is never imported."""
    asked = [PYTHON, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    parts = min(MOST_PIPS, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        pips = [subprocess.Popen([*asked, build]) for build in builds]
        for number in range(parts):
            part = Path(folder) / f"{number}.txt"
            part.write_text("\n".join(wanted[number::parts]) + "\n", encoding="utf-8")
            pips.append(subprocess.Popen([*asked, "-r", str(part)]))
        try:
            ended = [pip.wait() for pip in pips]
        except KeyboardInterrupt:  # which the terminal has told them too
            ended = [pip.wait() or 1 for pip in pips]
    if any(ended):
        sys.exit("error: pip could not install the lock, as it says above; `make setup` goes on from here")


def torch_cpu_build() -> str | None:
    """Returns the CPU build of torch that pip would take here, by address and hash, if the lock knows the hash.

    pip is asked without hashes first: with them it prefers a file whose hash its index tells, which is the CUDA build.
    """
    lock = (HERE / "torch.txt").read_text(encoding="utf-8")
    pin = next(line for line in lock.splitlines() if line.startswith("torch==")).split(" ")[0]
    asked = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "-qq",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--report",
        "-",
        pin,
    ]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(f"error: pip cannot find {pin}:\n{answer.stderr}")
    (found,) = json.loads(answer.stdout)["install"]
    sha256 = found["download_info"]["archive_info"]["hashes"]["sha256"]
    if "+cpu" not in found["metadata"]["version"] or f"sha256:{sha256}" not in lock:
        return None
    return f"torch @ {found['download_info']['url']}#sha256={sha256}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
