"""GGUF files of small models, written as llama.cpp's converter writes them, with the package gguf."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, AutoTokenizer

CONTROL, NORMAL = 3, 1


def write_gguf(
    folder: Path,
    path: Path,
    kind: str = "F32",
    leave_out: Collection[str] = (),
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
) -> Path:
    """Write a GGUF file of the model in a folder, with matrices stored as `kind`. Return its path.

    `leave_out` are names of metadata and tensors that are not written. `metadata` adds metadata. `tensors` adds or
    replaces tensors (float32). `rename` is {token: name of a control token that replaces it}.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    architecture = model.config.model_type.removesuffix("_text")
    values = {
        **_architecture_metadata(model.config, architecture),
        **_tokenizer_metadata(folder, rename or {}),
        **(metadata or {}),
    }
    writer = gguf.GGUFWriter(path, str(values.pop("general.architecture", architecture)))
    for name, value in values.items():
        if name not in leave_out:
            _add_metadata(writer, name, value)
    for name, tensor in {**_gguf_tensors(model, architecture), **(tensors or {})}.items():
        if name in leave_out:
            continue
        quantization = GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(tensor, dtype=np.float32), quantization)
        writer.add_tensor(name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)


def _architecture_metadata(config: Any, architecture: str) -> dict[str, Any]:
    rope = config.rope_parameters
    theta = rope["rope_theta"] if "rope_theta" in rope else rope["full_attention"]["rope_theta"]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    settings = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": float(theta),
        "rope.dimension_count": head_dim,
    }
    if architecture == "gemma3":
        settings["attention.sliding_window"] = config.sliding_window
    if architecture == "llama":
        settings["vocab_size"] = config.vocab_size
    return {f"{architecture}.{name}": value for name, value in settings.items()}


def _tokenizer_metadata(folder: Path, rename: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata of a byte-level BPE, which llama.cpp calls gpt2."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer_json = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    controls = {index for index, token in enumerate(tokens) if token in rename}
    tokens = [rename.get(token, token) for token in tokens]
    special = controls | {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer_json["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2" if "qwen" in type(tokenizer).__name__.lower() else "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if index in special else NORMAL for index in range(len(tokens))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    return {name: value for name, value in metadata.items() if value is not None}


def _gguf_tensors(model: Any, architecture: str) -> dict[str, Any]:
    """Return {GGUF name: weights} in llama.cpp's form.

    Llama's queries and keys are permuted. Gemma's norms include the 1 that the model adds.
    """
    config = model.config
    architecture_id = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(architecture_id, config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weights = tensor.numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            pairs = weights.reshape(heads, 2, weights.shape[0] // heads // 2, weights.shape[1])
            weights = pairs.swapaxes(1, 2).reshape(weights.shape)
        if architecture == "gemma3" and "norm" in name:
            weights = weights + 1
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = weights
    return tensors
