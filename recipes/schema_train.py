"""The sections that say what is trained and how: model, lora, train, accelerate.

Keys of `lora` are those of `peft.LoraConfig`, keys of `train` those of `trl.SFTConfig` except where a docstring says
"ours", keys of `accelerate` those of accelerate's config file; `tests/test_recipes.py` holds them to that.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from recipes.section import Count, Name, NotNegative, Positive, Section

VLLM_MAX_RANK = 512


class Model(Section):
    """The open model that is tuned."""

    base: Name
    """A hub name (owner/name), a folder, or `pocket`: the tiny model that comes with the project."""
    revision: Name | None = None
    quantization: Literal["nf4", "int8", "none"] = "nf4"

    @model_validator(mode="after")
    def _revision_of_hub(self) -> Self:
        if self.revision is not None and self.base == "pocket":
            raise ValueError("revision goes with a hub name, and base is pocket")
        return self


class Lora(Section):
    """The adapter, in the names of peft.LoraConfig."""

    r: Annotated[int, Field(ge=1, le=VLLM_MAX_RANK)] = 16
    lora_alpha: Positive | Count = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Name | Annotated[list[Name], Field(min_length=1)] = "all-linear"
    exclude_modules: Name | list[Name] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=VLLM_MAX_RANK)]] = {}
    alpha_pattern: dict[str, Positive | Count] = {}
    init_lora_weights: Literal[True, "gaussian", "pissa", "olora", "loftq"] = True

    @property
    def unservable(self) -> str | None:
        """Returns why vLLM refuses this adapter unmerged, or None."""
        if self.use_dora:
            return "use_dora: vLLM serves DoRA only merged"
        if self.init_lora_weights not in (True, "gaussian"):
            return f"init_lora_weights: {self.init_lora_weights}: it changes the base, vLLM serves it only merged"
        return None


class Train(Section):
    """How it is trained, in the names of trl.SFTConfig; batch_size, packing and pack_tokens are ours."""

    num_train_epochs: Positive | Count = 3
    max_steps: Annotated[int, Field(ge=1)] | Literal[-1] = -1
    """Optimizer updates; -1: as many as num_train_epochs makes."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "cosine"
    warmup_steps: NotNegative | Annotated[int, Field(ge=0)] = 0.05
    """Updates, or below 1 a share of all updates."""
    weight_decay: NotNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_grad_norm: Positive = 1.0
    optim: Literal[
        "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor"
    ] = "adamw_torch"
    gradient_checkpointing: bool = False
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Tokens of one row, prompt and answer."""
    logging_steps: Count = 10
    save_steps: Count = 100
    """Updates between two checkpoints."""
    seed: Annotated[int, Field(ge=0)] = 17
    batch_size: Count = 16
    """Ours: examples an optimizer update, over all processes."""
    packing: Literal["shared_prefix", "bfd", "none"] = "shared_prefix"
    """Ours: how examples share a sequence; shared_prefix computes their common opening once."""
    pack_tokens: Annotated[int, Field(ge=64)] = 8192
    """Ours: tokens of one packed sequence."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.packing != "none" and self.pack_tokens < self.max_length:
            raise ValueError(
                f"pack_tokens ({self.pack_tokens}) is less than max_length ({self.max_length}): a row would not fit"
            )
        return self


class Accelerate(Section):
    """How training is launched, in the names of accelerate's own config file."""

    distributed_type: Literal["NO", "MULTI_CPU", "MULTI_GPU", "FSDP"] = "NO"
    use_cpu: bool = False
    num_machines: Count = 1
    num_processes: Count = 1
    machine_rank: Annotated[int, Field(ge=0)] = 0
    main_process_ip: Name | None = None
    main_process_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    rdzv_backend: Literal["static", "c10d"] = "static"
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    fsdp_config: dict[str, JsonValue] | None = None
