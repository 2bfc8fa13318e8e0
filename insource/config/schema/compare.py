"""The section `compare`: with which systems, and by which plan fixed beforehand, the tuned model is compared.

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
from insource.config.schema.section import Count, Name, NonNegative, OpenFraction, Positive, Section

# Systems that every comparison has; a baseline may bear none of these names.
TUNED, UNTUNED_BASE, LINEAR, ENCODER = "tuned", "base", "tfidf", "encoder"
BUILT_IN_SYSTEMS = (TUNED, UNTUNED_BASE, LINEAR, ENCODER)
PROVIDER_KEY_ENV = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "azure": "AZURE_OPENAI_API_KEY",
    "bedrock": None,
    "vertex": None,
    "file": None,
}
"""The environment variable with a provider's key; None: its SDK finds the credentials by itself, or needs none."""
SYSTEMONE_KEY_ENV = "TYPESAFE_API_KEY"
KEY_HOSTS = {
    "OPENAI_API_KEY": ("api.openai.com",),
    "ANTHROPIC_API_KEY": ("api.anthropic.com",),
    "AZURE_OPENAI_API_KEY": ("azure.com", "azure.us", "azure.cn"),
    SYSTEMONE_KEY_ENV: ("typesafe.ai",),
}
"""The hosts that get a provider's key by default, with the hosts below them. No other does."""


Instruction = Annotated[str, Field(min_length=10)]


class Primary(Section):
    """The one comparison that decides, fixed before the test is opened."""

    system: Name = TUNED
    baseline: Name
    metric: Name = "accuracy"
    """By default the first of the kind: accuracy, micro_f1 (several labels a row), exact_match (extraction), rouge_l,
    preference_accuracy."""
    margin: OpenFraction = 0.02
    """How much worse counts as just as good."""
    alpha: OpenFraction = 0.05


class Price(Section):
    """What a provider takes, for models that the price list does not know or that one pays otherwise for."""

    input_usd_per_million: NonNegative
    output_usd_per_million: NonNegative
    cached_input_usd_per_million: NonNegative | None = None
    batch_discount: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the price that a batch saves."""
    date: Name | None = None
    """The day on which it was looked up, YYYY-MM-DD."""

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return value.isoformat() if isinstance(value, date) else value


INPUT_PLACEHOLDER = "{input}"
"""What stands in a message in the place of the row's text."""


