"""Conversion of a GGUF file to a model folder with dequantized weights, in a process of its own.

python -m insource.tracking.base_models.gguf_program FILE.gguf FOLDER float32

gguf_model.py starts the process, so that its memory is freed and the caller imports no torch. It prints the file's
properties as JSON. It exits with 2 if the file is not supported.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import cli
from insource.config.errors import StageError
from insource.system import environment
from insource.tracking.base_models import base_store, gguf_header
from insource.tracking.base_models.gguf_header import ROPE_FACTORS_TENSOR, GgufHeader, make_gguf_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LINK_NAME = "model.gguf"
# Text that the saved tokenizer must encode equally: letters, digits, white space, marks, and what templates write.
PROBE_TEXT = "Where's my parcel no. 12,345.67?\n\n\tStraße  naïve 注文 🙂 don't {\"a\": [1, 2]} "
# Llama 3.1 and later, as published; the factor differs between models.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE_TOLERANCE = 1e-3
# Vocabularies (tokenizer.ggml.pre) for which GPT-2's pre-tokenizer is right. Those of the second line split digits one
# by one first. The result is the same, because none of their tokens has two digits.
GPT2_PRETOKENIZERS = ("gpt-2",)
DIGIT_SPLITTING_PRETOKENIZERS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
# Types of tokens that are matched as a unit in a text (tokenizer.ggml.token_type).
CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4


def write_model(path: Path, folder: Path, dtype: str) -> dict[str, object]:
    """Write weights, configuration, generation config and tokenizer into an empty folder. Return the file's properties.

    Raise RecipeError if the file is not supported, before reading weights if possible. Raise StageError if disk or
    memory do not suffice.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    header = gguf_header.read_header(path)
    gguf_header.check_header(header)
    with tempfile.TemporaryDirectory() as temp_folder:
        # A link with the suffix .gguf: transformers checks the suffix, and files in caches have none.
        (Path(temp_folder) / LINK_NAME).symlink_to(path.absolute())
        config = _load_config(header, temp_folder)
        tokenizer = _load_tokenizer(header, temp_folder)
        _check_space(header, folder, torch.finfo(getattr(torch, dtype)).bits // 8)
        try:
            # Without GgufConfig the weights may stay in GGUF blocks, which cannot be saved.
            model, loading_info = AutoModelForCausalLM.from_pretrained(
                temp_folder,
                gguf_file=LINK_NAME,
                config=config,
                dtype=getattr(torch, dtype),
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
        except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            raise make_gguf_error(header.name, f"cannot be read: {_first_line(error)}") from None
        _check_weights(header, model, loading_info)
    stops = [token_id for token_id in (header.token_id("eos"), header.token_id("eot")) if token_id is not None]
    model.generation_config = GenerationConfig(
        bos_token_id=header.token_id("bos"),
        eos_token_id=list(dict.fromkeys(stops)) or None,
        pad_token_id=header.token_id("padding"),
    )
    model.save_pretrained(folder, max_shard_size="5GB")
    _save_tokenizer(header, tokenizer, folder, model.get_input_embeddings().weight.shape[0])
    return {
        "notes": _collect_notes(header),
        "architecture": header.architecture,
        "parameters": header.parameters,
        "types": dict(header.types),
        "main_type": header.main_type,
        "bits": round(header.bits_per_weight, 2),
    }


def _load_config(header: GgufHeader, temp_folder: str) -> object:
    """Return the model's configuration, with the parts that transformers ignores. Raise RecipeError."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(temp_folder, gguf_file=LINK_NAME)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise make_gguf_error(
            header.name, f"is of architecture {header.architecture!r}, which cannot be read: {_first_line(error)}"
        ) from None
    gguf_header.check_config(header, config)
    for name, special in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        setattr(config, f"{name}_token_id", header.token_id(special))
    if header.rope_factors is not None:
        _set_rope_scaling(header, config)
    return config


def _set_rope_scaling(header: GgufHeader, config: Any) -> None:
    """Add the scaled positions that the file stores as a tensor to the configuration, in place.

    Raise RecipeError if they are not those of Llama 3.
    """
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    factors = np.asarray(header.rope_factors, dtype=np.float64).ravel()
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max()), **LLAMA3_ROPE}
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].double().numpy()
    plain = theta ** -(np.arange(len(scaled)) / len(scaled))
    if len(factors) != len(scaled) or not np.allclose(plain / scaled, factors, rtol=ROPE_TOLERANCE):
        message = f"scales its positions otherwise than Llama 3 does ({ROPE_FACTORS_TENSOR})"
        raise make_gguf_error(header.name, f"{message}, which is not supported; use the published model")


def _check_space(header: GgufHeader, folder: Path, bytes_per_weight: int) -> None:
    """Raise StageError if disk or memory do not suffice."""
    size = header.parameters * bytes_per_weight
    if problem := base_store.disk_space_problem(folder.parent, size):
        raise StageError(f"model.base: {header.name} cannot be written as a folder: {problem}", code="INS-X001")
    if size > (free := environment.available_memory_bytes()):
        message = f"it takes {size / 1e9:,.1f} GB of memory once dequantized, and {free / 1e9:,.1f} GB are free"
        raise StageError(f"model.base: {header.name} cannot be written as a folder: {message}", code="INS-X008")


def _check_weights(header: GgufHeader, model: "PreTrainedModel", loading_info: Any) -> None:
    """Raise RecipeError if weights of model and file do not match by name and shape."""
    import torch

    # transformers 5.19 does not check shapes here.
    with torch.device("meta"):
        expected = type(model)(model.config).state_dict()
    shapes = model.state_dict()
    mismatched = {name for name, tensor in expected.items() if name in shapes and shapes[name].shape != tensor.shape}
    wrong = sorted(
        mismatched | set(loading_info["missing_keys"]) | {str(entry[0]) for entry in loading_info["mismatched_keys"]}
    )
    if wrong:
        message = f"has {len(wrong)} weights otherwise than its architecture {header.architecture}, or not at all"
        raise make_gguf_error(header.name, f"{message}, such as {wrong[0]}; use the published model")
    unread = sorted({*loading_info["unexpected_keys"], *_find_unread_tensors(header, model)} - {ROPE_FACTORS_TENSOR})
    if unread:
        message = f"has {len(unread)} tensors that transformers does not read, such as {unread[0]}"
        raise make_gguf_error(header.name, f"{message}: the model would be a different one; use the published model")


def _find_unread_tensors(header: GgufHeader, model: "PreTrainedModel") -> set[str]:
    """Return the tensors that transformers ignores silently.

    Of its two GGUF readers only the older one does; the newer one reports them itself.
    """
    from transformers.integrations.gguf import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if is_gguf_arch_supported(header.architecture):
        return set()
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=model.config.to_dict())
    mapped = get_gguf_hf_weights_map(model, processor)
    # Names of expert weights have no suffix.
    return {name for name in header.tensors if name not in mapped and name.removesuffix(".weight") not in mapped}


def _load_tokenizer(header: GgufHeader, temp_folder: str) -> object:
    """Return the tokenizer, with exactly the file's tokens.

    transformers adds <|endoftext|> to a byte-level vocabulary without it, such as Llama 3's. That token has no row in
    the embeddings. Raise RecipeError if the tokenizer splits a token of the chat template.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    try:
        architecture, vocabulary, special = get_gguf_tokenizer(str(Path(temp_folder) / LINK_NAME))
        tokenizer_json = json.loads(convert_gguf_tokenizer(architecture, vocabulary)[0].to_str())
        tokenizer_json["added_tokens"] = [
            added for added in tokenizer_json["added_tokens"] if added["id"] < len(vocabulary["tokens"])
        ]
        backend = Tokenizer.from_str(json.dumps(tokenizer_json))
        special_tokens = {name: value for name, value in special.items() if value is not None}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **special_tokens
        )
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise make_gguf_error(header.name, f"has a tokenizer that cannot be read: {_first_line(error)}") from None
    token_types = vocabulary.get("token_type") or [CONTROL_TOKEN] * len(vocabulary["tokens"])
    for token_id, (token, token_type) in enumerate(zip(vocabulary["tokens"], token_types, strict=False)):
        is_whole = token_type in (CONTROL_TOKEN, USER_DEFINED_TOKEN) and token in tokenizer.chat_template
        if is_whole and tokenizer(token, add_special_tokens=False)["input_ids"] != [token_id]:
            message = f"has a tokenizer that transformers does not read right: it cuts {token!r} into pieces"
            raise make_gguf_error(header.name, f"{message}; use the published model")
    return tokenizer


def _collect_notes(header: GgufHeader) -> list[str]:
    """Return possible differences from the published model that do not prevent training."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pre = header.values.get("tokenizer.ggml.pre")
    supported = (*GPT2_PRETOKENIZERS, *DIGIT_SPLITTING_PRETOKENIZERS, *GGUF_PRE_TOKENIZER_SPLITS)
    if header.values["tokenizer.ggml.model"] != "gpt2" or pre in supported:
        return []
    return [
        f"{header.name}: transformers does not know how its vocabulary splits texts (tokenizer.ggml.pre: {pre}), and "
        "splits them as GPT-2 does; tokens may be others than those that the model was made with"
    ]


def _save_tokenizer(header: GgufHeader, tokenizer: "PreTrainedTokenizerBase", folder: Path, n_embeddings: int) -> None:
    """Write the tokenizer.

    Raise RecipeError if it encodes differently after reloading, or has more tokens than the embeddings have rows.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    reloaded = AutoTokenizer.from_pretrained(folder, mistral_format=False)
    probe = PROBE_TEXT + " ".join(str(token) for token in tokenizer.all_special_tokens)
    ids, reloaded_ids = (candidate(probe, add_special_tokens=False)["input_ids"] for candidate in (tokenizer, reloaded))
    if ids != reloaded_ids or len(reloaded) > n_embeddings:
        raise make_gguf_error(
            header.name, "has a tokenizer that encodes texts differently after it is saved; use the published model"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def main() -> int:
    """Convert a file and print its properties. Return the exit code."""
    path, folder, dtype = sys.argv[1:]
    print(json.dumps(write_model(Path(path), Path(folder), dtype)))
    return cli.OK


if __name__ == "__main__":
    cli.run_cli(main)
