"""Download one file of a package index by its hash: a wheel or a source package."""

import subprocess
import sys
from pathlib import Path


class DownloadError(Exception):
    """pip could not download the file. The text is its last line."""


def download(requirement: str, sha256: str, folder: Path, source: bool = False) -> Path:
    """Return the wheel of a pinned requirement, or with `source` its source package, downloaded into a folder.

    pip also prepares the metadata of a source package, which installs its build tools in a temporary environment. Raise
    DownloadError if pip fails, for example because the hash differs.
    """
    target = folder / requirement.replace("==", "-")
    target.mkdir(parents=True)
    pin = target / "pin.txt"
    pin.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    argv = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--require-hashes"]
    argv += ["--no-binary" if source else "--only-binary", ":all:", "--dest", str(target), "-r", str(pin)]
    completed = subprocess.run(argv, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise DownloadError((completed.stderr.strip() or "no message").splitlines()[-1])
    pin.unlink()
    (path,) = target.iterdir()
    return path
