"""The section `compare`: the systems compared with the tuned model, and the plan fixed in advance.

compare:
  primary: {system: tuned, baseline: "openai:gpt-6-luna", metric: accuracy, margin: 0.02, alpha: 0.05}
  baselines:
    - {provider: openai, api: decisions, model: gpt-6-luna,
       price: {input_usd_per_million: 0.1, output_usd_per_million: 0, date: "2026-10-10"}}
    - {provider: openai, model: gpt-6-luna}
    - {provider: anthropic, model: claude-haiku-5-5, shots: 5}
    - {provider: openai, model: mistral-large, base_url: "https://api.example.com/v1", api_key_env: EXAMPLE_KEY,
       price: {input_usd_per_million: 2.0, output_usd_per_million: 6.0, date: 2026-11-01}}
    - {provider: file, path: logs/production_answers.jsonl, name: what we pay for today}
  budget_usd: 5
"""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from insource.config.hosts import is_loopback, parse_host
from insource.config.providers import PROVIDERS, SYSTEMONE_KEY, ApiKey, DecisionFormat, Provider, ProviderName
from insource.config.schema.section import Count, Name, NonNegative, OpenFraction, Positive, Section

# Systems of every comparison; a baseline must not use these names.
TUNED, UNTUNED_BASE, LINEAR, ENCODER, HEAD = "tuned", "base", "tfidf", "encoder", "head"
BUILT_IN_SYSTEMS = (TUNED, UNTUNED_BASE, LINEAR, ENCODER, HEAD)

Instruction = Annotated[str, Field(min_length=10)]


class Primary(Section):
    """The one comparison that decides, fixed before the test set is read."""

    system: Name = TUNED
    baseline: Name
    metric: Name = "accuracy"
    """By default the first of the kind: accuracy, micro_f1 (several labels per row), exact_match (extraction), rouge_l,
    preference_accuracy."""
    margin: OpenFraction = 0.02
    """The largest loss that counts as not worse."""
    alpha: OpenFraction = 0.05


class Price(Section):
    """Prices of a provider, for models that the price list lacks or that you pay differently for."""

    input_usd_per_million: NonNegative
    output_usd_per_million: NonNegative
    cached_input_usd_per_million: NonNegative | None = None
    batch_discount: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the price that a batch saves."""
    date: Name | None = None
    """The date of the price, YYYY-MM-DD."""

    @field_validator("date", mode="before")
    @classmethod
    def _date_to_text(cls, value: object) -> object:
        return value.isoformat() if isinstance(value, date) else value


INPUT_PLACEHOLDER = "{input}"
"""Placeholder of the row's text in a message."""


