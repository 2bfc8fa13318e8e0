"""One record for each provider: what the packages do with a provider follows from `PROVIDERS`."""

import ast
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from genai_prices.data_snapshot import get_snapshot
from pydantic import ValidationError

from compare import models
from compare.systems import api_models
from data_prep.importer.recipe_text import IncumbentModel
from insource.backends.batch_client import BATCH_MODULES
from insource.backends.client import API_MODULES
from insource.backends.pricing import lookup_price
from insource.backends.types import ApiFormat
from insource.backends.wire import sdk_environment
from insource.backends.wire.model_families import FAMILIES
from insource.config.providers import FALLBACK_PROVIDER, PROVIDERS, ApiKey, Cloud, Provider, ProviderName
from insource.config.recipe import make_json_schema
from insource.config.schema.compare import Baseline
from insource.tracking import doctor
from insource.tracking.prompt_spec import PromptSpec
from tests.conftest import ROOT

PACKAGES = ("insource", "data_prep", "train", "serve", "compare", "deploy", "predict")
EXAMPLE = Provider(
    api_format="openai",
    genai_prices_id="mistral",
    key=ApiKey("EXAMPLE_API_KEY", ("models.example",)),
    default_base_url="https://api.models.example/v1",
    model_word="example-model",
)


class AnyBaseline(Baseline):
    """A baseline whose provider may be one that only this test knows."""

    provider: str  # type: ignore[assignment]


