"""Request parameters that each model family accepts: one table, read by all API formats.

find_family("openai", "gpt-6-luna").sampling                  "without_reasoning"
find_family("anthropic", "claude-haiku-5-5").default_effort   "medium": it thinks unless a request turns that off
find_family("openai", "mistral-large").name                   "unknown": optional parameters are sent only if set
find_family("decisions", "gpt-6-luna").label_limits           (2, 255): it chooses among labels, and generates no text

The first matching row counts. A provider may change its rules at any time: the first request of a comparison
(compare/first_request.py) detects what this table lacks. `CHECKED_WITH` has the SDK versions that the table was checked
against; tests/insource/backends/test_provider_rules.py fails if the lock is newer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from insource.backends.types import ApiFormat, Backend

CHECKED_WITH = {"openai": "3.54.0", "anthropic": "2.12.0", "genai-prices": "0.2.3"}
CHECKED_ON = "2026-11-29"

# JSON Schema keywords of a provider's structured output. Every provider accepts description and title.
_STRUCTURE_KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "const",
    "anyOf",
    "$ref",
    "$defs",
}
OPENAI_KEYWORDS = frozenset(
    _STRUCTURE_KEYWORDS
    | {"pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    | {"minItems", "maxItems"}
)
ANTHROPIC_KEYWORDS = frozenset(_STRUCTURE_KEYWORDS | {"allOf", "format"})
MINIMAL_KEYWORDS = frozenset(_STRUCTURE_KEYWORDS)

# Output tokens reserved for thinking, by effort, in addition to those for the answer. No provider publishes how much a
# model thinks: these are limits, and unused tokens cost nothing.
THINKING_TOKENS = {"minimal": 1024, "low": 4096, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 65536}
# For models that cannot turn thinking off, and for unknown models.
DEFAULT_THINKING_TOKENS = 8192

Sampling = Literal["yes", "without_reasoning", "no", "unknown"]


@dataclass(frozen=True)
class Family:
    """The request parameters that the models of a family accept."""

    name: str
    model_pattern: str
    """A regular expression for the model's name, as the provider or a cloud writes it."""
    sampling: Sampling
    """Whether temperature is accepted; without_reasoning: only with effort none."""
    efforts: tuple[str, ...]
    """Values of `effort`; none turns thinking off. Empty: the family has no such parameter."""
    default_effort: str | None
    """The provider's default effort; None: the model does not think."""
    schema_keywords: frozenset[str]
    supports_json_schema: bool
    log_probabilities: Literal["yes", "without_reasoning", "no"]
    supports_batch: bool
    source: str
    checked: str = CHECKED_ON
    label_limits: tuple[int, int] | None = None
    """The minimum and maximum number of labels, for endpoints that decide; None: the model generates text."""

    def supports_temperature(self, effort: str | None) -> bool:
        """Return whether a temperature may be sent with this effort.

        True for unknown models, because it is sent only if a recipe sets it.
        """
        if self.sampling == "without_reasoning":
            return (effort or self.default_effort) == "none"
        return self.sampling != "no"

    def supports_log_probabilities(self, effort: str | None) -> bool:
        """Return whether log-probabilities may be requested with this effort."""
        if self.log_probabilities == "without_reasoning":
            return (effort or self.default_effort) == "none"
        return self.log_probabilities == "yes"

    def thinking_tokens(self, effort: str | None) -> int:
        """Return the output tokens to reserve for thinking."""
        if self.name == UNKNOWN.name and effort is None:
            return DEFAULT_THINKING_TOKENS
        effective_effort = effort or self.default_effort
        if effective_effort in (None, "none"):
            return 0
        return THINKING_TOKENS.get(str(effective_effort), DEFAULT_THINKING_TOKENS)


_OPENAI_DOCS = "OpenAI deployment checklist and reasoning guide, developers.openai.com/api/docs"
_CLAUDE_DOCS = "Claude API version 2026-10-21 and model pages, platform.claude.com/docs"
_CLAUDE_PATTERN = r"(?:^|[./])claude-"

UNKNOWN = Family(
    "unknown", r"", "unknown", (), None, MINIMAL_KEYWORDS, True, "no", False,
    "nobody's: the least is sent, and the first request tells what is refused",
)  # fmt: skip

