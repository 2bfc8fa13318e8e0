"""What leaves this machine and this user, and what does not; and what a full disk leaves."""

import os
import resource
import signal
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from insource.backends import response_cache
from insource.backends.client import complete_all
from insource.backends.types import ApiFormat, Backend, Request
from insource.config.errors import RecipeError, StageError
from insource.config.load import load
from tests.conftest import Command
from tests.helpers.errors import raises_error

ASKED = [Request("1", [{"role": "user", "content": "a customer's own words"}], 5)]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy that the environment names; yields the lines of the requests that it got."""
    received: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            received.append(self.requestline)
            self.send_response(502)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_CONNECT = _refuse  # noqa: N815 (http.server's names)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield received
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("url", "direct", "uses_proxy"),
    [
        ("http://models.invalid/v1", False, False),
        ("http://models.invalid/v1", True, False),
        ("https://models.invalid/v1", True, False),
        ("https://models.invalid/v1", False, True),
        ("http://127.0.0.1:9/v1", False, False),
    ],
)
def test_a_proxy_gets_what_may_leave_and_is_encrypted(
    wire: ApiFormat, url: str, direct: bool, uses_proxy: bool, proxy: list[str]
) -> None:
    backend = Backend(wire, "m", base_url=url, api_key="key", retries=0, bypass_proxy=direct, timeout_seconds=10)
    (reply,) = complete_all(backend, ASKED)
    assert reply.completion is None
    assert [line.split()[0] for line in proxy] == (["CONNECT"] if uses_proxy else [])


@pytest.mark.parametrize(
    ("url", "may_leave", "message"),
    [
        ("https://user:pass-word@models.example/v1", True, "holds a user, a password or a query"),
        ("https://models.example/v1?api_key=pass-word", True, "holds a user, a password or a query"),
        ("http://models.example/v1", False, "plain http"),
        ("http://models.example/v1", True, None),
        ("https://models.example/v1", False, None),
        ("http://127.0.0.1:9/v1", False, None),
    ],
)
def test_addresses_that_would_copy_a_secret_or_send_rows_in_clear_are_refused(
    url: str, may_leave: bool, message: str | None
) -> None:
    overrides = [
        f"privacy.data_may_leave={str(may_leave).lower()}",
        "privacy.trusted_hosts=[models.example]",
        f"compare.baselines=[{{provider: openai, model: m, base_url: '{url}', api_key_env: PATH}}]",
    ]
    if message is None:
        load("classifier", overrides, "cpu")
        return
    with raises_error(RecipeError, "INS-R001", match=message) as error:
        load("classifier", overrides, "cpu")
    assert "compare.baselines.0.base_url" in str(error.value) and "pass-word" not in str(error.value)


@pytest.mark.parametrize(("umask", "mode_bits"), [("", 0), ("027", 0o040), ("022", 0o044)])
def test_what_is_prepared_belongs_to_its_user_alone(
    umask: str, mode_bits: int, small_recipe: Path, python: Command, tmp_path: Path
) -> None:
    previous_umask = os.umask(0o022)
    try:
        completed = python("data_prep", small_recipe, "--hardware", "cpu", INSOURCE_UMASK=umask)
    finally:
        os.umask(previous_umask)
    assert completed.returncode == 0, completed.stderr
    (file,) = (tmp_path / "runs").rglob("train.jsonl")
    for path in (file, *file.parents[: len(file.relative_to(tmp_path).parts) - 1]):
        assert stat.S_IMODE(path.stat().st_mode) & 0o044 == mode_bits, path


def test_a_umask_that_is_none_is_told(small_recipe: Path, python: Command) -> None:
    completed = python("data_prep", small_recipe, "--hardware", "cpu", INSOURCE_UMASK="private")
    assert completed.returncode == 2 and "INSOURCE_UMASK: given 'private'" in completed.stderr


def test_answers_that_do_not_fit_on_the_disk_are_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with response_cache.open_cache(path) as cache:
        cache.append([answered("a", "x")])
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            max_bytes = path.stat().st_size + 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
            with response_cache.open_cache(path) as cache:
                cache.append([answered("b", "y" * 500)])
        except StageError as error:
            code = 0 if "cannot be written" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with response_cache.open_cache(path) as cache:
        assert [row.key for row in cache.responses.values()] == ["a"]
        cache.append([answered("c", "z")])
    assert [row.key for row in response_cache.read_responses(path)] == ["a", "c"]


def answered(key: str, output: str) -> response_cache.CachedResponse:
    return response_cache.CachedResponse(
        key=key,
        id=key,
        repeat=0,
        request_sha256="",
        output=output,
        model_id="m",
        finish_reason="stop",
        log_probability=None,
        input_tokens=1,
        output_tokens=1,
        reasoning_tokens=None,
        cached_tokens=None,
        latency_seconds=0.1,
        attempt_latencies_seconds=(0.1,),
        error=None,
        final=True,
        usd=0.01,
        batch=False,
        requested_at="",
    )
