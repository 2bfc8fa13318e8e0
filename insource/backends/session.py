"""The state of one invocation of `collect`, shared by live and batch mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from insource.backends.budgets import SystemBudget
from insource.backends.response_cache import CachedResponse, ResponseCache
from insource.backends.types import Backend, RowRequest


@dataclass(frozen=True)
class CollectSession:
    """One invocation: what is to be asked, by key, and where answers go."""

    backend: Backend
    journal: ResponseCache
    waiting: Mapping[str, Sequence[RowRequest]]
    """Several questions have one key where their requests are the same."""
    purse: SystemBudget | None
    answers: dict[tuple[str, int], CachedResponse]
    on_answer: Callable[[CachedResponse], None]

    def tell(self, response: CachedResponse) -> None:
        """Takes a row that is in the journal as the answer to the questions that it answers."""
        for index, question in enumerate(self.waiting.get(response.key, ())):
            answered = replace(response, id=question.id, reused=response.reused or index > 0)
            self.answers[question.id, question.repeat] = answered
            self.on_answer(answered)
