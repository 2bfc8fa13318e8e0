"""Check before vLLM starts whether a folder can be served and is what training wrote.

    problems = check_adapter(run.folder / "adapter", Path("pocket/model"), hashes)
    ["adapter_model.safetensors holds 1,204 of the 2,381,824 bytes that its header declares: it was cut off; ..."]

vLLM would reject some of these faults after a minute with a traceback. It would serve others without an error, such as
another chat template or another base.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from insource.config.schema.lora import VLLM_MAX_RANK, VLLM_RANKS
from insource.system import atomic_files
from insource.tracking import digests
from insource.tracking.prompt_spec import PromptSpec

_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_RETRAIN_HINT = "train again (FRESH=1), or copy the folder again"
_EXPORT_HINT = "`make export` writes it again"
_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LORA_LAYER_PATTERN = re.compile(r"^base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight$")


def check_adapter(folder: Path, base_folder: Path | None, hashes: Mapping[str, str]) -> list[str]:
    """Return the problems that prevent serving an adapter, each with its fix.

    `base_folder` is the folder of the base that it is served on, None for a base from the hub. `hashes` maps the files
    of that base to their SHA-256 in training.
    """
    problems = list(_check_folder(folder, "adapter_model.safetensors", _RETRAIN_HINT))
    if problems:
        return problems
    problems += _check_prompt(folder)
    config = atomic_files.read_json(folder / "adapter_config.json")
    problems += _check_config(config)
    problems += _check_base(folder, base_folder, hashes)
    return problems


def check_model(folder: Path) -> list[str]:
    """Return the problems that prevent serving a merged or quantized model, each with its fix."""
    problems = list(_check_folder(folder, "config.json", _EXPORT_HINT))
    if not problems and not any(folder.glob("*.safetensors")):
        problems.append(f"{folder} has no weights (*.safetensors); {_EXPORT_HINT}")
    return problems or list(_check_prompt(folder))


def max_lora_rank(folders: Mapping[str, Path]) -> int:
    """Return the smallest `--max-lora-rank` of vLLM that fits all these adapters."""
    largest = max(adapter_rank(atomic_files.read_json(folder / "adapter_config.json")) for folder in folders.values())
    return next(rank for rank in VLLM_RANKS if rank >= largest)


def adapter_rank(config: Mapping[str, Any]) -> int:
    """Return the largest rank in an adapter_config.json."""
    return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))


def _check_folder(folder: Path, required: str, hint: str) -> Iterator[str]:
    """Yield problems of any folder of weights: missing, pickled, truncated or changed files."""
    if not folder.is_dir():
        yield f"there is no {folder}; {hint}"
        return
    for path in sorted(pickle for pattern in _PICKLE_PATTERNS for pickle in folder.glob(pattern)):
        yield (
            f"{path.name} in {folder} is a pickle, which runs code when it is loaded: only safetensors are served; "
            f"remove it, and {hint}"
        )
    if not (folder / required).is_file():
        yield f"{required} is missing in {folder}; {hint}"
    truncated = [(path, problem) for path in sorted(folder.glob("*.safetensors")) if (problem := find_truncation(path))]
    for path, problem in truncated:
        yield f"{path.name} in {folder} {problem}; {hint}"
    if not (folder / atomic_files.CHECKSUMS).is_file():
        yield f"{atomic_files.CHECKSUMS} is missing in {folder}, so the folder cannot be checked; {hint}"
        return
    reported = {path.name for path, _ in truncated}
    for problem in atomic_files.find_changes(folder):
        name = problem.partition(" ")[0]
        if name == "chat_template.jinja" and problem.endswith("was changed"):
            yield (
                f"chat_template.jinja in {folder} was changed after training: the served prompts would differ from "
                f"the trained ones; restore the trained template ({hint})"
            )
        elif name not in reported:
            yield f"{problem} in {folder} since it was written; {hint}"


def find_truncation(path: Path) -> str | None:
    """Return what is wrong with the size of a safetensors file, None if it fits its header.

    The format: eight bytes with the length of a JSON header, the header, then the tensors at the offsets in the header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            return f"is no safetensors file: {size:,} bytes, and a header that does not fit"
        try:
            header = json.loads(file.read(length))
            end = max(
                (tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return "is no safetensors file: its header cannot be read"
    if size - 8 - length != end:
        return f"holds {size - 8 - length:,} of the {end:,} bytes that its header declares: it was cut off"
    return None


def weight_bytes(folder: Path, bytes_per_number: int) -> int:
    """Return the bytes of memory that the weights of a folder take once loaded.

    Floating-point tensors are counted with `bytes_per_number`, quantized ones as they are stored.
    """
    total_bytes = 0
    for path in folder.glob("*.safetensors"):
        for tensor in _read_tensor_headers(path).values():
            start, end = tensor["data_offsets"]
            dtype_bytes = _FLOAT_BYTES.get(tensor["dtype"])
            total_bytes += (end - start) * bytes_per_number // dtype_bytes if dtype_bytes else end - start
    return total_bytes


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return {tensor name: shape} of all safetensors files in a folder, read from their headers."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= {name: tensor["shape"] for name, tensor in _read_tensor_headers(path).items()}
    return shapes


def _read_tensor_headers(path: Path) -> dict[str, dict[str, Any]]:
    """Return {tensor name: dtype, shape and data_offsets} of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def _check_prompt(folder: Path) -> Iterator[str]:
    """Yield problems of the chat template: it must be the one used in training."""
    prompt, template = PromptSpec.read(folder), folder / "chat_template.jinja"
    if not template.is_file():
        yield f"chat_template.jinja is missing in {folder}; {_RETRAIN_HINT}"
    elif hashlib.sha256(template.read_bytes()).hexdigest() != prompt.chat_template_sha256:
        yield (
            f"chat_template.jinja in {folder} is not the template of the training (prompt.json has its hash): the "
            f"served prompts would differ from the trained ones; restore the trained template ({_RETRAIN_HINT})"
        )


def _check_config(config: Mapping[str, object]) -> Iterator[str]:
    """Yield properties of an adapter that vLLM does not serve."""
    if (largest := adapter_rank(config)) > VLLM_MAX_RANK:
        yield (
            f"adapter_config.json: rank {largest}, and vLLM serves at most {VLLM_MAX_RANK}; set lora.r to at most "
            f"{VLLM_MAX_RANK} and train, or serve it merged (SET=serve.model=merged)"
        )
    merged_hint = "serve it merged (SET=serve.model=merged)"
    if config.get("use_dora"):
        yield f"adapter_config.json: use_dora, which vLLM serves only merged; {merged_hint}"
    if config.get("bias", "none") != "none":
        yield f"adapter_config.json: bias {config['bias']!r}, which vLLM does not serve; {merged_hint}"
    if config.get("modules_to_save"):
        yield f"adapter_config.json: modules_to_save, which vLLM does not serve; {merged_hint}"


def _check_base(folder: Path, base_folder: Path | None, hashes: Mapping[str, str]) -> Iterator[str]:
    """Yield problems of a base that is not the one the adapter was trained on."""
    if base_folder is None:
        return
    base_hashes = digests.hash_base_files(base_folder)
    changed = sorted(name for name in hashes if base_hashes.get(name) != hashes[name])
    shape = next(_shape_mismatches(tensor_shapes(folder), tensor_shapes(base_folder)), None)
    if shape:
        name = PromptSpec.read(folder).base.name
        yield f"the base {base_folder} is not the one of this adapter ({name}): {shape}; set model.base to that one"
    elif changed:
        yield (
            f"the base {base_folder} is not as it was in training: {', '.join(changed)} differ; the adapter belongs to "
            "those weights; put them back, or train again"
        )


def _shape_mismatches(adapter_shapes: Mapping[str, list[int]], base_shapes: Mapping[str, list[int]]) -> Iterator[str]:
    """Yield layers of an adapter whose shape does not fit the base.

    Layers that the files of the base do not name as transformers does are not checked.
    """
    for name, shape in adapter_shapes.items():
        match = _LORA_LAYER_PATTERN.match(name)
        weight = base_shapes.get(f"{match['layer']}.weight") if match else None
        if not match or weight is None:
            continue
        if match["part"] == "A" and shape[1] != weight[1]:
            yield f"{match['layer']} takes {weight[1]} numbers, and the adapter's takes {shape[1]}"
        elif match["part"] == "B" and shape[0] != weight[0]:
            yield f"{match['layer']} gives {weight[0]} numbers, and the adapter's gives {shape[0]}"
