"""The context of a comparison, the requests to a system, and the conversion of cached answers to its responses."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare.eval_dataset import EvalDataset
from compare.records import System, SystemAnswer, SystemResponses
from compare.scoring import predictions
from insource.backends import collection
from insource.backends.budgets import Budget
from insource.backends.collection import CollectResult
from insource.backends.pricing import TokenPrice
from insource.backends.response_cache import CachedResponse
from insource.backends.types import Backend, RowRequest
from insource.config.recipe import Recipe
from insource.system import atomic_files, progress_bar
from insource.tracking.run import Run


@dataclass(frozen=True)
class ComparisonContext:
    """The run, recipe and dataset of a comparison."""

    run: Run
    recipe_name: str
    recipe: Recipe
    dataset: EvalDataset

    @property
    def cache_dir(self) -> Path:
        """Return the folder of the cached answers of all systems of the recipe."""
        return self.run.folder.parent / ".answers"

    def cache_path(self, system: System) -> Path:
        """Return the cache file of a system's answers. Trained weights belong to one run, so their file is per run."""
        prefix = f"{self.run.id}." if system.kind in ("tuned", "head") else ""
        return self.cache_dir / f"{prefix}{predictions.slug(system.name)}.jsonl"


@dataclass(frozen=True)
class SystemRequests:
    """A system behind an API, and all requests to it."""

    system: System
    endpoint: Backend
    identity: Any
    """Identity of the system in the cache, whatever its address."""
    requests: Sequence[RowRequest]
    cache_path: Path

    def count_pending(self) -> int:
        """Return the number of requests without a cached answer."""
        return collection.count_pending_requests(self.endpoint, self.identity, self.requests, self.cache_path)

    def cached_cost_usd(self) -> float:
        """Return the cost of the cached answers, including costs that may have been charged."""
        return collection.sum_cached_cost_usd(self.endpoint, self.identity, self.requests, self.cache_path)

    def collect(self, budget: Budget | None = None, price: TokenPrice | None = None) -> CollectResult:
        """Return the answers, cached and new ones, with a progress bar."""
        system = self.system
        with progress_bar.show_progress("answered", len(self.requests), visible=self.count_pending() > 0) as advance:
            n_done = 0

            def on_response(_: CachedResponse) -> None:
                nonlocal n_done
                n_done += 1
                advance(n_done, system.title)

            return collection.collect(
                self.endpoint,
                self.identity,
                self.requests,
                self.cache_path,
                budget=budget,
                price=price,
                mode=system.baseline.mode if system.baseline else "live",
                on_response=on_response,
                log=lambda message: print(f"batch     {system.name}: {message}", file=sys.stderr, flush=True),
            )


def load_or_store(path: Path, identity: object, fresh: Mapping[str, object] | None) -> Mapping[str, Any] | None:
    """Store `fresh` if given and return it. Otherwise return the stored value.

    None if no value is stored, or if the stored one has another identity.
    """
    digest = atomic_files.digest(identity)
    if fresh is not None:
        atomic_files.write_json(path, {"of": digest, **fresh})
    if not path.exists():
        return None
    cached: dict[str, Any] = atomic_files.read_json(path)
    return cached if cached["of"] == digest else None


def to_responses(
    system_requests: SystemRequests, collected: CollectResult, context: ComparisonContext
) -> SystemResponses:
    """Return the collected answers as responses: test rows, calibration rows and repeats."""
    requested = {(request.id, request.repeat) for request in system_requests.requests}
    test, calibration = context.dataset.test, context.dataset.calibration
    return SystemResponses(
        system_requests.system,
        test_answers=[to_system_answer(collected, row["id"]) for row in test if (row["id"], 0) in requested],
        calibration_answers=[
            to_system_answer(collected, row["id"]) for row in calibration if (row["id"], 0) in requested
        ],
        repeat_answers=[to_system_answer(collected, row["id"], 1) for row in test if (row["id"], 1) in requested],
        complete=collected.complete,
        incomplete_reason=collected.why_incomplete,
        reused=collected.n_reused,
        retries=collected.n_retries,
        concurrency=system_requests.endpoint.concurrency,
    )


def to_system_answer(collected: CollectResult, row_id: str, repeat: int = 0) -> SystemAnswer:
    """Return the answer to a row."""
    response = collected.answers.get((row_id, repeat))
    if response is None:
        return SystemAnswer(row_id, None, error="not asked", not_queried=True)
    return SystemAnswer(
        id=row_id,
        output=response.output,
        finish_reason=response.finish_reason or "stop",
        model_id=response.model_id or "",
        log_probability=response.log_probability,
        field_log_probability=response.field_log_probability,
        request_sha256=response.request_sha256,
        input_tokens=response.input_tokens,
        output_tokens=response.output_tokens,
        reasoning_tokens=response.reasoning_tokens,
        cached_tokens=response.cached_tokens,
        latency_seconds=response.latency_seconds,
        attempt_latencies_seconds=response.attempt_latencies_seconds,
        reused=response.reused,
        cost_usd=response.usd,
        error=response.error,
        may_pass=not response.final,
        probabilities=response.probabilities,
        not_queried=response.refused,
    )
