"""`make lock`: write the locks from pyproject.toml. It resolves with the uv of the environment.

cpu.txt       packages of a machine without a GPU, except torch
torch.txt     only torch, in all builds with known hashes
cuda.txt      torch's CUDA libraries, needed in addition if pip has torch only as its CUDA build
gpu.txt       all packages of a machine with a GPU
calibrate.txt llm-compressor (calibrate.in), for an environment of its own
schemathesis.txt  schemathesis (schemathesis.in), for an environment of its own
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS_DIR = Path(__file__).parent
CUDA_PACKAGES = re.compile(r"(nvidia-|cuda-|triton==)")
# pip may be configured with torch's own index, whose CPU build has another hash than the public one.
TORCH_CPU_BUILD = {"cp311": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"}


def resolve(locks: Sequence[str], *sources: str) -> list[str]:
    """Return one pinned requirement with its hashes for each package that the sources (arguments of uv) need.

    The pins of the existing locks are kept where the sources allow them, as uv does for the pins of its output file.
    """
    paths = [REQUIREMENTS_DIR / lock for lock in locks]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(path.read_text(encoding="utf-8") for path in paths if path.exists()))
        file.flush()
        argv = [sys.executable, "-m", "uv", "pip", "compile", *sources, "--universal", "--python-version", "3.11"]
        argv += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--output-file", file.name]
        subprocess.run(argv, cwd=REQUIREMENTS_DIR.parent, stdout=subprocess.DEVNULL, check=True)
        text = Path(file.name).read_text(encoding="utf-8")
    return re.split(r"\n(?=\S)", text.strip())


def resolve_project(locks: Sequence[str], extra: str, *arguments: str) -> list[str]:
    """Return the pins of pyproject.toml with an extra."""
    return resolve(locks, "pyproject.toml", "--extra", extra, "--extra", "dev", *arguments)


def add_cpu_builds(torch_pin: str) -> str:
    """Return the pin of torch with the hashes of its CPU builds."""
    hashes = [f"--hash=sha256:{sha256}" for sha256 in TORCH_CPU_BUILD.values()]
    return "".join([torch_pin, *(f" \\\n    {sha256}" for sha256 in hashes if sha256 not in torch_pin)])


def write_lock(name: str, comment: str, pins: list[str], source: str = "pyproject.toml") -> None:
    """Write a lock file with a comment, its source and the pins."""
    (REQUIREMENTS_DIR / name).write_text(
        f"# {comment}\n# Made by `make lock` from {source}.\n" + "\n".join(pins) + "\n", encoding="utf-8"
    )
    print(f"{name}: {len(pins)} packages", file=sys.stderr)


def main() -> None:
    """Write all locks."""
    cpu_locks = ("cpu.txt", "torch.txt", "cuda.txt")
    pins = resolve_project(cpu_locks, "cpu", "--override", "requirements/overrides-cpu.txt")
    pins = [add_cpu_builds(pin) if pin.startswith("torch==") else pin for pin in pins]
    torch_pins = [pin for pin in pins if CUDA_PACKAGES.match(pin) or pin.startswith("torch==")]
    write_lock(
        "cpu.txt", "For a machine without a GPU; torch.txt comes first.", [pin for pin in pins if pin not in torch_pins]
    )
    write_lock(
        "torch.txt", "torch for a machine without a GPU.", [pin for pin in torch_pins if not CUDA_PACKAGES.match(pin)]
    )
    write_lock(
        "cuda.txt",
        "torch's CUDA libraries, for a machine without a GPU whose pip takes the CUDA build of torch.",
        [pin for pin in pins if CUDA_PACKAGES.match(pin)],
    )
    write_lock("gpu.txt", "For a machine with an NVIDIA GPU.", resolve_project(["gpu.txt"], "gpu"))
    calibrate, comment = "requirements/calibrate.in", "For the environment of llm-compressor (train/export/gptq.py)."
    write_lock("calibrate.txt", comment, resolve(["calibrate.txt"], calibrate), calibrate)
    fuzzer, comment = "requirements/schemathesis.in", "For the environment of tests/deploy/test_schemathesis.py."
    write_lock("schemathesis.txt", comment, resolve(["schemathesis.txt"], fuzzer), fuzzer)


if __name__ == "__main__":
    main()