class Message(Section):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Baseline(Section):
    """One system to compare with."""

    provider: Literal["openai", "anthropic", "azure", "bedrock", "vertex", "file"]
    model: Name | None = None
    api: Literal["chat", "decisions", "systemone"] = "chat"
    """decisions: OpenAI's endpoint that chooses among labels and gives the probability of each, for classification.
    systemone: the same by the wire of TypeSafe's Jev, at base_url."""
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """Of a provider that speaks the wire of OpenAI or Anthropic; for azure, the resource's own address."""
    api_key_env: Name | None = None
    """The environment variable with the key; by default the provider's own, at the provider's own address alone: for a
    base_url on another host, name one. Keys never stand in a recipe."""
    path: Name | None = None
    """For provider file: JSONL, CSV, TSV, JSON or Parquet with id and output, and what else is known of the answer."""
    encoding: Name = "auto"
    """For provider file: the encoding of the file; auto: as its bytes say."""
    name: Name | None = None
    shots: Annotated[int, Field(ge=0, le=100)] = 0
    """Examples in the prompt: for each row those of train that are most like it."""
    mode: Literal["live", "batch"] = "live"
    instruction: Instruction | Annotated[list[Instruction], Field(min_length=2)] | None = None
    """Its own instead of the task's; of several, the one that it answers validation rows best with."""
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    """Its own prompt in the place of the task's, as a fine-tuned model was taught: messages up to the answer, {input}
    once in the last one for the text of the row."""
    structured_output: bool = True
    """Whether it is held to the output schema by what the provider has for that."""
    temperature: NonNegative | None = None
    """null: not sent. Most closed models of 2026 refuse any sampling parameter
    (insource/backends/wire/model_families.py)."""
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How much the model is to think before it answers; none: not at all. null: not sent, the provider's default."""
    max_output_tokens: Count | None = None
    """Thinking included. By default four times the longest answer of training, at least 256, and beside that room to
    think where the model thinks (1,024 to 65,536 tokens by effort)."""
    concurrency: Count = 8
    timeout_seconds: Positive = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 6
    price: Price | None = None

    @model_validator(mode="after")
    def _what_the_provider_needs(self) -> Self:
        if self.provider == "file" and (self.path is None or self.model is not None or self.base_url is not None):
            raise ValueError("provider file takes path (and name), not model or base_url")
        if self.provider != "file" and (self.model is None or self.path is not None):
            raise ValueError(f"provider {self.provider} takes model, not path")
        if self.provider != "file" and self.encoding != "auto":
            raise ValueError(f"provider {self.provider} takes no encoding: that is for provider file")
        if self.provider == "azure" and self.base_url is None:
            raise ValueError("provider azure takes base_url, the address of the resource")
        if self.provider in ("bedrock", "vertex") and self.base_url is not None:
            raise ValueError(f"provider {self.provider} takes no base_url: its SDK knows the address by the region")
        if self.decides:
            self._what_a_decision_takes()
        if self.messages is not None:
            self._what_messages_take(self.messages)
        if self.mode == "batch" and self.provider not in ("openai", "anthropic"):
            raise ValueError(f"provider {self.provider} has no batches here; set mode: live")
        if self.called in BUILT_IN_SYSTEMS:
            raise ValueError(f"name {self.called} belongs to a system that every comparison has; choose another")
        return self

    def _what_a_decision_takes(self) -> None:
        """Raises ValueError for what an endpoint that decides has no place for."""
        if self.provider != "openai":
            raise ValueError(f"api: {self.api} takes provider: openai (with base_url for another host)")
        if self.api == "systemone" and self.base_url is None:
            raise ValueError("api: systemone takes base_url, up to what stands before /systemone")
        if self.mode == "batch":
            raise ValueError(f"api: {self.api} has no batches (OpenAI's take other endpoints alone); set mode: live")
        if self.shots:
            raise ValueError(f"api: {self.api} takes no examples; leave shots out, or set api: chat")
        for key in ("temperature", "effort", "max_output_tokens"):
            if getattr(self, key) is not None:
                raise ValueError(f"api: {self.api} writes nothing, so it takes no {key}; leave it out")

    def _what_messages_take(self, messages: list[Message]) -> None:
        """Raises ValueError where messages of its own do not ask for the answer to one row."""
        if self.provider == "file" or self.decides:
            raise ValueError("messages are for a model that is asked by chat; leave them out")
        if self.instruction is not None or self.shots:
            raise ValueError("messages are the whole prompt; leave out instruction and shots")
        if messages[-1].content.count(INPUT_PLACEHOLDER) != 1 or messages[-1].role != "user":
            raise ValueError(f"messages: the last one must be of role user, and hold {INPUT_PLACEHOLDER} once")

    def asked(self, text: str) -> list[dict[str, str]]:
        """Returns its own messages with the text of a row in its place. Needs `messages`."""
        messages: list[dict[str, str]] = [
            {"role": message.role, "content": message.content} for message in self.messages or ()
        ]
        messages[-1]["content"] = messages[-1]["content"].replace(INPUT_PLACEHOLDER, text)
        return messages

    @property
    def decides(self) -> bool:
        """Returns whether it chooses among labels instead of writing."""
        return self.api != "chat"

    @property
    def called(self) -> str:
        """Returns its name in the report: `name`, else provider:model, and the api where it is not chat."""
        api = f":{self.api}" if self.decides else ""
        return self.name or (f"{self.provider}:{self.model}{api}" if self.model else "file")

    @property
    def host(self) -> str | None:
        """Returns the host of base_url, None where the provider's SDK knows the address."""
        return parse_host(self.base_url)

    @property
    def loopback(self) -> bool:
        """Returns whether it answers on this very machine: a stand-in, and no provider."""
        return is_loopback(self.host)

    @property
    def key_env(self) -> str | None:
        """Returns the environment variable with its key, None where it needs none that we would have to know, or where
        the recipe has to name it (`unnamed_key`)."""
        if self.api_key_env or self.loopback or self.unnamed_key:
            return self.api_key_env
        return self._usual_key

    @property
    def unnamed_key(self) -> str | None:
        """Returns the key that is not sent, because base_url is on another host than the provider's (or not https) and
        the recipe names no key for it; None where nothing is in doubt."""
        key = self._usual_key
        if self.api_key_env or self.loopback or key is None or self.host is None:
            return None
        is_provider_host = any(self.host == host or self.host.endswith(f".{host}") for host in KEY_HOSTS[key])
        return None if is_provider_host and str(self.base_url).startswith("https://") else key

    @property
    def _usual_key(self) -> str | None:
        return SYSTEMONE_KEY_ENV if self.api == "systemone" else PROVIDER_KEY_ENV[self.provider]


class Compare(Section):
    """With what, and by which plan, the tuned model is compared."""

    primary: Primary | None = None
    baselines: list[Baseline] = []
    budget_usd: NonNegative = 0
    """The most that all baselines together may cost. 0: nothing that costs is asked."""
    forms: Literal["served", "all"] | list[Annotated[str, Field(pattern=r"^(adapter|merged|quantized/\w+)$")]] = "all"
    """Which exported forms are compared beside the one that is served (`tuned`)."""
    explore_rows: Annotated[int, Field(ge=50)] = 300
    """Test rows that other forms and the untuned base are asked, at most, unless the plan names them. They are chosen
    by a hash of the row's id, the same for all."""
    base_shots: Annotated[int, Field(ge=0, le=100)] = 3
    """Examples in the untuned base's second try; 0: it is asked without examples alone."""
    tuned_shots: Annotated[int, Field(ge=0, le=100)] = 0
    """Examples for the tuned model, as a further system: those that the untuned base gets. 0: there is none such."""
    encoder: Name | None = None
    """A sentence encoder (a folder or a name on the hub) under a linear model, as a further baseline."""
    concurrency: Count = 32
    """Requests that are on their way at once to a server of ours, at which its latency is measured."""
    choose_rows: Count = 100
    """Validation rows that a closed model is asked with each of its instructions, where it has several."""
    calibrate_rows: Annotated[int, Field(ge=0)] = 300
    """Validation rows that an endpoint with `api: decisions` or `systemone` is asked, to put its probabilities on a
    scale as the tuned model's are; 0: they are taken as it tells them."""
    repeat_rows: Annotated[int, Field(ge=0)] = 50
    """Test rows that a closed model is asked twice, to see how much its answers vary; 0: none."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [baseline.called for baseline in self.baselines]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"baselines: {', '.join(duplicates)} stands there twice; give each a name of its own")
        return self
