"""The sections that say what becomes of a trained model: export, serve, cost, decide, route, tracking."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from insource.config.schema.section import Count, Fraction, Name, NonNegative, OpenFraction, Positive, Section


class Export(Section):
    """What is written besides the adapter."""

    merge: bool = True
    quantize: Literal["auto", "none"] | list[Literal["fp8", "int8", "w4a16"]] = "auto"
    """auto: what the hardware here serves, fp8 on recent GPUs and int8 elsewhere."""
    calibration_rows: Annotated[int, Field(ge=0)] = 0
    """Rows of train that quantization is fitted on (llm-compressor, in an environment of its own); 0: on the weights
    alone."""
    max_shard_size: Annotated[str, Field(pattern=r"^\d+(KB|MB|GB)$")] = "5GB"


class Parity(Section):
    """Floors below which serving is refused."""

    rows: Count = 500
    """Validation rows that `make parity` asks for, as far as there are so many."""
    start_rows: Count = 500
    """The same, each time that the server is started."""
    same_weights: Fraction = 0.99
    """Share of equal answers of the same weights (adapter, merged) in transformers and in vLLM."""
    score_drop: Fraction = 0.01
    """Score that other weights (quantized, or on the published base) may lose against the trained ones."""


class Limits(Section):
    """What the gateway takes at most. More requests are answered with 429, larger ones with 413."""

    requests: Count = 512
    """Requests on their way in all; vLLM queues those that it does not compute yet."""
    requests_per_key: Count = 256
    """Requests on their way of one key."""
    sequences: Count = 16
    """Answers that one request may ask for: `n` times its prompts."""
    answer_tokens: Count | None = None
    """Tokens of one answer (`max_tokens`), also where a request names none; null: as far as max_model_len goes."""
    body_kib: Count = 1024
    """KiB of a request."""


class Record(Section):
    """Which inputs of tasks the gateway writes down, redacted, as rows that data preparation reads."""

    share: Fraction = 0
    """Of the inputs, chosen by chance; 0: none."""
    days: Count = 90
    """How long a row is kept."""


class Serve(Section):
    """What vLLM serves."""

    model: Annotated[str, Field(pattern=r"^(auto|adapter|merged|quantized/(fp8|int8|w4a16))$")] = "auto"
    """auto: on a CPU merged, which answers 3 to 5 times as fast as an adapter there, on a GPU the adapter; the adapter
    where several recipes share a server. Where one form cannot be served, the next one is."""
    base: Literal["trained", "published"] = "trained"
    """trained: the base as quantization left it in training, for adapter, merged and quantized models alike. published:
    the base as it was published, on which answers can differ from those of training."""
    host: Name = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    max_model_len: Count = 2048
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU, as in training, but for int8 on a CPU with AMX (bfloat16)."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM takes for weights and cache."""
    cpu_cache_gib: Positive = 1.0
    """Memory for the key-value cache on a CPU, in GiB (vLLM's --kv-cache-memory-bytes)."""
    enforce_eager: bool = False
    """Do not compile the model: it starts sooner, and answers large models' requests more slowly."""
    start_seconds: Count = 900
    """How long the server may take until it is ready."""
    hang_seconds: Annotated[int, Field(ge=10)] = 60
    """How long vLLM may send nothing, though it was asked, until it is started again; behind the gateway, requests wait
    for it for half of that time. More, where one prompt takes longer."""
    chat: Literal["task", "raw"] = "task"
    """How the gateway takes a chat with a model's name. task: a conversation without the task's own prompt is its
    input, to which prompt and constraint are added. raw: it passes as it is, as with <name>:raw."""
    loopback_without_key: bool = False
    """Whether the gateway takes requests without a key where it listens on this machine's own address."""
    limits: Limits = Limits()
    record: Record = Record()
    """registry/<name>/traffic/: none by default. Inputs that are private, or hold personal data that is not replaced,
    are not written."""
    structured_output: bool = True
    """Whether answers are asked for under the task's output constraint."""
    parity: Parity = Parity()


class Cost(Section):
    """What owning costs."""

    gpu_usd_per_hour: NonNegative = 2.0
    """Of one GPU, rented or written off, power and room included."""
    cpu_usd_per_hour: NonNegative | None = None
    """Of a machine without a GPU; without it, what was measured on a CPU has no cost."""
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    """How busy machines are over the month: they are bought for the peak, and idle at night."""
    engineer_usd_per_month: NonNegative = 12000
    engineer_share: Fraction = 0.25
    """Share of an engineer that running a model of one's own takes."""
    monthly_requests: Count = 1_000_000
    retrainings_per_month: NonNegative = 1.0


class Decide(Section):
    """What the verdict asks of you."""

    prompt_changes_per_month: NonNegative = 1
    structured_output: Literal["required", "useful", "no"] = "required"
    operations_owner: bool = True


class Route(Section):
    """When the owned model may answer alone: `target_accuracy`, or `not_worse_than` with `margin`."""

    target_accuracy: OpenFraction | None = 0.95
    """Share of its answers that must be right where it answers alone; null with `not_worse_than`."""
    confidence: OpenFraction = 0.95
    """How sure that must be: the threshold misses the target with a probability of 1 - confidence at most."""
    not_worse_than: Name | None = None
    """A baseline (its name in the report). Where the owned model answers alone, it may be right less often than this
    one by less than `margin`. The baseline is asked the calibration rows for this, within compare.budget_usd."""
    margin: OpenFraction | None = None
    """By default 0.02, with `not_worse_than`."""
    baseline: Name | None = None
    """The API model that the gateway asks below the threshold: one of compare.baselines, by its name. By default the
    one that not_worse_than names, else that of the plan (compare.primary), else the first."""
    personal_data: Literal["local", "may_leave"] = "local"
    """Whether an input in which personal data is found may go to the API model, redacted as privacy.redact says."""
    when_api_fails: Literal["local", "error"] = "local"
    """What is answered below the threshold while the API model does not answer, or there is no money left for it:
    local: the deployed model's answer, marked as degraded."""
    usd_per_month: NonNegative = 0
    """The most that the gateway may spend on API calls in a calendar month (UTC), over all processes that share the
    registry. 0: nothing that costs is asked."""
    mirror: Fraction = 0
    """Before the switch: above 0, the API model answers every request that may leave, and this share of them is also
    answered by the deployed model, aside, for `make drift`. No threshold is needed. 0: local first."""
    api_seconds: Positive = 20.0
    """How long the API model may take for an answer, repeated attempts included."""

    @model_validator(mode="before")
    @classmethod
    def _one_target(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("not_worse_than") is None:
            return values
        return {"target_accuracy": None, **values, "margin": 0.02 if values.get("margin") is None else values["margin"]}

    @model_validator(mode="after")
    def _two_targets(self) -> Self:
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
    def _taken_by_its_server(cls, name: str | None) -> str | None:
        """W&B's own rule (wandb 0.31, Settings.validate_project); its server refuses the rest once training is done."""
        if name is not None and (invalid := sorted(set(name) & set("/\\#?%:\r\n"))):
            raise ValueError(f"given {name!r}, which holds {' '.join(map(repr, invalid))}; W&B takes no such name")
        if name is not None and (len(name) > 128 or name != name.strip()):
            raise ValueError(f"given {name[:40]!r} ({len(name)} characters), allowed: 1 to 128, no space at an edge")
        return name


class Tracking(Section):
    """Where runs are recorded besides the run folder."""

    wandb: Wandb = Wandb()
