"""Environments of peers that do not fit into ours: bench/.peers/<name>, made once, ignored by git.

LLaMA-Factory 0.9.5 wants transformers 5.6 and peft 0.18. It names torchvision and torchaudio, which come built for CUDA
and break `import transformers` next to a CPU build of torch; text needs neither, so they are taken out again.
"""

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from recipes.errors import StageError

PEERS = Path(__file__).parent / ".peers"
STAMP = "insource.json"


@dataclass(frozen=True)
class Environment:
    """What is installed, and what is taken out again where there is no GPU."""

    requirements: tuple[str, ...]
    without_on_cpu: tuple[str, ...] = ()


ENVIRONMENTS = {
    "llama_factory": Environment(
        ("llamafactory==0.9.5", "torch==2.13.0", "bitsandbytes==0.50.2"), ("torchvision", "torchaudio")
    ),
    "unsloth": Environment(("unsloth", "trl", "bitsandbytes")),
}


def python_of(name: str, on_gpu: bool) -> Path:
    """Returns the Python of a peer's environment, made where it is not there yet (minutes, once).

    Raises StageError with pip's last line where it cannot be made.
    """
    folder, wanted = PEERS / name, ENVIRONMENTS[name]
    python, stamp = folder / "bin" / "python", folder / STAMP
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == list(wanted.requirements):
        return python
    print(f"peers     installing {' '.join(wanted.requirements)} into bench/.peers/{name}", file=sys.stderr, flush=True)
    PEERS.mkdir(exist_ok=True)
    (PEERS / ".gitignore").write_text("*\n", encoding="utf-8")
    venv.create(folder, with_pip=True, clear=True)
    _pip(python, "install", "--no-compile", *wanted.requirements)
    if wanted.without_on_cpu and not on_gpu:
        _pip(python, "uninstall", "-y", *wanted.without_on_cpu)
    stamp.write_text(json.dumps(wanted.requirements), encoding="utf-8")
    return python


def _pip(python: Path, *words: str) -> None:
    asked = [str(python), "-m", "pip", words[0], "-qq", *words[1:]]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = (answer.stderr.strip() or answer.stdout.strip() or "nothing said").splitlines()
        raise StageError(f"pip {words[0]} ended with {answer.returncode}: {said[-1]}")