class Message(Section):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Baseline(Section):
    """One system to compare with."""

    provider: Literal[ProviderName, "file"]
    model: Name | None = None
    api: Literal["chat", DecisionFormat] = "chat"
    """decisions: OpenAI's endpoint that selects a label and returns the probability of each, for classification.
    systemone: the same in the API format of TypeSafe's Jev, at base_url."""
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """Address of a provider with the API format of OpenAI or Anthropic; for azure, the address of your resource."""
    api_key_env: Name | None = None
    """The environment variable with the key. By default the provider's own, but only at the provider's own address: for
    a base_url on another host, name one. A recipe never contains keys."""
    path: Name | None = None
    """For provider file: JSONL, CSV, TSV, JSON or Parquet with id and output, and optional facts about the answer."""
    encoding: Name = "auto"
    """For provider file: the encoding of the file; auto: detected."""
    name: Name | None = None
    shots: Annotated[int, Field(ge=0, le=100)] = 0
    """Number of examples in the prompt: for each row the most similar train rows."""
    mode: Literal["live", "batch"] = "live"
    instruction: Instruction | Annotated[list[Instruction], Field(min_length=2)] | None = None
    """An instruction instead of the task's; of several, the one with the best score on validation rows."""
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    """A prompt instead of the task's, for example that of a fine-tuned model: messages up to the answer, with {input}
    once in the last one for the text of the row."""
    structured_output: bool = True
    """Whether the provider's structured output constrains answers to the output schema."""
    temperature: NonNegative | None = None
    """null: not sent. Most API models of 2026 refuse any sampling parameter (insource/backends/wire/model_families.py).
    """
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """Reasoning effort of the model; none: no reasoning. null: not sent, the provider's default."""
    max_output_tokens: Count | None = None
    """Reasoning included. By default four times the longest answer of training, at least 256, plus a reserve for
    reasoning models (1,024 to 65,536 tokens by effort)."""
    concurrency: Count = 8
    timeout_seconds: Positive = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 6
    price: Price | None = None

    @model_validator(mode="after")
    def _check_provider_fields(self) -> Self:
        provider = PROVIDERS.get(self.provider)
        if provider is not None:
            self._check_model_and_address(provider)
        elif self.path is None or self.model is not None or self.base_url is not None:
            raise ValueError("provider file takes path (and name), not model or base_url")
        if self.uses_decision_api:
            self._check_decision_fields()
        if self.messages is not None:
            self._check_messages(self.messages)
        if self.mode == "batch" and (provider is None or not provider.supports_batch):
            raise ValueError(f"provider {self.provider} has no batches here; set mode: live")
        if self.display_name in BUILT_IN_SYSTEMS:
            raise ValueError(f"name {self.display_name} belongs to a system that every comparison has; choose another")
        return self

    def _check_model_and_address(self, provider: Provider) -> None:
        """Raise ValueError for keys that a file needs, and for a base_url that is missing or cannot be used."""
        if self.model is None or self.path is not None:
            raise ValueError(f"provider {self.provider} takes model, not path")
        if self.encoding != "auto":
            raise ValueError(f"provider {self.provider} takes no encoding: that is for provider file")
        if provider.address == "resource" and self.base_url is None:
            raise ValueError(f"provider {self.provider} takes base_url, the address of the resource")
        if provider.address == "region" and self.base_url is not None:
            raise ValueError(f"provider {self.provider} takes no base_url: its SDK knows the address by the region")

    def _check_decision_fields(self) -> None:
        """Raise ValueError for keys that a decision endpoint does not support."""
        takers = [name for name, provider in PROVIDERS.items() if self.api in provider.decision_formats]
        if self.provider not in takers:
            message = f"api: {self.api} takes provider: {' or '.join(takers)} (with base_url for another host)"
            raise ValueError(message)
        if self.api == "systemone" and self.base_url is None:
            raise ValueError("api: systemone needs base_url, the address before /systemone")
        if self.mode == "batch":
            raise ValueError(
                f"api: {self.api} has no batches (OpenAI has them for other endpoints only); set mode: live"
            )
        if self.shots:
            raise ValueError(f"api: {self.api} takes no examples; leave shots out, or set api: chat")
        for key in ("temperature", "effort", "max_output_tokens"):
            if getattr(self, key) is not None:
                raise ValueError(f"api: {self.api} writes nothing, so it takes no {key}; leave it out")

    def _check_messages(self, messages: list[Message]) -> None:
        """Raise ValueError if own messages conflict with other keys, or do not contain the input."""
        if self.provider == "file" or self.uses_decision_api:
            raise ValueError("messages need api: chat; leave them out")
        if self.instruction is not None or self.shots:
            raise ValueError("messages are the whole prompt; leave out instruction and shots")
        if messages[-1].content.count(INPUT_PLACEHOLDER) != 1 or messages[-1].role != "user":
            raise ValueError(f"messages: the last one must be of role user, and hold {INPUT_PLACEHOLDER} once")

    def build_messages(self, text: str) -> list[dict[str, str]]:
        """Return the own messages with the text of a row in place of the placeholder. Needs `messages`."""
        messages: list[dict[str, str]] = [
            {"role": message.role, "content": message.content} for message in self.messages or ()
        ]
        messages[-1]["content"] = messages[-1]["content"].replace(INPUT_PLACEHOLDER, text)
        return messages

    @property
    def uses_decision_api(self) -> bool:
        """Return whether it selects a label instead of generating text."""
        return self.api != "chat"

    @property
    def display_name(self) -> str:
        """Return the name in reports: `name`, else provider:model, with the api unless it is chat."""
        api = f":{self.api}" if self.uses_decision_api else ""
        return self.name or (f"{self.provider}:{self.model}{api}" if self.model else "file")

    @property
    def host(self) -> str | None:
        """Return the host of base_url, None if the provider's SDK has the address."""
        return parse_host(self.base_url)

    @property
    def is_loopback(self) -> bool:
        """Return whether it answers on this machine: a local stand-in, not a provider."""
        return is_loopback(self.host)

    @property
    def key_env(self) -> str | None:
        """Return the environment variable with its key.

        None if no key is needed, if its SDK finds the credentials, or if the recipe must name the variable
        (`unnamed_key`).
        """
        if self.api_key_env or self.is_loopback or self.withheld_key_env:
            return self.api_key_env
        return self._default_key.variable if self._default_key else None

    @property
    def withheld_key_env(self) -> str | None:
        """Return the default key that is not sent, because base_url is on another host than the provider's, or is not
        https.

        None if the recipe names a key, or no key is withheld.
        """
        key = self._default_key
        if self.api_key_env or self.is_loopback or key is None or self.host is None:
            return None
        is_key_host = key.belongs_to(self.host) and str(self.base_url).startswith("https://")
        return None if is_key_host else key.variable

    @property
    def _default_key(self) -> ApiKey | None:
        if self.api == "systemone":
            return SYSTEMONE_KEY
        return PROVIDERS[self.provider].key if self.provider in PROVIDERS else None


