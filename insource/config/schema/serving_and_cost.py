"""The sections export, serve, cost, decide, route and tracking: the use of a trained model."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from insource.config.schema.section import Count, Fraction, Name, NonNegative, OpenFraction, Positive, Section

EngineUrl = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9._\[\]:-]+$")]
"""Scheme, host and port of a server, without a path."""


class Export(Section):
    """Exported artifacts besides the adapter."""

    merge: bool = True
    quantize: Literal["auto", "none"] | list[Literal["fp8", "int8", "w4a16"]] = "auto"
    """auto: the format of the hardware here, fp8 on recent GPUs and int8 elsewhere."""
    calibration_rows: Annotated[int, Field(ge=0)] = 0
    """Number of train rows that calibrate quantization (llm-compressor, in its own environment); 0: weights only."""
    max_shard_size: Annotated[str, Field(pattern=r"^\d+(KB|MB|GB)$")] = "5GB"


class Parity(Section):
    """Minimum agreement of served and trained model; below it, serving is refused."""

    rows: Count = 500
    """Maximum number of validation rows for `make parity`."""
    start_rows: Count = 500
    """Maximum number of validation rows each time that the server starts."""
    same_weights: Fraction = 0.99
    """Minimum fraction of equal answers in transformers and vLLM, for the same weights (adapter, merged)."""
    score_drop: Fraction = 0.01
    """Maximum loss of score against the trained weights, for other weights (quantized, or on the published base)."""


class Limits(Section):
    """Limits of the gateway. Excess requests get 429, larger ones 413."""

    requests: Count = 512
    """Requests in flight, in total; vLLM queues those that it does not process yet."""
    requests_per_key: Count = 256
    """Requests in flight per key."""
    sequences: Count = 16
    """Answers per request: `n` times its prompts."""
    answer_tokens: Count | None = None
    """Tokens per answer (`max_tokens`), also if a request has no limit; null: up to max_model_len."""
    body_kib: Count = 1024
    """Size of a request in KiB."""


class Record(Section):
    """Recording of task inputs in the gateway, redacted, as rows that data preparation reads."""

    share: Fraction = 0
    """Random fraction of the inputs; 0: none."""
    days: Count = 90
    """Retention of a row in days."""


class Serve(Section):
    """Serving with vLLM and the gateway."""

    model: Annotated[str, Field(pattern=r"^(auto|adapter|merged|quantized/(fp8|int8|w4a16))$")] = "auto"
    """auto: on a CPU merged, which answers 3 to 5 times as fast as an adapter there; on a GPU the adapter; with several
    recipes on one server the adapter. If a variant cannot be served, the next one is."""
    base: Literal["trained", "published"] = "trained"
    """trained: the base as quantized in training, for adapter, merged and quantized models. published: the original
    base, on which answers can differ from those of training."""
    host: Name = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    max_model_len: Count = 2048
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: as in training, bfloat16 on a GPU and float32 on a CPU, except int8 on a CPU with AMX (bfloat16)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of the GPU's memory that vLLM uses for weights and cache."""
    cpu_cache_gib: Positive = 1.0
    """Memory of the key-value cache on a CPU, in GiB (vLLM's --kv-cache-memory-bytes)."""
    enforce_eager: bool = False
    """Do not compile the model: the server starts faster, and answers of large models are slower."""
    start_seconds: Count = 900
    """Time limit for the server to become ready, in seconds."""
    hang_seconds: Annotated[int, Field(ge=10)] = 60
    """Time without any response from vLLM to pending requests before it is restarted, in seconds. Behind the gateway,
    requests wait half of that time for vLLM. Increase it if one prompt takes longer."""
    chat: Literal["task", "raw"] = "task"
    """How the gateway handles a chat with a model's name. task: a conversation without the task's own prompt is its
    input; prompt and constraint are added. raw: it is forwarded unchanged, as with <name>:raw."""
    engines: list[EngineUrl] = []
    """vLLM servers that were started elsewhere, for the gateway: http://host:port of each. A request goes to the one
    with the fewest in flight. By default the gateway starts its own vLLM."""
    loopback_without_key: bool = False
    """Whether the gateway accepts requests without a key on a loopback address."""
    limits: Limits = Limits()
    record: Record = Record()
    """registry/<name>/traffic/: none by default. Private inputs, and inputs with personal data that is not redacted,
    are not recorded."""
    structured_output: bool = True
    """Whether requests have the task's output constraint."""
    parity: Parity = Parity()

    @field_validator("engines")
    @classmethod
    def _check_engines(cls, engines: list[str]) -> list[str]:
        if repeated := sorted({url for url in engines if engines.count(url) > 1}):
            raise ValueError(f"{repeated[0]} is in it twice")
        return engines


