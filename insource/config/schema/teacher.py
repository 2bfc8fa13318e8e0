"""The section `data.teacher`: an API model that labels unlabelled rows for train.

data:
  teacher:
    provider: openai
    api: decisions
    model: gpt-6-luna
    source: {path: unlabelled.csv}
    rows: 500
    budget_usd: 5
    price: {input_usd_per_million: 0.1, output_usd_per_million: 0, date: "2026-10-10"}
"""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from insource.config.providers import DecisionFormat, ProviderName
from insource.config.schema.compare import Baseline, Instruction, Price
from insource.config.schema.section import Count, Fraction, Name, NonNegative, Positive, Section
from insource.config.schema.source import Source

CONNECTION_KEYS = ("api_key_env", "concurrency", "timeout_seconds", "retries")
"""Keys that change no answer: labels that exist are kept when they change."""


class Teacher(Section):
    """An API model that labels rows without a label. Its labels are only in train."""

    provider: ProviderName
    model: Name
    source: Source
    """The unlabelled rows: `path`, `paths` or `hub`, with the columns of the input that `data.columns` names."""
    rows: Count
    """Maximum number of rows that are labelled: those that would help most."""
    budget_usd: NonNegative
    """Maximum cost of all labels by teachers for this recipe, in USD, earlier calls included."""
    min_confidence: Fraction | None = None
    """Minimum probability of an answer. Rows below it are counted and left out. Needs a model that returns
    probabilities: `api: decisions` or `systemone`, or chat with log-probabilities."""
    api: Literal["chat", DecisionFormat] = "chat"
    """decisions: OpenAI's endpoint that returns the probability of each label, for classification. systemone: the same
    in the API format of TypeSafe's Jev, at base_url."""
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """Address of a provider with the API format of OpenAI or Anthropic; for azure, the address of your resource."""
    api_key_env: Name | None = None
    """The environment variable with the key, as in compare.baselines."""
    instruction: Instruction | None = None
    """An instruction instead of the task's."""
    structured_output: bool = True
    """Whether the provider's structured output constrains answers to the output schema."""
    temperature: NonNegative | None = None
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    max_output_tokens: Count | None = None
    concurrency: Count = 8
    timeout_seconds: Positive = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 6
    price: Price | None = None
    """Prices of the provider, for models that the price list lacks. decisions always need them."""

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: Source) -> Source:
        if source.train is not None:
            raise ValueError("takes path, paths or hub: all rows are unlabelled, and none is of a split")
        return source

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        try:
            baseline = self.baseline
        except ValidationError as error:
            messages = [entry["msg"].removeprefix("Value error, ") for entry in error.errors(include_url=False)]
            raise ValueError("; ".join(messages)) from None
        if key := baseline.withheld_key_env:
            raise ValueError(
                f"{key} is not sent to {self.base_url}, which is no https address of its provider; name the "
                "environment variable with the key for that host: api_key_env: ..."
            )
        return self

    @property
    def baseline(self) -> Baseline:
        """Return the API model with the settings of a baseline: keys, addresses and prices follow the same rules."""
        names = self.__class__.model_fields.keys() & Baseline.model_fields.keys()
        return Baseline(**{name: getattr(self, name) for name in names})
