"""Limits that a provider tells in its headers, and private clouds: through the real SDKs, on loopback."""

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import import_module
from pathlib import Path

import pytest

from insource.backends.client import complete_all
from insource.backends.rate_limit import RateLimiter, parse_reset_seconds, seconds_until_available
from insource.backends.types import Backend
from insource.backends.wire import anthropic_messages
from insource.config.errors import RecipeError
from tests.helpers.api_requests import collect, make_backend, make_requests
from tests.helpers.provider.faulty_provider import Provider, run_provider
from tests.helpers.provider.provider_answers import correct_label


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("7", 7), ("0.25", 0.25), ("1d", 86400)],
)
def test_a_reset_is_read_as_a_duration(text: str, seconds: float) -> None:
    assert parse_reset_seconds(text) == pytest.approx(seconds)


def test_a_reset_at_a_point_in_time_is_counted_by_the_servers_clock() -> None:
    server_time = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
    reset_at = (server_time + timedelta(seconds=7)).isoformat().replace("+00:00", "Z")
    assert parse_reset_seconds(reset_at, format_datetime(server_time, usegmt=True)) == 7
    assert parse_reset_seconds(str(int(server_time.timestamp()) + 7), format_datetime(server_time, usegmt=True)) == 7
    assert parse_reset_seconds("2020-01-01T00:00:00Z") == 0
    for invalid in ("soon", "", "5 apples", "s"):
        with pytest.raises(ValueError):
            parse_reset_seconds(invalid)


def test_a_limit_counts_where_nothing_is_left_of_it() -> None:
    assert seconds_until_available({}) == 0
    headers = {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "50s"}
    assert seconds_until_available(headers) == 0
    tokens = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}
    assert seconds_until_available({**headers, **tokens}) == 2
    anthropic_headers = {
        "date": "Sun, 01 Nov 2026 12:00:00 GMT",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-01T12:00:04Z",
    }
    assert seconds_until_available(anthropic_headers) == 4
    assert seconds_until_available({"x-ratelimit-remaining-requests": "0"}) == 0
    assert seconds_until_available({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}) == 0


def test_refusals_halve_what_is_on_its_way_once_a_burst_and_answers_let_it_grow() -> None:
    async def burst() -> None:
        limiter = RateLimiter(16, 60)
        started_at = time.monotonic()
        for _ in range(5):
            limiter.on_rate_limited(started_at)
        assert limiter.concurrency == 8
        await asyncio.sleep(0.01)
        limiter.on_rate_limited(time.monotonic())
        assert limiter.concurrency == 4
        for _ in range(5):
            limiter.on_success()
        assert 5 <= limiter.concurrency < 5.2
        for _ in range(500):
            limiter.on_success()
        assert limiter.concurrency == 16
        for _ in range(50):
            await asyncio.sleep(0.001)
            limiter.on_rate_limited(time.monotonic())
        assert limiter.concurrency == 1

    asyncio.run(burst())


def test_one_refusal_holds_everybody_until_the_time_it_told(tmp_path: Path) -> None:
    arrivals: list[float] = []

    def refuse(prompt: str, attempts: int) -> tuple[int, dict[str, str]] | None:
        arrivals.append(time.monotonic())
        return (429, {"Retry-After": "0.7"}) if len(arrivals) == 1 else None

    with run_provider(Provider(refuse=refuse)) as address:
        endpoint = make_backend(address, concurrency=1)
        result = collect(address, tmp_path / "a.jsonl", make_requests(5), backend=endpoint)
    assert result.complete and len(arrivals) == 6
    assert arrivals[1] - arrivals[0] >= 0.7


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_limit_used_up_is_waited_for_before_it_is_refused(wire: str) -> None:
    headers = {
        "openai": {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "500ms"},
        # Their clock may run otherwise than ours; the answer says what it shows.
        "anthropic": {
            "Date": "Sun, 01 Nov 2026 12:00:00 GMT",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2026-11-01T12:00:01Z",
        },
    }
    provider = Provider(headers=headers[wire])
    with run_provider(provider) as address:
        started_at = time.monotonic()
        replies = complete_all(
            make_backend(address, wire, concurrency=1), [question.request for question in make_requests(2)]
        )  # type: ignore[arg-type]
    assert [len(reply.attempt_latencies_seconds) for reply in replies] == [1, 1]
    assert time.monotonic() - started_at >= 0.5


def one(backend: Backend) -> str:
    (reply,) = complete_all(backend, [make_requests(1)[0].request])
    assert reply.completion is not None, reply.error
    return reply.completion.output


def test_azure_is_asked_at_its_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    with run_provider(provider) as address:
        backend = Backend("openai", "gpt-x", address, api_key="secret", cloud="azure")
        monkeypatch.delenv("OPENAI_API_VERSION", raising=False)
        with pytest.raises(RecipeError, match="OPENAI_API_VERSION"):
            one(backend)
        monkeypatch.setenv("OPENAI_API_VERSION", "2026-01-01")
        assert one(backend) == correct_label("row 0")
    ((path, headers, _),) = provider.requests
    assert path == "/openai/deployments/gpt-x/chat/completions" and headers["api-key"] == "secret"


def test_bedrock_is_asked_by_the_models_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    provider = Provider()
    with run_provider(provider) as address:
        backend = Backend("anthropic", "anthropic.claude-x-v1:0", address, api_key="secret", cloud="bedrock")
        assert one(backend) == correct_label("row 0")
    ((path, headers, body),) = provider.requests
    assert path == "/model/anthropic.claude-x-v1:0/invoke" and headers["Authorization"] == "Bearer secret"
    assert "model" not in body and body["anthropic_version"] and body["max_tokens"] == 16


def test_vertex_is_asked_in_its_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_ML_REGION", "europe-west1")
    monkeypatch.delenv("ANTHROPIC_VERTEX_PROJECT_ID", raising=False)
    provider = Provider()
    with run_provider(provider) as address:
        backend = Backend("anthropic", "claude-x@20261001", address, api_key="secret", cloud="vertex")
        with pytest.raises(RecipeError, match="ANTHROPIC_VERTEX_PROJECT_ID"):
            one(backend)
        monkeypatch.setenv("ANTHROPIC_VERTEX_PROJECT_ID", "ours")
        assert one(backend) == correct_label("row 0")
    ((path, headers, body),) = provider.requests
    assert path.startswith("/projects/ours/locations/europe-west1/publishers/anthropic/models/claude-x")
    assert path.endswith(":rawPredict") and headers["Authorization"] == "Bearer secret" and "model" not in body


@pytest.mark.parametrize(
    ("cloud", "library", "package"), [("bedrock", "boto3", "boto3"), ("vertex", "google.auth", "google-auth")]
)
def test_the_library_that_a_cloud_needs_is_named(
    monkeypatch: pytest.MonkeyPatch, cloud: str, library: str, package: str
) -> None:
    with suppress(ImportError):
        import_module(library)
        pytest.skip(f"{package} is installed here")
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK", raising=False)
    with pytest.raises(RecipeError, match=f"pip install {package}"):
        anthropic_messages.make_client(Backend("anthropic", "claude-x", cloud=cloud))  # type: ignore[arg-type]