class Cost(Section):
    """The cost of self-hosting."""

    gpu_usd_per_hour: NonNegative = 2.0
    """Of one GPU, rented or depreciated, with power and space."""
    cpu_usd_per_hour: NonNegative | None = None
    """Of a machine without a GPU; without it, measurements on a CPU have no cost."""
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Average load of the machines over a month: they are sized for the peak, and idle at night."""
    engineer_usd_per_month: NonNegative = 12000
    engineer_share: Fraction = 0.25
    """Fraction of an engineer's time that self-hosting takes."""
    monthly_requests: Count = 1_000_000
    retrainings_per_month: NonNegative = 1.0


class Decide(Section):
    """Facts about your organization for the verdict."""

    prompt_changes_per_month: NonNegative = 1
    structured_output: Literal["required", "useful", "no"] = "required"
    operations_owner: bool = True


class Route(Section):
    """When the self-hosted model may answer without the API model: `target_accuracy`, or `not_worse_than` with
    `margin`.
    """

    target_accuracy: OpenFraction | None = 0.95
    """Minimum accuracy of its answers where it answers without the API model; null with `not_worse_than`."""
    confidence: OpenFraction = 0.95
    """Confidence of the guarantee: the threshold misses the target with a probability of at most 1 - confidence."""
    not_worse_than: Name | None = None
    """A baseline (its name in the report). Where the self-hosted model answers, its accuracy may be lower than that of
    the baseline by less than `margin`. For this the baseline is evaluated on the calibration rows, within
    compare.budget_usd."""
    margin: OpenFraction | None = None
    """By default 0.02, with `not_worse_than`."""
    baseline: Name | None = None
    """The API model for requests below the threshold: one of compare.baselines, by its name. By default that of
    not_worse_than, else that of the plan (compare.primary), else the first."""
    personal_data: Literal["local", "may_leave"] = "local"
    """Whether an input with personal data may go to the API model, redacted by privacy.redact."""
    when_api_fails: Literal["local", "error"] = "local"
    """The answer below the threshold if the API model fails, or its budget is spent. local: the deployed model's
    answer, marked as degraded."""
    usd_per_month: NonNegative = 0
    """Maximum cost of the gateway's API calls in a calendar month (UTC), in USD, over all processes with this registry.
    0: no paid requests."""
    mirror: Fraction = 0
    """Before the switch. Above 0, the API model answers every request that may leave, and the deployed model also
    answers this fraction of them in the background, for `make drift`. No threshold is needed. 0: local first."""
    api_seconds: Positive = 20.0
    """Time limit for an answer of the API model, with retries, in seconds."""

    @model_validator(mode="before")
    @classmethod
    def _fill_margin(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("not_worse_than") is None:
            return values
        return {"target_accuracy": None, **values, "margin": 0.02 if values.get("margin") is None else values["margin"]}

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.not_worse_than is not None and self.target_accuracy is not None:
            raise ValueError("target_accuracy and not_worse_than are two targets; leave one out, or set it to null")
        if self.not_worse_than is None and self.target_accuracy is None:
            raise ValueError("needs a target: target_accuracy (such as 0.95), or not_worse_than with a baseline's name")
        if self.not_worse_than is None and self.margin is not None:
            raise ValueError("margin goes with not_worse_than; leave it out, or name a baseline there")
        return self


class Wandb(Section):
    """Weights & Biases."""

    project: Name = "insource"
    entity: Name | None = None
    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if logged in, else offline."""

    @field_validator("project", "entity")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        """Raise ValueError for names that W&B refuses (wandb 0.31, Settings.validate_project).

        Its server would refuse them only after training.
        """
        if name is not None and (invalid := sorted(set(name) & set("/\\#?%:\r\n"))):
            raise ValueError(f"given {name!r}, which holds {' '.join(map(repr, invalid))}; W&B takes no such name")
        if name is not None and (len(name) > 128 or name != name.strip()):
            raise ValueError(f"given {name[:40]!r} ({len(name)} characters), allowed: 1 to 128, no space at an edge")
        return name


class Tracking(Section):
    """Tracking of runs outside the run folder."""

    wandb: Wandb = Wandb()
