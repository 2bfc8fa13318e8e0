"""Environments of peers with conflicting requirements: bench/.peers/<name>, made once, ignored by git.

LLaMA-Factory 0.9.5 requires transformers 5.6 and peft 0.18. It also requires torchvision and torchaudio, which come
built for CUDA and break `import transformers` next to a CPU build of torch. Text needs neither, so they are
uninstalled.
"""

from dataclasses import dataclass
from pathlib import Path

from insource.system import venvs

PEERS_DIR = Path(__file__).parent.parent / ".peers"


@dataclass(frozen=True)
class Environment:
    """Packages to install, and packages to uninstall on a machine without a GPU."""

    requirements: tuple[str, ...]
    removed_on_cpu: tuple[str, ...] = ()


ENVIRONMENTS = {
    "llama_factory": Environment(
        ("llamafactory==0.9.5", "torch==2.13.0", "bitsandbytes==0.50.2"), ("torchvision", "torchaudio")
    ),
    "unsloth": Environment(("unsloth", "trl", "bitsandbytes")),
}


def peer_python(name: str, on_gpu: bool) -> Path:
    """Return the Python of a peer's environment. Raise StageError if the environment cannot be made."""
    environment = ENVIRONMENTS[name]
    return venvs.ensure_venv(PEERS_DIR / name, environment.requirements, () if on_gpu else environment.removed_on_cpu)
