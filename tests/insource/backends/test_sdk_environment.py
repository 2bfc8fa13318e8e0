"""The environment does not decide who is asked, how, and with whose account: the recipe does."""

import os
import re
from pathlib import Path

import anthropic
import openai
import pytest

from insource.backends.client import complete_all
from insource.backends.types import ApiFormat, Backend
from insource.backends.wire import anthropic_messages, openai_chat
from insource.backends.wire.sdk_environment import ACCOUNT_VARIABLES, IGNORED_VARIABLES
from tests.helpers.api_requests import make_backend, make_requests, to_choice_requests
from tests.helpers.provider.faulty_provider import Provider, run_provider

HEADERS = "Authorization: Bearer of-another\nX-Gateway: 1\nanthropic-version: 2023-06-01\nx-api-key: of-another"


@pytest.fixture(autouse=True)
def hostile_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment made for another host."""
    for name in IGNORED_VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9/elsewhere" if name.endswith("_URL") else "of-another")
    for name in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, HEADERS)
    for name in ACCOUNT_VARIABLES:
        monkeypatch.setenv(name, "our-account")


def sent(wire: ApiFormat) -> dict[str, str]:
    """The headers of a request to a host that is not the provider's own."""
    provider, requests = Provider(), make_requests(1)
    with run_provider(provider) as address:
        questions = to_choice_requests(requests) if wire in ("decisions", "systemone") else requests
        (reply,) = complete_all(make_backend(address, wire), [questions[0].request])
    assert reply.completion is not None, reply.error
    ((_, headers, _),) = provider.requests
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("wire", ["openai", "anthropic", "decisions", "systemone"])
def test_no_header_of_the_environment_is_sent_to_another_host(wire: ApiFormat) -> None:
    environment = dict(os.environ)
    headers = sent(wire)
    assert headers["authorization"] == "Bearer secret"
    assert not headers.keys() & {"x-gateway", "x-api-key", "openai-organization", "openai-project"}
    assert headers.get("anthropic-version", "2026-10-21") == "2026-10-21"
    assert "of-another" not in str(headers) and dict(os.environ) == environment


def test_the_providers_own_address_is_asked_whatever_the_environment_says() -> None:
    openai_client = openai_chat.make_client(Backend("openai", "m", api_key="k"))
    assert str(openai_client.base_url) == "https://api.openai.com/v1/"
    anthropic_client = anthropic_messages.make_client(Backend("anthropic", "m", api_key="k"))
    assert str(anthropic_client.base_url).rstrip("/") == "https://api.anthropic.com"
    # Which of one's own projects pays is for the account's owner to say.
    assert (openai_client.organization, openai_client.project) == ("our-account", "our-account")


def test_a_cloud_has_the_address_of_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    bedrock = anthropic_messages.make_client(Backend("anthropic", "m", api_key="k", cloud="bedrock"))
    assert "eu-central-1.amazonaws.com" in str(bedrock.base_url)
    monkeypatch.setenv("CLOUD_ML_REGION", "europe-west1")
    monkeypatch.setenv("ANTHROPIC_VERTEX_PROJECT_ID", "ours")
    vertex = anthropic_messages.make_client(Backend("anthropic", "m", api_key="k", cloud="vertex"))
    assert "europe-west1-aiplatform.googleapis.com" in str(vertex.base_url)


def test_a_stand_in_for_azure_on_this_machine_does_not_get_azures_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"):
        monkeypatch.setenv(name, "of-azure")
    monkeypatch.setenv("OPENAI_API_VERSION", "2026-01-01")
    provider = Provider()
    with run_provider(provider) as address:
        complete_all(
            Backend("openai", "gpt-x", address, cloud="azure", temperature=None), [make_requests(1)[0].request]
        )
    ((_, headers, _),) = provider.requests
    assert "of-azure" not in str(headers)


def test_every_variable_that_the_sdks_read_for_an_address_or_for_headers_is_known() -> None:
    """In the SDKs that are installed: a new variable of that kind fails here."""
    variables = set[str]()
    for package in (openai, anthropic):
        assert package.__file__ is not None
        for path in Path(package.__file__).parent.rglob("*.py"):
            names = re.findall(r'environ(?:\.get\(|\[)\s*"([A-Z_]+)"', path.read_text(encoding="utf-8"))
            variables |= {name for name in names if re.search(r"_BASE_URL$|_ENDPOINT$|_CUSTOM_HEADERS$", name)}
    # AZURE_OPENAI_ENDPOINT is read where no address is given, and provider azure has one
    # (insource/config/schema/compare.py).
    # The others belong to clients that this project does not make.
    unrelated = {
        "AZURE_OPENAI_ENDPOINT",
        "AWS_BEDROCK_BASE_URL",
        "ANTHROPIC_BEDROCK_MANTLE_BASE_URL",
        "ANTHROPIC_FOUNDRY_BASE_URL",
        "ANTHROPIC_GOOGLE_CLOUD_BASE_URL",
    }
    assert variables - {*IGNORED_VARIABLES} == unrelated
