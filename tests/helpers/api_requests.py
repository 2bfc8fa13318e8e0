"""What the tests of answers and of batches share: questions, a backend on loopback, a price, and a process to kill.

python -m tests.helpers.api_requests <address> <journal> <wire> <mode> <rows>
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
    """Half of it in a batch."""

    input_usd_per_million: float = 1.0
    output_usd_per_million: float = 10.0

    def usd(self, usage: Usage, batch: bool = False) -> float:
        return self.most_usd(usage.input_tokens or 0, usage.output_tokens or 0, batch)

    def most_usd(self, input_tokens: int, max_output_tokens: int, batch: bool = False) -> float:
        usd = input_tokens * self.input_usd_per_million + max_output_tokens * self.output_usd_per_million
        return usd / 1e6 / (2 if batch else 1)

    def of(self, charged: list[tuple[int, int]]) -> float:
        return sum(self.most_usd(asked, written) for asked, written in charged)


def sum_cost_usd(path: Path) -> float:
    """Return the cost of all lines of a response cache, possible charges included."""
    return sum((response.usd or 0.0) + response.unsure_usd for response in response_cache.read_responses(path))


def make_requests(rows: int, max_tokens: int = 16, instruction: str = "row", repeat: int = 0) -> list[RowRequest]:
    return [make_request(f"T{at:06}", f"{instruction} {at}", max_tokens, repeat) for at in range(rows)]


def make_request(row: str, prompt: str, max_tokens: int = 16, repeat: int = 0) -> RowRequest:
    messages = [{"role": "system", "content": "Say what happened."}, {"role": "user", "content": prompt}]
    return RowRequest(row, repeat, Request(row, messages, max_tokens, Constraint(None, LABEL_SCHEMA)))


MODELS = {"anthropic": "claude-haiku-5-5", "systemone": "jev-1.14.0"}
DECISION_WIRES: tuple[ApiFormat, ...] = ("decisions", "systemone")


def make_endpoint(address: str, wire: ApiFormat = "openai", **changes: Any) -> Backend:
    base_url = address if wire == "anthropic" else f"{address}/v1"
    model = MODELS.get(wire, "gpt-6-luna")
    usual = Backend(wire, model, base_url, api_key="secret", timeout_seconds=2.0, retries=8, concurrency=16)
    return replace(usual, temperature=None, closed=True, **changes)


def as_decisions(asked: list[RowRequest]) -> list[RowRequest]:
    """The same questions for an endpoint that decides."""
    labels = tuple((label, "") for label in LABEL_SCHEMA["enum"])
    return [
        replace(one, request=replace(one.request, choices=ChoiceQuestion("Say what happened.", labels,
                                                                  str(one.request.messages[-1]["content"]))))
        for one in asked
    ]  # fmt: skip


def collect(
    address: str, journal: Path, asked: list[RowRequest], wire: ApiFormat = "openai", **changes: Any
) -> CollectResult:
    settings: dict[str, Any] = {"budget": None, "price": Price(), "poll_seconds": 0.02, **changes}
    asked = as_decisions(asked) if wire in DECISION_WIRES else asked
    who = settings.pop("backend", None) or make_endpoint(address, wire)
    return collection.collect(who, settings.pop("identity", IDENTITY), asked, journal, **settings)


def outputs_by_row(found: CollectResult) -> dict[tuple[str, int], str | None]:
    return {key: one.output for key, one in found.answers.items()}


def read_journal_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal that may be written at this moment."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in whole.split("\n") if line]


def read_pending_batch(path: Path) -> dict[str, Any] | None:
    """What stands in the file of the batch that is on its way."""
    file = path.with_suffix(".batch.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def collect_and_kill(
    address: str, journal: Path, wire: ApiFormat, mode: str, rows: int, when: Callable[[], bool]
) -> None:
    """Collects in a process of its own, which is killed as soon as `when` says so."""
    words = [address, str(journal), wire, mode, str(rows)]
    process = subprocess.Popen([sys.executable, "-m", "tests.helpers.api_requests", *words], cwd=ROOT)
    try:
        for _ in range(60_000):
            assert process.poll() is None, "the process ended before it could be killed"
            if when():
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the moment to kill the process never came")
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    failures.BACKOFF_BASE_SECONDS = 0.01
    address, journal, wire, mode, rows = sys.argv[1:]
    patient = make_endpoint(address, wire, timeout_seconds=60.0 if mode == "batch" else 5.0)  # type: ignore[arg-type]
    collect(address, Path(journal), make_requests(int(rows)), wire, mode=mode, backend=patient)  # type: ignore[arg-type]
