"""Small models with recurrent layers and random weights, one of each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from insource.config.base_models import POCKET

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FOUR = {**TINY, "num_hidden_layers": 4}
LINEAR = ["linear_attention", "full_attention"] * 2
CONVOLUTIONS = ["conv", "full_attention"] * 2
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Chunks are shorter than a prefix and longer than most rows.
SSD = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}

CONFIGS: dict[str, Callable[..., Any]] = {
    "qwen3_5": lambda **kw: transformers.Qwen3_5TextConfig(**FOUR | kw, **DELTA, head_dim=16, layer_types=LINEAR),
    "granite 4": lambda **kw: transformers.GraniteMoeHybridConfig(
        **FOUR | kw, **SSD, layer_types=LINEAR, num_local_experts=0, shared_intermediate_size=64
    ),
    "lfm2": lambda **kw: transformers.Lfm2Config(**FOUR | kw, layer_types=CONVOLUTIONS),
}
OTHER_CONFIGS: dict[str, Callable[..., Any]] = {
    "qwen3_5 moe": lambda **kw: transformers.Qwen3_5MoeTextConfig(
        **FOUR | kw, **DELTA, **EXPERTS, head_dim=16, layer_types=LINEAR, shared_expert_intermediate_size=32
    ),
    "qwen3 next": lambda **kw: transformers.Qwen3NextConfig(
        **FOUR | kw, **DELTA, **EXPERTS, head_dim=16, layer_types=LINEAR, shared_expert_intermediate_size=32
    ),
    "olmo hybrid": lambda **kw: transformers.OlmoHybridConfig(**FOUR | kw, **DELTA, layer_types=LINEAR),
    "nemotron h": lambda **kw: transformers.NemotronHConfig(
        **TINY | kw,
        head_dim=16,
        layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention"],
        mamba_num_heads=8,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=2,
        chunk_size=16,
    ),
    "bamba": lambda **kw: transformers.BambaConfig(**FOUR | kw, **SSD, attn_layer_indices=[1, 3]),
    "zamba2": lambda **kw: transformers.Zamba2Config(
        **FOUR | kw,
        layers_block_type=["linear_attention", "hybrid"] * 2,
        mamba_d_state=16,
        n_mamba_heads=8,
        mamba_headdim=16,
        mamba_ngroups=1,
        chunk_size=16,
    ),
    "falcon h1": lambda **kw: transformers.FalconH1Config(**FOUR | kw, **SSD, head_dim=16, mamba_d_ssm=128),
    "lfm2 moe": lambda **kw: transformers.Lfm2MoeConfig(**FOUR | kw, **EXPERTS, layer_types=CONVOLUTIONS),
}


def build_model(name: str, **settings: int) -> Any:
    """Return a small model with random weights whose recurrent layers remember some hundred tokens."""
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config((CONFIGS | OTHER_CONFIGS)[name](**settings))
    # As transformers initializes them, most heads forget a token within one or two more: no gradient would show where
    # a row starts from.
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("A_log"):
                parameter.uniform_(-1, 1)
            elif parameter_name.endswith("dt_bias"):
                parameter.fill_(-3.0)
            elif "conv" in parameter_name and parameter.ndim == 3:
                parameter.uniform_(-1, 1)
    return model


def save_base(name: str, folder: Path) -> Path:
    """Save a model of `build_model` and the pocket tokenizer in a folder, which a recipe can name as its base."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(POCKET)
    model = build_model(
        name,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
