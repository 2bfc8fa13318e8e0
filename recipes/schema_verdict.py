"""The sections that say what becomes of a trained model: export, serve, compare, cost, decide, route, tracking."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from recipes.section import Count, Name, NotNegative, OpenShare, Positive, Section, Share


class Export(Section):
    """What is written besides the adapter."""

    merge: bool = True
    replay_nf4: bool = False
    """Merge onto the base as NF4 rounds it, which is what was trained against."""
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
    start_rows: Count = 128
    """The same, each time that the server is started."""
    same_weights: Share = 0.99
    """Share of equal answers of the same weights in transformers and in vLLM."""
    score_drop: Share = 0.01
    """Score that other weights (merged, quantized) may lose against the trained ones."""


class Serve(Section):
    """What vLLM serves."""

    model: Annotated[str, Field(pattern=r"^(adapter|merged|quantized/(fp8|int8|w4a16))$")] = "adapter"
    host: Name = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    max_model_len: Count = 2048
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU, as in training."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM takes for weights and cache."""
    cpu_cache_gib: Positive = 1.0
    """Memory for the key-value cache on a CPU, in GiB (vLLM's --kv-cache-memory-bytes)."""
    enforce_eager: bool = False
    """Do not compile the model: it starts sooner, and answers large models' requests more slowly."""
    start_seconds: Count = 900
    """How long the server may take until it is ready."""
    structured_output: bool = True
    """Whether answers are asked for under the task's output constraint."""
    parity: Parity = Parity()


class Primary(Section):
    """The one comparison that decides, fixed before the test is opened."""

    system: Name = "tuned"
    baseline: Name
    metric: Name = "accuracy"
    margin: OpenShare = 0.02
    """How much worse counts as just as good."""
    alpha: OpenShare = 0.05


class Baseline(Section):
    """One system to compare with."""

    provider: Literal["openai", "anthropic", "azure", "bedrock", "vertex", "file"]
    model: Name | None = None
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    path: Name | None = None
    name: Name | None = None
    shots: Annotated[int, Field(ge=0, le=100)] = 0
    mode: Literal["live", "batch"] = "live"
    instruction: Annotated[str, Field(min_length=10)] | None = None

    @model_validator(mode="after")
    def _what_the_provider_needs(self) -> Self:
        if self.provider == "file" and (self.path is None or self.model is not None or self.base_url is not None):
            raise ValueError("provider file takes path (and name), not model or base_url")
        if self.provider != "file" and (self.model is None or self.path is not None):
            raise ValueError(f"provider {self.provider} takes model, not path")
        return self


class Compare(Section):
    """With what, and by which plan, the tuned model is compared."""

    primary: Primary | None = None
    baselines: list[Baseline] = []
    budget_usd: NotNegative = 0


class Cost(Section):
    """What owning costs."""

    gpu_usd_per_hour: NotNegative = 2.0
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    engineer_usd_per_month: NotNegative = 12000
    engineer_share: Share = 0.25
    monthly_requests: Count = 1_000_000


class Decide(Section):
    """What the verdict asks of you."""

    prompt_changes_per_month: NotNegative = 1
    structured_output: Literal["required", "useful", "no"] = "required"
    operations_owner: bool = True


class Route(Section):
    """When the owned model may answer alone."""

    target_accuracy: OpenShare = 0.95
    confidence: OpenShare = 0.95


class Wandb(Section):
    """Weights & Biases."""

    project: Name = "insource"
    entity: Name | None = None
    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if logged in, else offline."""


class Tracking(Section):
    """Where runs are recorded besides the run folder."""

    wandb: Wandb = Wandb()
