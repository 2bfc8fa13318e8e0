"""The section `lora`: the adapter, in the names of `peft.LoraConfig`.

    lora: {r: 16, lora_alpha: 32, target_modules: all-linear, init_lora_weights: pissa_niter_4}

Every field of LoraConfig is a key here, or is in UNSUPPORTED_KEYS with a reason;
`tests/insource/config/test_train_settings.py` checks that.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from insource.config.schema.section import ConflictError, Count, Mistake, Name, Positive, Section

# Values of --max-lora-rank in vLLM 0.32.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_MAX_RANK = VLLM_RANKS[-1]

Rank = Annotated[int, Field(ge=1, le=VLLM_MAX_RANK)]
Initialisation = (
    Literal[True, "gaussian", "orthogonal", "mica", "pissa", "olora", "loftq"]
    | Annotated[str, Field(pattern=r"^pissa_niter_\d+$")]
)

_NOT_SERVED_REASON = "vLLM serves no such adapter, and merging cannot take it in; leave it out"
_OTHER_METHOD_REASON = "its settings belong to a method that is not built in; leave it out"
UNSUPPORTED_KEYS = {
    "bias": "vLLM serves no adapter that trains biases; leave it out, LoRA itself needs none",
    "lora_bias": "vLLM serves no adapter that trains biases; leave it out, LoRA itself needs none",
    "modules_to_save": "whole modules in an adapter are refused by vLLM; name them in target_modules",
    "trainable_token_indices": "vLLM serves no adapter that changes embeddings; leave it out",
    "alora_invocation_tokens": _NOT_SERVED_REASON,
    "layer_replication": _NOT_SERVED_REASON,
    "use_bdlora": _NOT_SERVED_REASON,
    "use_qalora": "it needs a GPTQ base; take model.quantization: nf4 or int8",
    "qalora_group_size": "it needs a GPTQ base; take model.quantization: nf4 or int8",
    "eva_config": "EVA reads activations of the data before training, which is not built; take pissa or olora",
    "corda_config": "CorDA reads activations of the data before training, which is not built; take pissa or olora",
    "lora_ga_config": "LoRA-GA reads gradients of the data before training, which is not built; take pissa or olora",
    "velora_config": _OTHER_METHOD_REASON,
    "monteclora_config": _OTHER_METHOD_REASON,
    "arrow_config": _OTHER_METHOD_REASON,
    "kasa_config": _OTHER_METHOD_REASON,
    "megatron_config": "models are transformers', not Megatron's; leave it out",
    "megatron_core": "models are transformers', not Megatron's; leave it out",
    "fan_in_fan_out": "PEFT finds it out from the layer; leave it out",
    "ensure_weight_tying": "tied layers are the embeddings, which are not trained; leave it out",
    "runtime_config": "how PEFT loads is not the recipe's; leave it out",
    "peft_type": "it is LORA; leave it out",
    "task_type": "it is CAUSAL_LM; leave it out",
    "base_model_name_or_path": "the base is model.base",
    "revision": "the base's revision is model.revision",
    "inference_mode": "training sets it; leave it out",
    "auto_mapping": "PEFT writes it; leave it out",
    "peft_version": "PEFT writes it; leave it out",
}
_UNSUPPORTED_INITIALISATION = {
    "eva": UNSUPPORTED_KEYS["eva_config"],
    "corda": UNSUPPORTED_KEYS["corda_config"],
    "lora_ga": UNSUPPORTED_KEYS["lora_ga_config"],
    False: "an adapter that changes the model before it is trained helps only to debug; take true",
}


class LoftqConfig(Section):
    """Settings of LoftQ; its bits are those of model.quantization."""

    loftq_iter: Annotated[int, Field(ge=1, le=20)] = 1
    """Rounds of quantization and correction."""


class Lora(Section):
    """The adapter, in the names of peft.LoraConfig."""

    r: Rank = 16
    lora_alpha: Positive | Count = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Name | Annotated[list[Name], Field(min_length=1)] = "all-linear"
    """Names of linear layers, a regular expression, or all-linear: all except the head."""
    exclude_modules: Name | list[Name] | None = None
    target_parameters: Annotated[list[Name], Field(min_length=1)] | None = None
    """Parameters that are not layers, such as mlp.experts.gate_up_proj of a mixture of experts."""
    layers_to_transform: (
        Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None
    ) = None
    """Indices of the layers with an adapter, from 0; left out: all."""
    layers_pattern: Name | list[Name] | None = None
    """The name of the list of layers in the model, if it is unusual."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), so that large ranks learn as fast as small ones."""
    use_dora: bool = False
    """Train length and direction of the weights separately; vLLM serves it only merged."""
    rank_pattern: dict[str, Rank] = {}
    """Other ranks, by the end of a layer's name or a regular expression of it."""
    alpha_pattern: dict[str, Positive | Count] = {}
    init_lora_weights: Initialisation = True
    """pissa, pissa_niter_<n>, olora and loftq initialize the adapter with a part of the base. They are exported as a
    plain adapter of twice the rank, which vLLM serves on the unchanged base."""
    loftq_config: LoftqConfig | None = None

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _check_init(cls, value: object) -> object:
        if isinstance(value, str | bool) and value in _UNSUPPORTED_INITIALISATION:
            raise ValueError(f"given {value!r}: {_UNSUPPORTED_INITIALISATION[value]}")
        return value

    @property
    def modifies_base(self) -> bool:
        """Return whether the adapter is initialized with a part of the base, so that both change together."""
        name = str(self.init_lora_weights)
        return name in ("olora", "loftq") or name.startswith("pissa")

    @property
    def largest_rank(self) -> int:
        """Return the largest rank of the exported adapter."""
        return max([self.r, *self.rank_pattern.values()]) * (2 if self.modifies_base else 1)

    @property
    def unservable_reason(self) -> str | None:
        """Return the reason why vLLM cannot serve the adapter unmerged, or None."""
        return "use_dora: vLLM serves DoRA only merged" if self.use_dora else None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        mistakes: list[Mistake] = []
        initial, ranks = self.init_lora_weights, [self.r, *self.rank_pattern.values()]
        selects_layers = self.layers_to_transform is not None or self.layers_pattern is not None
        if selects_layers and isinstance(self.target_modules, str):
            message = "goes with target_modules as a list of names, such as [q_proj, v_proj]"
            mistakes.append(
                (("layers_to_transform" if self.layers_to_transform is not None else "layers_pattern",), message)
            )
        elif self.layers_pattern is not None and self.layers_to_transform is None:
            mistakes.append((("layers_pattern",), "goes with layers_to_transform, the numbers of the layers"))
        if self.loftq_config is not None and initial != "loftq":
            mistakes.append((("loftq_config",), f"goes with init_lora_weights: loftq, and that is {initial}"))
        if self.use_dora and (self.modifies_base or initial == "mica"):
            message = f"init_lora_weights: {initial} and use_dora both rewrite the weights; keep one of them"
            mistakes.append((("use_dora",), message))
        if self.modifies_base and self.largest_rank > VLLM_MAX_RANK:
            message = f"{initial} is exported with twice the rank, and vLLM serves at most {VLLM_MAX_RANK}"
            mistakes.append((("r",), f"{message}; set ranks of at most {VLLM_MAX_RANK // 2}"))
        if initial == "orthogonal" and any(rank % 2 for rank in ranks):
            mistakes.append((("init_lora_weights",), "orthogonal needs even ranks; set r and rank_pattern so"))
        if self.target_parameters and self.lora_dropout:
            mistakes.append((("lora_dropout",), "target_parameters take no dropout; set lora_dropout: 0"))
        if self.target_parameters and (self.use_dora or initial not in (True, "gaussian")):
            mistakes.append((("target_parameters",), "goes with init_lora_weights true or gaussian, without use_dora"))
        if mistakes:
            raise ConflictError(mistakes)
        return self
