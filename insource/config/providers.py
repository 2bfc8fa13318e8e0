"""The providers of API models: one record for each, from which every package reads.

    PROVIDERS["anthropic"].api_format        "anthropic"
    PROVIDERS["bedrock"].genai_prices_id     "aws"
    PROVIDERS["azure"].key                   ApiKey("AZURE_OPENAI_API_KEY", ("azure.com", "azure.us", "azure.cn"))

`provider: file` has no record: it is a file of answers, not a provider.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ProviderName = Literal["openai", "anthropic", "azure", "bedrock", "vertex"]
"""The keys of `PROVIDERS`, for the schema of a recipe."""
ChatFormat = Literal["openai", "anthropic"]
DecisionFormat = Literal["decisions", "systemone"]
"""API formats that select a label instead of generating text."""
Cloud = Literal["azure", "bedrock", "vertex"]
"""Private clouds that the SDK of an API format reaches with a client class of their own."""
Address = Literal["default", "resource", "region"]
"""default: one for all customers; a recipe may name another one. resource: the recipe must name it. region: the SDK
forms it from the region, and a recipe cannot name it."""


@dataclass(frozen=True)
class ApiKey:
    """The environment variable with a key, and the hosts that get the key by default, with their subdomains."""

    variable: str
    hosts: tuple[str, ...]

    def belongs_to(self, host: str) -> bool:
        """Return whether a host gets the key by default."""
        return any(host == domain or host.endswith(f".{domain}") for domain in self.hosts)


@dataclass(frozen=True)
class Provider:
    """What the project knows about a provider."""

    api_format: ChatFormat
    """Of chat; insource/backends/wire/ has a module for each API format."""
    genai_prices_id: str | None = None
    """Its name in genai-prices. None: genai-prices lacks it, so only a recipe gives a price."""
    key: ApiKey | None = None
    """None: the SDK finds the credentials."""
    address: Address = "default"
    default_base_url: str | None = None
    """None: the default address of its API format (`DEFAULT_BASE_URL`), or that of its cloud."""
    cloud: Cloud | None = None
    """Its extra in pyproject.toml, if it needs one, has the same name."""
    supports_batch: bool = False
    """Whether `mode: batch` works; insource/backends/batch_client.py has the API formats with batches."""
    decision_formats: tuple[DecisionFormat, ...] = ()
    sdk_lists_models: bool = False
    """Whether the SDK of its API format lists its models and announces when they are shut down."""
    model_word: str | None = None
    """A word in the names of its models, by which `make import` recognises it."""
    ignored_variables: tuple[str, ...] = ()
    """Environment variables that its SDK reads and that must have no effect."""
    account_variables: tuple[str, ...] = ()
    """Environment variables with an account, which its SDK may send only to the provider's own address."""


# Variables as openai 3.54 (lib/_client_auth.py) and anthropic 2.12 (_client.py, lib/bedrock, lib/vertex, lib/_env.py)
# read them.
PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(
        api_format="openai",
        genai_prices_id="openai",
        key=ApiKey("OPENAI_API_KEY", ("api.openai.com",)),
        supports_batch=True,
        decision_formats=("decisions", "systemone"),
        sdk_lists_models=True,
        ignored_variables=("OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS", "OPENAI_ADMIN_KEY"),
        account_variables=("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"),
    ),
    "anthropic": Provider(
        api_format="anthropic",
        genai_prices_id="anthropic",
        key=ApiKey("ANTHROPIC_API_KEY", ("api.anthropic.com",)),
        supports_batch=True,
        sdk_lists_models=True,
        model_word="claude",
        ignored_variables=("ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS", "ANTHROPIC_AUTH_TOKEN"),
    ),
    "azure": Provider(
        api_format="openai",
        genai_prices_id="azure",
        key=ApiKey("AZURE_OPENAI_API_KEY", ("azure.com", "azure.us", "azure.cn")),
        address="resource",
        cloud="azure",
    ),
    "bedrock": Provider(
        api_format="anthropic",
        genai_prices_id="aws",
        address="region",
        cloud="bedrock",
        ignored_variables=("ANTHROPIC_BEDROCK_BASE_URL",),
    ),
    "vertex": Provider(
        api_format="anthropic",
        genai_prices_id="google",
        address="region",
        cloud="vertex",
        ignored_variables=("ANTHROPIC_VERTEX_BASE_URL",),
    ),
}
FALLBACK_PROVIDER: ProviderName = "openai"
"""The provider that `make import` assumes: most others offer OpenAI's API format."""
SYSTEMONE_KEY = ApiKey("TYPESAFE_API_KEY", ("typesafe.ai",))
"""The key of the API format systemone, whatever the provider."""
