"""The API model that answers when the deployed version is not confident.

It is a baseline of the recipe, with the requests of the comparison, limited by route.usd_per_month and
route.api_seconds.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from compare.records import System
from compare.systems import api_models, catalog, row_requests
from deploy.answers.local_model import ScoredAnswer, to_system_answer
from deploy.answers.spending import Ledger, MonthlyBudget
from deploy.answers.task import Task
from insource.backends import api_errors, pricing
from insource.backends.client import API_MODULES, BackendClient
from insource.backends.failures import NOT_SENT
from insource.backends.types import Backend, Request, RequestResult
from insource.config.errors import StageError
from insource.config.schema.compare import Baseline
from insource.tasks.data_row import InputRow
from insource.tasks.pii.inputs import CleanedInput

FAILED, REFUSED = "api_failed", "api_refused"
OVER_BUDGET, INVALID = "over_budget", "api_answer_invalid"
"""Why there is no answer of the API model. REFUSED: it refuses to answer this input."""
MAX_FAILURES, PAUSE_SECONDS = 5, 10.0
"""After MAX_FAILURES successive failures the API model gets no requests for PAUSE_SECONDS."""
MAX_ABANDONED = 64
"""Maximum number of calls that continue after their clients disconnected. Further ones are cancelled."""
_PROBLEM_MESSAGES = {
    "not_a_label": "it is none of the labels",
    "not_json": "it is not JSON",
    "wrong_schema": "it does not fit the schema",
    "invented_key": "it has a key that was not asked for",
    "empty": "it is empty",
}


@dataclass(frozen=True)
class NoEscalation:
    """Why nothing is escalated: the reason code of answers, and a message for the console."""

    reason: str
    message: str


class Escalation:
    """An API model behind the gateway."""

    def __init__(self, task: Task, system: System, backend: Backend, ledger: Ledger | None) -> None:
        assert system.baseline is not None
        self.task, self.system, self.name = task, system, system.name
        price = pricing.lookup_price(system.baseline)
        self.ledger = ledger if price else None
        """Ledger of its costs; None: it costs nothing."""
        self._budget = MonthlyBudget(ledger, price) if ledger and price else None
        self._clients = [BackendClient(backend, self._budget)]
        self._failures, self._paused_until = 0, 0.0
        self._pending: set[asyncio.Task[ScoredAnswer | str]] = set()
        self._abandoned: set[asyncio.Task[ScoredAnswer | str]] = set()
        """Calls whose clients disconnected."""

    async def query(self, task_input: CleanedInput) -> ScoredAnswer | str:
        """Return a valid answer of the API model, or why there is none: FAILED, REFUSED, OVER_BUDGET or INVALID.

        The request continues if the client disconnects, up to MAX_ABANDONED: it is paid for, and its cost must be
        recorded. A cancelled one counts with its maximum cost.
        """
        if time.monotonic() < self._paused_until:
            return FAILED
        row: InputRow = {"id": secrets.token_hex(8), "input": {"text": task_input.text}}
        (request,) = row_requests.build_requests(self.system, self.task.dataset, [row])
        pending = asyncio.create_task(self._query_with_timeout(request))
        self._pending.add(pending)
        pending.add_done_callback(self._on_done)
        result: ScoredAnswer | str
        try:
            result = await asyncio.shield(pending)
        except asyncio.CancelledError:
            self._abandon(pending)
            raise
        except TimeoutError:
            result = FAILED
        except StageError:
            return OVER_BUDGET  # the cost cannot be recorded
        if result == FAILED:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                self._paused_until = time.monotonic() + PAUSE_SECONDS
        else:
            self._failures = 0
        return result

    async def close(self) -> None:
        """Cancel pending requests and close the connections."""
        for pending in self._pending:
            pending.cancel()
        for client in self._clients:
            await client.close()

    def _abandon(self, pending: asyncio.Task[ScoredAnswer | str]) -> None:
        """Let a call without a client continue, or cancel it if too many do."""
        if len(self._abandoned) >= MAX_ABANDONED:
            pending.cancel()
            return
        self._abandoned.add(pending)
        pending.add_done_callback(self._abandoned.discard)

    def _on_done(self, pending: asyncio.Task[ScoredAnswer | str]) -> None:
        self._pending.discard(pending)
        if not pending.cancelled():
            pending.exception()  # retrieve the exception: there may be no waiting request any more

    async def _query_with_timeout(self, request: Request) -> ScoredAnswer | str:
        async with asyncio.timeout(self.task.recipe.route.api_seconds):
            return await self._query_and_repair(request)

    async def _query_and_repair(self, request: Request) -> ScoredAnswer | str:
        result = await self._query_once(request)
        if isinstance(result, str):
            return result
        problem = result.parsed.problem
        if problem in _PROBLEM_MESSAGES and request.choices is None:
            result = await self._query_once(_build_repair_request(request, result.answer.output or "", problem))
        return INVALID if isinstance(result, ScoredAnswer) and result.parsed.problem is not None else result

    async def _query_once(self, request: Request) -> ScoredAnswer | str:
        reply = await self._send(request)
        if reply.completion is None:
            if reply.error == NOT_SENT.error:
                return OVER_BUDGET
            return FAILED if reply.retryable else REFUSED
        answer = to_system_answer(reply.completion)
        parsed = self.task.parse(answer)
        return ScoredAnswer(answer, parsed, self.task.stated_confidence(answer) if parsed.problem is None else None)

    async def _send(self, request: Request) -> RequestResult:
        """Return the result of a request. Retry without each parameter that the provider rejects by name."""
        while True:
            client = self._clients[-1]
            reply = await client.complete(request)
            optional = API_MODULES[client.backend.api_format].OPTIONAL_PARAMETERS
            rejected = api_errors.find_rejected_parameter(reply.error or "", optional)
            if rejected is None or rejected in client.backend.omitted_parameters:
                return reply
            # A concurrent request may have replaced the client meanwhile.
            if client is self._clients[-1]:
                backend = replace(client.backend, omitted_parameters=(*client.backend.omitted_parameters, rejected))
                self._clients.append(BackendClient(backend, self._budget))


def build_escalation(task: Task, registry_dir: Path) -> Escalation | NoEscalation:
    """Return the API model for the escalated requests of a task, or why there is none.

    Costs are recorded in `registry_dir`, which is registry/<name>. Raise RecipeError if the model family does not
    accept the settings of the recipe.
    """
    recipe, name = task.recipe, choose_baseline(task)
    if not recipe.privacy.data_may_leave:
        return NoEscalation("data_may_not_leave", "privacy.data_may_leave is false")
    systems = [candidate for candidate in catalog.api_systems(recipe) if candidate.name == name]
    if not systems or systems[0].baseline is None:
        return NoEscalation("no_api_model", "the recipe names no API model (route.baseline)")
    system, baseline = systems[0], systems[0].baseline
    if problem := _find_unsupported(system, baseline):
        return NoEscalation("no_api_model", f"{name} {problem}; name another one (route.baseline)")
    if skipped := catalog.skipped_systems([system], recipe):
        return NoEscalation("no_api_model", skipped[0].reason)
    if unknown_prices := pricing.find_unknown_prices([baseline]):
        return NoEscalation("no_api_model", unknown_prices[0])
    if not recipe.route.mirror and (problem := _find_threshold_problem(task)):
        return NoEscalation("no_threshold", problem)
    ledger = None
    if pricing.lookup_price(baseline) is not None:
        if not recipe.route.usd_per_month:
            return NoEscalation("no_budget", "route.usd_per_month is 0")
        ledger = Ledger(registry_dir / "spend", recipe.route.usd_per_month)
    # The client imports both SDKs for its first request. In the event loop all other requests would wait for it.
    import anthropic  # noqa: F401
    import openai.types.chat  # noqa: F401

    seconds = min(baseline.timeout_seconds, recipe.route.api_seconds)
    backend = replace(
        api_models.build_endpoint(baseline, task.dataset),
        timeout_seconds=seconds,
        max_retry_wait_seconds=recipe.route.api_seconds,
    )
    return Escalation(task, system, backend, ledger)


def choose_baseline(task: Task) -> str | None:
    """Return the name of the baseline that answers below the threshold.

    The order is route.baseline, route.not_worse_than, the API model of the preregistration, the first API model.
    """
    configured = task.recipe.route.baseline or task.recipe.route.not_worse_than
    api_names = {system.name for system in catalog.api_systems(task.recipe)}
    return configured or next((name for name in catalog.fallback_names(task.recipe) if name in api_names), None)


def _find_threshold_problem(task: Task) -> str | None:
    """Return why there is no usable threshold, None if there is one."""
    if not task.routing.matches_target(task.recipe.route):
        return "the threshold is of another target than `route` names now; `make compare`, then `make deploy`"
    if task.routing.threshold is None:
        return task.routing.no_threshold_reason or "routing.json has no threshold"
    return None


def _find_unsupported(system: System, baseline: Baseline) -> str | None:
    """Return why the gateway cannot send requests to a baseline as the comparison does, None if it can."""
    if system.shots:
        return "is asked with examples of train, which are not deployed"
    if isinstance(baseline.instruction, list):
        return "has several instructions, of which the comparison chose one"
    return None


def _build_repair_request(request: Request, output: str, problem: str) -> Request:
    message = f"This is no answer of the task: {_PROBLEM_MESSAGES[problem]}. Answer again, with the answer alone."
    extra = [{"role": "assistant", "content": output}, {"role": "user", "content": message}]
    return replace(request, id=f"{request.id}-again", messages=[*request.messages, *extra])