class Compare(Section):
    """The comparison of the tuned model: systems, plan and budget."""

    primary: Primary | None = None
    baselines: list[Baseline] = []
    budget_usd: NonNegative = 0
    """Maximum cost of all baselines together, in USD. 0: no paid requests."""
    forms: Literal["served", "all"] | list[Annotated[str, Field(pattern=r"^(adapter|merged|quantized/\w+)$")]] = "all"
    """The exported variants that are compared in addition to the served one (`tuned`)."""
    explore_rows: Annotated[int, Field(ge=50)] = 300
    """Maximum number of test rows for other variants and the untuned base, unless the plan names them. A hash of the
    row id selects the rows, the same for all."""
    base_shots: Annotated[int, Field(ge=0, le=100)] = 3
    """Number of examples for the second run of the untuned base; 0: only a run without examples."""
    tuned_shots: Annotated[int, Field(ge=0, le=100)] = 0
    """Number of examples for the tuned model as a further system, the same as for the untuned base. 0: no such system.
    A model trained with `train.shots` is compared with that number anyway."""
    encoder: Name | None = None
    """A sentence encoder (a folder or a name on the hub) with a linear model, as a further baseline."""
    head: bool = False
    """Classification with one label per row: train a classification head with LoRA on the same base and rows, as a
    further system (docs/comparing.md, "Head or tokens"). It takes about as long as the training of the adapter."""
    head_learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """The learning rate of the head and its LoRA weights; left out: train.learning_rate (docs/comparing.md)."""
    concurrency: Count = 32
    """Concurrent requests to a local server. Its latency is measured at this load."""
    choose_rows: Count = 100
    """Number of validation rows on which an API model is evaluated with each of its instructions, if it has several."""
    calibrate_rows: Annotated[int, Field(ge=0)] = 300
    """Number of validation rows on which an endpoint with `api: decisions` or `systemone` is evaluated, to calibrate
    its probabilities like those of the tuned model; 0: no calibration."""
    repeat_rows: Annotated[int, Field(ge=0)] = 50
    """Number of test rows that an API model answers twice, to measure how much its answers vary; 0: none."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [baseline.display_name for baseline in self.baselines]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"baselines: {', '.join(duplicates)} is used twice; give each a different name")
        return self
