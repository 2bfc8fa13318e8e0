"""What a recipe may say: one frozen tree, strict at every depth.

    task: {kind: classification, instruction: Route the message., labels: auto}
    data: {source: {path: tickets.csv}, columns: {text: message, label: queue}}

Sections follow DESIGN order: what to do (task, data, privacy), with what (model, lora, train), and what becomes of
it (export, serve, compare, cost, decide, route, tracking). Keys of `lora` are those of `peft.LoraConfig` and keys of
`train` those of `trl.SFTConfig`, except where a docstring says "ours"; `tests/test_recipes.py` holds them to that.
`load.py` turns YAML into this tree; `python -m recipes.schema` writes `recipes/.schema.json` for editors.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

VLLM_MAX_RANK = 512
SPLITS = ("train", "validation", "calibration", "test")

Name = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown keys, without silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Task(Section):
    """What the model is asked to do."""

    kind: Literal["classification", "extraction", "generation", "preference"] = "classification"
    instruction: Annotated[str, Field(min_length=10)]
    """What the model is told to do, as one would tell a new colleague."""
    labels: Literal["auto"] | Annotated[list[Name], Field(min_length=2)] | dict[Name, str] = "auto"
    """classification: the labels, with descriptions if you have them, or `auto`: those of the rows."""
    json_schema: dict[str, JsonValue] | None = None
    """extraction: the JSON Schema of the answer; its strings bounded by maxLength."""

    @model_validator(mode="after")
    def _belongs_to_kind(self) -> Self:
        if self.kind == "extraction" and self.json_schema is None:
            raise ValueError("kind extraction needs json_schema, the JSON Schema of the answer")
        if self.kind != "extraction" and self.json_schema is not None:
            raise ValueError(f"json_schema belongs to kind extraction, and kind is {self.kind}")
        if self.kind != "classification" and self.labels != "auto":
            raise ValueError(f"labels belong to kind classification, and kind is {self.kind}")
        if isinstance(self.labels, list) and len(set(self.labels)) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ValueError(f"labels must differ, and {', '.join(map(repr, twice))} stands there twice")
        if self.labels != "auto" and len(self.labels) < 2:
            raise ValueError("a choice needs two labels at least")
        return self


class Source(Section):
    """Where the rows are: one of `path`, `paths`, `hub` (split by us), or `train` and `test` (given splits)."""

    path: Name | None = None
    paths: Annotated[list[Name], Field(min_length=1)] | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Name | None = None
    """The commit of the hub data set; pinned when given, recorded when resolved."""
    train: Name | None = None
    validation: Name | None = None
    calibration: Name | None = None
    test: Name | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("path", "paths", "hub", "train") if getattr(self, name) is not None]
        if len(ways) != 1:
            given = " and ".join(ways) if ways else "none of them"
            raise ValueError(f"give exactly one of path, paths, hub, or train (with test); given: {given}")
        extra = [name for name in SPLITS[1:] if getattr(self, name) is not None]
        if extra and self.train is None:
            raise ValueError(f"{', '.join(extra)} goes with train (given splits), not with {ways[0]}")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        return self

    @property
    def files(self) -> dict[str, str]:
        """Returns {split or "all": path} of the files that this source names."""
        if self.path is not None:
            return {"all": self.path}
        return {split: path for split in SPLITS if (path := getattr(self, split)) is not None}


class Columns(Section):
    """Which column of the source holds what."""

    text: Name = "text"
    label: Name = "label"
    id: Name | None = None
    """A column of unique row ids; without it, ids are made from the file and the row number."""


class Split(Section):
    """How rows are split where the source does not say; the rest is train."""

    test: OpenShare = 0.2
    validation: OpenShare = 0.1
    calibration: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stratify: Name | None = "label"
    """Keep the shares of this within each split: `label`, or null for no stratification."""
    group: Name | None = None
    """A column whose rows with one value all go to one split, such as a customer."""
    time: Name | None = None
    """A column to sort by: test is the newest rows."""
    seed: Annotated[int, Field(ge=0)] = 17

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        held_out = self.test + self.validation + self.calibration
        if held_out >= 1:
            raise ValueError(f"test + validation + calibration = {held_out:g} leaves no rows for train")
        if self.time is not None and self.group is not None:
            raise ValueError("time and group can't both decide where a row goes; keep one")
        return self


class Deduplicate(Section):
    """Which rows count as the same."""

    near: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Jaccard similarity of the shingles from which two rows with one label are near-duplicates; 1 keeps to exact ones."""
    shingle: Literal["char3", "char4", "char5", "char6", "word1", "word2", "word3"] = "char5"


class NotInTrain(Section):
    """Rows whose value of this column or field does not occur in train."""

    not_in_train: Name


class By(Section):
    """One slice for each value of this column."""

    by: Name


class Data(Section):
    """The rows: where they are, what is in them, how they are split."""

    source: Source
    columns: Columns = Columns()
    split: Split = Split()
    deduplicate: Deduplicate = Deduplicate()
    conflicts: Literal["drop", "majority", "fail"] = "drop"
    """What becomes of train rows with one text and several labels."""
    max_rejected: Share = 0.01
    """Above this share of unusable rows, preparation fails."""
    slices: dict[Name, NotInTrain | By] = {}
    """Parts of the test set that are reported apart."""


class Privacy(Section):
    """What may leave this machine."""

    data_may_leave: bool = True
    trusted_hosts: list[Name] = []
    redact: list[Literal["email", "phone", "card", "iban", "secret"]] = []


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


class Export(Section):
    """What is written besides the adapter."""

    merge: bool = True
    replay_nf4: bool = False
    """Merge onto the base as NF4 rounds it, which is what was trained against."""
    quantize: Literal["auto", "none"] | list[Literal["fp8", "int8", "w4a16"]] = "auto"


class Parity(Section):
    """Floors below which serving is refused."""

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
    structured_output: bool = True
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


class Recipe(Section):
    """A whole recipe, resolved: what the file says, the hardware file and SET laid over it, every default filled in."""

    task: Task
    data: Data
    model: Model
    privacy: Privacy = Privacy()
    lora: Lora = Lora()
    train: Train = Train()
    export: Export = Export()
    serve: Serve = Serve()
    compare: Compare = Compare()
    cost: Cost = Cost()
    decide: Decide = Decide()
    route: Route = Route()
    tracking: Tracking = Tracking()
    accelerate: Accelerate = Accelerate()

    @model_validator(mode="after")
    def _servable(self) -> Self:
        if self.serve.model == "adapter" and (why := self.lora.unservable):
            raise ValueError(f"lora.{why}; set serve.model: merged, or leave it out")
        return self

    @field_validator("data")
    @classmethod
    def _stratify_by_label(cls, data: Data) -> Data:
        if data.split.stratify not in (None, "label", data.columns.label):
            raise ValueError(f"split.stratify: only the label can be stratified by, given {data.split.stratify!r}")
        return data


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def main() -> None:
    """Writes `.schema.json`, or with --check exits 1 where it is not what the code would write."""
    path, text = Path(__file__).with_name(".schema.json"), json.dumps(json_schema(), indent=1) + "\n"
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit("recipes/.schema.json is not what recipes/schema.py says: run `make schema`")


if __name__ == "__main__":
    main()
