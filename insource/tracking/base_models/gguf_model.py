"""A GGUF base model as an ordinary model folder: dequantized once, beside the runs.

runs/.bases/7c41f0a2b95d8e63/   model.safetensors config.json generation_config.json tokenizer.json ...
                                base.json     {"gguf": {"file": "qwen3-4b-q4_k_m.gguf", "bits": 4.97, ...}, ...}
                                SHA256SUMS    written last

The folder's name is the digest of the file and of the software that converted it, so that later runs find it. It is
trained on and served like any local base. The precision that the file's quantization lost is not recovered. NF4 on top
loses more, which is measured (`describe_weight_loss`).
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from insource.config import base_models, cli
from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files, child_processes
from insource.system.console_log import log_line
from insource.tracking.base_models import base_store

ROOT = Path(__file__).parents[3]
GGUF_PROGRAM = "insource.tracking.base_models.gguf_program"
# Incremented when the same file gives another folder.
FORMAT_VERSION = 1
# Key in the base.json of a dequantized base: the relative change of its weights.
WEIGHT_CHANGE_KEY = "moved"


def ensure_model_folder(recipe: Recipe, runs: Path) -> Recipe:
    """Return the recipe with a model folder as its base if that is a GGUF file, else the recipe unchanged.

    The first process writes the folder if it is missing or changed; others wait. Raise RecipeError if the file is not
    supported, and StageError if memory or disk do not suffice; partial files are removed.
    """
    if not base_models.is_gguf(recipe.model.base):
        return recipe
    path, dtype = Path(recipe.model.base), "float32" if recipe.accelerate.use_cpu else "bfloat16"
    sha256 = atomic_files.sha256(path)
    digest = atomic_files.digest([FORMAT_VERSION, sha256, dtype, metadata.version("transformers")])
    folder = runs / base_store.BASES_FOLDER / digest
    with base_store.lock_base(folder):
        if not (folder / atomic_files.CHECKSUMS).is_file() or atomic_files.find_changes(folder):
            gigabytes = path.stat().st_size / 1e9
            log_line(f"base      dequantizing {path.name} ({gigabytes:,.2f} GB) into {os.path.relpath(folder)}")
            with atomic_files.atomic_folder(folder) as temp_folder:
                write_model_folder(path, temp_folder, dtype, sha256)
                atomic_files.write_checksums(temp_folder)
    return recipe.with_model(base=str(folder), revision=None)


def write_model_folder(path: Path, folder: Path, dtype: str, sha256: str) -> None:
    """Write a GGUF file as a model into an empty folder, with base.json. Raise RecipeError and StageError."""
    argv = [sys.executable, "-m", GGUF_PROGRAM, str(path.absolute()), str(folder.absolute()), dtype]
    quiet = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    completed = subprocess.run(
        argv,
        cwd=ROOT,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=child_processes.make_parent_death_preexec(signal.SIGKILL),
    )
    code, stderr = completed.returncode, completed.stderr.strip() or "no message"
    if code and (error := cli.parse_error(stderr)):
        raise error
    if code:
        raise StageError(
            f"model.base: {path.name} cannot be written as a folder (exit code {code}): "
            f"{stderr.splitlines()[-1][:500]}",
            code="INS-T004",
        )
    info = json.loads(completed.stdout.splitlines()[-1])
    record = {"version": FORMAT_VERSION, "gguf": {"file": path.name, "sha256": sha256, **info}, "dtype": dtype}
    atomic_files.write_json(
        folder / base_store.METADATA_FILE, record | {"transformers": metadata.version("transformers")}
    )


def read_gguf_info(base: str) -> Mapping[str, Any] | None:
    """Return the entry in base.json for the GGUF file of a base, None for any other base."""
    path = Path(base) / base_store.METADATA_FILE
    info: Mapping[str, Any] | None = atomic_files.read_json(path).get("gguf") if path.is_file() else None
    return info


def read_notes(base: str) -> list[str]:
    """Return the differences between a base from a GGUF file and the published model."""
    return list((read_gguf_info(base) or {}).get("notes", []))


def describe_weight_loss(base: str, quantization: str, trained: Path | None) -> str | None:
    """Return the precision lost before training: by the GGUF file, and by NF4 or int8 on top of it.

    `trained` is the folder of the quantized base. None for a base that was no GGUF file.
    """
    if (gguf := read_gguf_info(base)) is None:
        return None
    description = f"GGUF {gguf['main_type']} ({gguf['bits']:.1f} bits a weight), dequantized"
    if quantization == "none":
        return f"{description}; nothing is lost on top of that"
    weight_change = (
        atomic_files.read_json(trained / base_store.METADATA_FILE).get(WEIGHT_CHANGE_KEY) if trained else None
    )
    if weight_change is None:
        return f"{description}; {quantization} on top of that loses again, how much was not measured"
    return f"{description}; {quantization} on top of that moved the weights that it changed by {weight_change:.1%}"


def measure_weight_change(original: Path, quantized: Path) -> float:
    """Return the relative change of the weights that quantization changed, 0 if none.

    It is the norm of all differences over the norm of the weights. The safetensors of both folders are read tensor by
    tensor.
    """
    from safetensors import safe_open

    differences = norms = 0.0
    paths_by_name: dict[str, Path] = {}
    for path in original.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            paths_by_name |= dict.fromkeys(file.keys(), path)
    for path in quantized.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys() & paths_by_name.keys():
                with safe_open(paths_by_name[name], "pt") as original_file:
                    weights = original_file.get_tensor(name).float()
                difference = float((file.get_tensor(name).float() - weights).double().square().sum())
                if difference:
                    differences += difference
                    norms += float(weights.double().square().sum())
    return (differences / norms) ** 0.5 if norms else 0.0
