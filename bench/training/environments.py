"""Environments of peers that do not fit into ours: bench/.peers/<name>, made once, ignored by git.

LLaMA-Factory 0.9.5 wants transformers 5.6 and peft 0.18. It names torchvision and torchaudio, which come built for CUDA
and break `import transformers` next to a CPU build of torch; text needs neither, so they are taken out again.
"""

from dataclasses import dataclass
from pathlib import Path

from insource.system import venvs

PEERS_DIR = Path(__file__).parent.parent / ".peers"


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


def peer_python(name: str, on_gpu: bool) -> Path:
    """Returns the Python of a peer's environment. Raises StageError where it cannot be made."""
    environment = ENVIRONMENTS[name]
    return venvs.ensure_venv(PEERS_DIR / name, environment.requirements, () if on_gpu else environment.without_on_cpu)