OPENAI = (
    Family("gpt-6, gpt-5.2 to gpt-5.6", r"^gpt-(6|5\.[2-6])(?!.*-chat)", "without_reasoning",
           ("none", "low", "medium", "high", "xhigh", "max"), "medium", OPENAI_KEYWORDS, True, "without_reasoning",
           True, f"{_OPENAI_DOCS}: effort defaults to medium; with effort other than none temperature, top_p and "
           "logprobs are refused; structured-outputs guide: keywords (minLength and maxLength are not among them)"),
    Family("gpt-5.1", r"^gpt-5\.1(?!.*-chat)", "without_reasoning", ("none", "low", "medium", "high"), "none",
           OPENAI_KEYWORDS, True, "without_reasoning", True,
           "Azure SDK reference of reasoning effort: gpt-5.1 defaults to none"),
    Family("gpt-5", r"^gpt-5(-mini|-nano)?(-\d|$)", "no", ("minimal", "low", "medium", "high"), "medium",
           OPENAI_KEYWORDS, True, "no", True, f"{_OPENAI_DOCS}; SDK: shut down on 2026-12-11"),
    Family("o series", r"^o[134](-|$)", "no", ("low", "medium", "high"), "medium", OPENAI_KEYWORDS, True, "no", True,
           f"{_OPENAI_DOCS}; SDK: shut down on 2026-10-23, o3 on 2026-12-11"),
    Family("gpt-4", r"^gpt-4|^chatgpt-4o|^gpt-3\.5", "yes", (), None, OPENAI_KEYWORDS, True, "yes", True,
           f"{_OPENAI_DOCS}; SDK: gpt-4o and gpt-4.1 shut down on 2027-01-14"),
)  # fmt: skip

_EFFORTS = ("low", "medium", "high", "xhigh", "max")
ANTHROPIC = (
    Family("claude 5.5 that always thinks", _CLAUDE_PATTERN + r"(opus-5-5|(fable|mythos)-)", "no", _EFFORTS, "medium",
           ANTHROPIC_KEYWORDS, True, "no", True, f"{_CLAUDE_DOCS}: thinking disabled is refused"),
    Family("claude haiku 5.5", _CLAUDE_PATTERN + r"haiku-5-5", "no", ("none", *_EFFORTS), "medium", ANTHROPIC_KEYWORDS,
           True, "no", True, f"{_CLAUDE_DOCS}: thinking is adaptive by default, at effort medium, and counts against "
           "max_tokens; sampling parameters are refused under any version"),
    Family("claude 5 and sonnet 5.5", _CLAUDE_PATTERN + r"(haiku|sonnet|opus)-5", "no", ("none", *_EFFORTS), "high",
           ANTHROPIC_KEYWORDS, True, "no", True,
           f"{_CLAUDE_DOCS}: as haiku 5.5, at effort high (sonnet 5.5 model page)"),
    Family("claude 4.7 and 4.8", _CLAUDE_PATTERN + r"opus-4-[78]", "no", _EFFORTS, "high", ANTHROPIC_KEYWORDS, True,
           "no", True,
           f"{_CLAUDE_DOCS}: sampling parameters are refused under any version; thinking cannot be disabled"),
    Family("claude 4.5 and 4.6", _CLAUDE_PATTERN + r"\w+-4-[56]", "no", ("none", "low", "medium", "high"), None,
           ANTHROPIC_KEYWORDS, True, "no", True,
           f"{_CLAUDE_DOCS}: under version 2026-10-21, which SDK 2.x sends, sampling parameters are refused for every "
           "model; these do not think unless asked"),
)  # fmt: skip

# No generated text: no sampling, no thinking, no schema. The response has the probability of every label.
DECISIONS = (
    Family("decisions", r"", "no", (), None, frozenset(), False, "no", False,
           "openai SDK 3.54, types/decision_create_params.py: 2 to 255 choices a question; batch_create_params.py: no "
           "batches of /v1/decisions", label_limits=(2, 255)),
)  # fmt: skip
SYSTEMONE = (
    Family("System One", r"", "no", (), None, frozenset(), False, "no", False,
           "docs.ollama.com/api/systemone, abacus.ai/help/route-llm/systemone, docs.fireworks.ai: up to 255 criteria; "
           "fewer than 2 leave nothing to choose", label_limits=(2, 255)),
)  # fmt: skip

FAMILIES: Mapping[ApiFormat, tuple[Family, ...]] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "decisions": DECISIONS,
    "systemone": SYSTEMONE,
}


def find_family(api_format: ApiFormat, model: str) -> Family:
    """Return the family of a model, UNKNOWN if the table has none.

    A fine-tune (ft:gpt-4o-mini-2024-07-18:org::id) has the family of its base.
    """
    name = parse_fine_tune_base(model) or model
    return next((family for family in FAMILIES.get(api_format, ()) if re.search(family.model_pattern, name)), UNKNOWN)


def parse_fine_tune_base(model: str) -> str | None:
    """Return the base model of an OpenAI fine-tune, None for other models."""
    return model.split(":")[1] if model.startswith("ft:") else None


def find_schema_keywords(backend: Backend) -> frozenset[str] | None:
    """Return the JSON Schema keywords that a model accepts; None: all, as on local servers."""
    family = find_family(backend.api_format, backend.model)
    return family.schema_keywords if backend.is_provider_api or family is not UNKNOWN else None
