"""Inputs that all systems share: a model of random weights, an initial adapter and rows of token ids.

The module also evaluates the trained adapters. Speed does not depend on the weights, so they are drawn from a seed. The
shape is Qwen3's, at a size for a CPU.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.peers.spec import ADAPTER_DIR
from insource.tasks.rendering.chat_template import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEED = 17
LORA_RANK, LORA_ALPHA = 16, 32
TINY_CONFIG = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128,
}  # fmt: skip
MODEL_CONFIGS: dict[str, dict[str, int]] = {
    "tiny": TINY_CONFIG,
    # Fifty updates of every peer on long prompts would take hours with the large model.
    "small": TINY_CONFIG | {"hidden_size": 128, "num_hidden_layers": 4, "head_dim": 32, "intermediate_size": 384},
    "27M": TINY_CONFIG | {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
                          "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1536},
    "4B": TINY_CONFIG | {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
                         "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151_936},
}  # fmt: skip


@dataclass(frozen=True)
class SavedModel:
    """A model on disk."""

    description: str
    linear_parameters: int
    """Weights of the layers that every token passes, without the head, which few tokens pass."""


def save_model(name: str, tokenizer: "PreTrainedTokenizerBase", folder: Path, on_gpu: bool) -> SavedModel:
    """Save a model, the tokenizer and the initial adapter in a folder, and return the description of the model."""
    import torch
    import transformers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    transformers.utils.logging.disable_progress_bar()
    config = Qwen3Config(
        **{
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            **MODEL_CONFIGS[name],
        },
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16 if on_gpu else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters, linear_parameters = model.num_parameters(), count_linear_parameters(model)
    save_adapter(model, str(folder), folder / ADAPTER_DIR)
    description = (
        f"Qwen3, random weights, {parameters / 1e6:.1f}M parameters ({config.num_hidden_layers} layers of "
        f"{config.hidden_size}, vocabulary {config.vocab_size}), LoRA r={LORA_RANK} on all linear layers"
    )
    return SavedModel(description, linear_parameters)


def count_linear_parameters(model: "PreTrainedModel") -> int:
    """Return the number of weights in the layers that every token passes."""
    import torch

    return sum(layer.weight.numel() for layer in model.model.modules() if isinstance(layer, torch.nn.Linear))


def save_adapter(model: "PreTrainedModel", base: str, folder: Path) -> None:
    """Save the initial adapter of all systems, on all linear layers of the model."""
    from peft import LoraConfig, TaskType, get_peft_model

    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(folder))


def save_rows(path: Path, examples: Sequence[Example]) -> None:
    """Write rows as a JSONL file of {"prompt_ids", "completion_ids"}."""
    lines = (
        json.dumps({"prompt_ids": example.prompt_ids, "completion_ids": example.completion_ids}) + "\n"
        for example in examples
    )
    path.write_text("".join(lines), encoding="utf-8")


def evaluate_adapters(
    model: Path, adapters: Mapping[str, Path], held_out: Sequence[Example], quantization: str, on_gpu: bool
) -> dict[str, float]:
    """Return for each adapter the mean cross-entropy of answer tokens on held-out rows.

    Rows are evaluated one at a time, without packing or padding, in float32, on the base of the training.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = "cuda" if on_gpu else "cpu"
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.float32,
        attn_implementation="sdpa",
        quantization_config=nf4 if quantization == "nf4" else None,
        device_map={"": device},
    )
    losses = {}
    for name, folder in adapters.items():
        adapted = PeftModel.from_pretrained(base, str(folder)).eval()
        total, count = 0.0, 0
        with torch.inference_mode():
            for example in held_out:
                ids = torch.tensor([example.prompt_ids + example.completion_ids], device=device)
                n_answer_tokens = len(example.completion_ids)
                logits = adapted(input_ids=ids, logits_to_keep=n_answer_tokens + 1).logits[0, :-1].float()
                total += torch.nn.functional.cross_entropy(logits, ids[0, -n_answer_tokens:], reduction="sum").item()
                count += n_answer_tokens
        losses[name] = total / count
        base = adapted.unload()
    return losses