@pytest.fixture
def add_provider(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a record, and nothing else."""

    def add(provider: Provider) -> None:
        monkeypatch.setitem(PROVIDERS, "example", provider)  # type: ignore[arg-type]

    return add


def endpoint(baseline: Baseline) -> Any:
    return api_models.build_endpoint(baseline, SimpleNamespace(prompt=PromptSpec(max_answer_tokens=16)))  # type: ignore[arg-type]


def test_the_schema_allows_the_providers_of_the_table_and_a_file() -> None:
    assert get_args(ProviderName) == tuple(PROVIDERS) and FALLBACK_PROVIDER in PROVIDERS
    assert make_json_schema()["$defs"]["Baseline"]["properties"]["provider"]["enum"] == [*PROVIDERS, "file"]


def test_every_api_format_has_a_module_and_model_families() -> None:
    assert API_MODULES.keys() == FAMILIES.keys()
    formats = {api_format for literal in get_args(ApiFormat) for api_format in get_args(literal) or (literal,)}
    assert formats == API_MODULES.keys()


@pytest.mark.parametrize("name", PROVIDERS)
def test_what_a_record_names_exists(name: str) -> None:
    provider = PROVIDERS[name]
    assert {provider.api_format, *provider.decision_formats} <= API_MODULES.keys()
    assert provider.genai_prices_id in {None, *(entry.id for entry in get_snapshot().providers)}
    assert not provider.supports_batch or provider.api_format in BATCH_MODULES
    assert not provider.sdk_lists_models or provider.api_format in models.SDK_MODELS
    assert provider.cloud in {None, *get_args(Cloud)}
    assert provider.key is not None or provider.cloud is not None, "without a key the SDK of a cloud has credentials"
    assert provider.address == "default" or provider.cloud is not None
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    assert re.search(rf"- {{provider: {name}\b|# also: .*\b{name}\b", page), "the example of baselines lacks it"


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_recipe_may_say_of_a_provider_what_its_record_allows(name: str) -> None:
    provider = PROVIDERS[name]
    address = {"base_url": "https://models.example/v1"}
    own = address if provider.address == "resource" else {}

    def is_allowed(**keys: str) -> bool:
        try:
            baseline = Baseline.model_validate({"provider": name, "model": "m", **keys})
        except ValidationError:
            return False
        return baseline.provider == name

    assert is_allowed(**own)
    assert is_allowed() is (provider.address != "resource")
    assert is_allowed(**address) is (provider.address != "region")
    assert is_allowed(**own, mode="batch") is provider.supports_batch
    assert is_allowed(**own, api="decisions") is ("decisions" in provider.decision_formats)
    assert is_allowed(**address, api="systemone") is ("systemone" in provider.decision_formats)


@pytest.mark.parametrize("name", PROVIDERS)
def test_an_endpoint_is_what_the_record_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = PROVIDERS[name]
    url = f"https://{provider.key.hosts[0]}/v1" if provider.key and provider.address == "resource" else None
    baseline = Baseline.model_validate({"provider": name, "model": "m", "base_url": url})
    assert baseline.key_env == (provider.key.variable if provider.key else None) and baseline.withheld_key_env is None
    if provider.key:
        monkeypatch.setenv(provider.key.variable, "the key")
        assert provider.key.variable in doctor.list_key_variables()
    backend = endpoint(baseline)
    assert (backend.api_format, backend.cloud) == (provider.api_format, provider.cloud)
    assert backend.base_url == (url or provider.default_base_url)
    assert backend.api_key == ("the key" if provider.key else "none")


def test_a_provider_on_a_known_api_format_is_one_record(add_provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_API_KEY", "the key")
    add_provider(EXAMPLE)
    baseline = AnyBaseline(provider="example", model="mistral-large-latest")
    backend = endpoint(baseline)
    assert (backend.api_format, backend.base_url) == ("openai", "https://api.models.example/v1")
    assert (backend.api_key, backend.cloud) == ("the key", None)
    price = lookup_price(baseline)
    assert price is not None and price.note.startswith("mistral/")
    assert baseline.model_copy(update={"base_url": "https://other.example"}).withheld_key_env == "EXAMPLE_API_KEY"
    assert "EXAMPLE_API_KEY" in doctor.list_key_variables()
    assert IncumbentModel("example-model-2", None, "", False).provider == "example"
    assert models.announced_shutdown(baseline) is None
    with pytest.raises(ValidationError, match="provider example has no batches here"):
        AnyBaseline(provider="example", model="m", mode="batch")
    with pytest.raises(ValidationError, match="api: decisions takes provider: openai"):
        AnyBaseline(provider="example", model="m", api="decisions")


def test_a_provider_that_genai_prices_lacks_has_the_price_of_the_recipe(add_provider: Any) -> None:
    add_provider(replace(EXAMPLE, genai_prices_id=None))
    baseline = AnyBaseline(provider="example", model="gpt-5.4-mini")
    assert lookup_price(baseline) is None, "a known name is not another provider's price"
    price = {"input_usd_per_million": 1, "output_usd_per_million": 3, "date": "2026-11-30"}
    priced = lookup_price(AnyBaseline(provider="example", model="gpt-5.4-mini", price=price))
    assert priced is not None and (priced.input_usd_per_million, priced.output_usd_per_million) == (1, 3)


def test_a_provider_with_more_is_still_one_record(add_provider: Any) -> None:
    add_provider(Provider("anthropic", address="resource", supports_batch=True, decision_formats=("decisions",)))
    with pytest.raises(ValidationError, match="provider example takes base_url, the address of the resource"):
        AnyBaseline(provider="example", model="m")
    batch = AnyBaseline(provider="example", model="m", base_url="https://ours.example", mode="batch")
    assert endpoint(batch.model_copy(update={"model": "claude-haiku-5-5"})).base_url == "https://ours.example"
    assert AnyBaseline(provider="example", model="m", base_url="https://ours.example", api="decisions")
    with pytest.raises(ValidationError, match="takes provider: openai or example"):
        AnyBaseline(provider="azure", model="m", base_url="https://ours.example", api="decisions")


def test_every_variable_of_a_record_is_hidden_from_the_sdks() -> None:
    hidden = {*sdk_environment.IGNORED_VARIABLES, *sdk_environment.ACCOUNT_VARIABLES}
    assert len(hidden) == 10
    for provider in PROVIDERS.values():
        assert {*provider.ignored_variables, *provider.account_variables} <= hidden


def test_no_package_decides_by_the_name_of_a_provider() -> None:
    """Only the name file, which has no record, is compared with."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 300
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "provider":
                constants = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
                assert not constants & PROVIDERS.keys(), f"{path.relative_to(ROOT)}:{node.lineno}: read PROVIDERS"
