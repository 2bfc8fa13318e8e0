"""The state of one `collect` call, shared by live and batch mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from insource.backends.budgets import SystemBudget
from insource.backends.response_cache import CachedResponse, ResponseCache
from insource.backends.types import Backend, RowRequest


@dataclass(frozen=True)
class CollectSession:
    """One invocation of `collect`: the pending requests by key, and the target of the responses."""

    backend: Backend
    cache: ResponseCache
    pending: Mapping[str, Sequence[RowRequest]]
    """Several row requests share a key if their request bodies are identical."""
    system_budget: SystemBudget | None
    answers: dict[tuple[str, int], CachedResponse]
    on_response: Callable[[CachedResponse], None]

    def record(self, response: CachedResponse) -> None:
        """Record a cached response as the answer to all row requests with its key."""
        for index, row_request in enumerate(self.pending.get(response.key, ())):
            row_response = replace(response, id=row_request.id, reused=response.reused or index > 0)
            self.answers[row_request.id, row_request.repeat] = row_response
            self.on_response(row_response)
