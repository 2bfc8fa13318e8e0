"""Requests, a backend on loopback, a price, and a process to kill, for tests of live and batch mode.

python -m tests.helpers.api_requests <address> <cache> <api format> <mode> <rows>
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from insource.backends import collection, failures, response_cache
from insource.backends.collection import CollectResult
from insource.backends.types import ApiFormat, Backend, ChoiceQuestion, Constraint, Request, RowRequest, Usage
from tests.conftest import ROOT

IDENTITY = ["openai", "a provider on loopback"]
LABEL_SCHEMA: dict[str, Any] = {"type": "string", "enum": ["late", "lost", "broken"]}


@dataclass(frozen=True)
class Price:
    """A price of tokens; batches cost half."""

    input_usd_per_million: float = 1.0
    output_usd_per_million: float = 10.0

    def usd(self, usage: Usage, batch: bool = False) -> float:
        return self.max_usd(usage.input_tokens or 0, usage.output_tokens or 0, batch)

    def max_usd(self, input_tokens: int, max_output_tokens: int, batch: bool = False) -> float:
        usd = input_tokens * self.input_usd_per_million + max_output_tokens * self.output_usd_per_million
        return usd / 1e6 / (2 if batch else 1)

    def sum_usd(self, usages: list[tuple[int, int]]) -> float:
        """Return the cost of (input tokens, output tokens) of several requests."""
        return sum(self.max_usd(input_tokens, output_tokens) for input_tokens, output_tokens in usages)


def sum_cost_usd(path: Path) -> float:
    """Return the cost of all lines of a response cache, possible charges included."""
    return sum(response.total_usd for response in response_cache.read_responses(path))


def make_requests(count: int, max_tokens: int = 16, instruction: str = "row", repeat: int = 0) -> list[RowRequest]:
    return [make_request(f"T{index:06}", f"{instruction} {index}", max_tokens, repeat) for index in range(count)]


def make_request(row_id: str, prompt: str, max_tokens: int = 16, repeat: int = 0) -> RowRequest:
    messages = [{"role": "system", "content": "Say what happened."}, {"role": "user", "content": prompt}]
    return RowRequest(row_id, repeat, Request(row_id, messages, max_tokens, Constraint(None, LABEL_SCHEMA)))


MODELS = {"anthropic": "claude-haiku-5-5", "systemone": "jev-1.14.0"}
DECISION_WIRES: tuple[ApiFormat, ...] = ("decisions", "systemone")


def make_backend(address: str, wire: ApiFormat = "openai", **kwargs: Any) -> Backend:
    base_url = address if wire == "anthropic" else f"{address}/v1"
    model = MODELS.get(wire, "gpt-6-luna")
    default = Backend(wire, model, base_url, api_key="secret", timeout_seconds=2.0, retries=8, concurrency=16)
    return replace(default, temperature=None, is_provider_api=True, **kwargs)


def to_choice_requests(row_requests: list[RowRequest]) -> list[RowRequest]:
    """Return the requests with choice questions, for decision endpoints."""
    labels = tuple((label, "") for label in LABEL_SCHEMA["enum"])
    return [
        replace(row_request, request=replace(row_request.request, choices=ChoiceQuestion("Say what happened.", labels,
                                                                  str(row_request.request.messages[-1]["content"]))))
        for row_request in row_requests
    ]  # fmt: skip


def collect(
    address: str, cache_path: Path, requests: list[RowRequest], wire: ApiFormat = "openai", **kwargs: Any
) -> CollectResult:
    settings: dict[str, Any] = {"budget": None, "price": Price(), "poll_seconds": 0.02, **kwargs}
    requests = to_choice_requests(requests) if wire in DECISION_WIRES else requests
    backend = settings.pop("backend", None) or make_backend(address, wire)
    return collection.collect(backend, settings.pop("identity", IDENTITY), requests, cache_path, **settings)


def outputs_by_row(result: CollectResult) -> dict[tuple[str, int], str | None]:
    """Return {(row id, repeat): output}."""
    return {key: response.output for key, response in result.answers.items()}


def read_cache_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a cache that a process may be writing."""
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in complete.split("\n") if line]


def read_pending_batch(path: Path) -> dict[str, Any] | None:
    """Return the content of the file of the pending batch, None if there is none."""
    file = path.with_suffix(".batch.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def collect_and_kill(
    address: str, cache_path: Path, wire: ApiFormat, mode: str, rows: int, should_kill: Callable[[], bool]
) -> None:
    """Run `collect` in a process of its own, which is killed when `should_kill` returns True."""
    args = [address, str(cache_path), wire, mode, str(rows)]
    process = subprocess.Popen([sys.executable, "-m", "tests.helpers.api_requests", *args], cwd=ROOT)
    try:
        for _ in range(60_000):
            assert process.poll() is None, "the process ended before it could be killed"
            if should_kill():
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the moment to kill the process never came")
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    failures.BACKOFF_BASE_SECONDS = 0.01
    address, cache, wire, mode, rows = sys.argv[1:]
    slow_backend = make_backend(address, wire, timeout_seconds=60.0 if mode == "batch" else 5.0)  # type: ignore[arg-type]
    collect(address, Path(cache), make_requests(int(rows)), wire, mode=mode, backend=slow_backend)  # type: ignore[arg-type]
