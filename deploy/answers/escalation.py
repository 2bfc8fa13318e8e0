"""The API model that answers what the deployed version is not sure of: a baseline of the recipe, asked as by the
comparison, within route.usd_per_month and route.api_seconds."""

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from compare.systems import api_models, catalog, row_requests
from compare.systems.catalog import System
from deploy.answers.local_model import Judged, answer_of
from deploy.answers.spending import Ledger, MonthlyPurse
from deploy.answers.task import Task
from insource.backends import api_errors, pricing
from insource.backends.client import NOT_SENT, WIRES, Line
from insource.backends.types import Backend, Reply, Request
from insource.config.errors import StageError
from insource.config.schema.compare import Baseline
from insource.tasks.pii.inputs import Input

FAILED, REFUSED = "api_failed", "api_refused"
OVER_BUDGET, INVALID = "over_budget", "api_answer_invalid"
"""Why there is no answer of the API model. REFUSED: it will not answer this input."""
FAILURES, REST_SECONDS = 5, 10.0
"""So many failures in succession, and it is left alone for so long."""
_IN_WORDS = {
    "not_a_label": "it is none of the labels",
    "not_json": "it is not JSON",
    "wrong_schema": "it does not fit the schema",
    "invented_key": "it has a key that was not asked for",
    "empty": "it is empty",
}


@dataclass(frozen=True)
class Kept:
    """Why nothing is escalated: the reason in answers, and in words for the console."""

    reason: str
    words: str


class Escalation:
    """An API model behind the gateway."""

    def __init__(self, task: Task, system: System, backend: Backend, ledger: Ledger | None) -> None:
        assert system.baseline is not None
        self.task, self.system, self.name = task, system, system.name
        price = pricing.of(system.baseline)
        self.ledger = ledger if price else None
        """Of what it costs; None: nothing."""
        self._purse = MonthlyPurse(ledger, price) if ledger and price else None
        self.priced = self._purse is not None
        self._lines = [Line(backend, self._purse)]
        self._failures, self._silent_until = 0, 0.0
        self._asking: set[asyncio.Task[Judged | str]] = set()

    async def ask(self, given: Input) -> Judged | str:
        """Returns a valid answer of the API model, or why there is none: FAILED, REFUSED, OVER_BUDGET or INVALID.

        A client that is gone meanwhile ends nothing: what was asked is paid for, and its price has to be known.
        """
        if time.monotonic() < self._silent_until:
            return FAILED
        row = {"id": secrets.token_hex(8), "input": {"text": given.text}}
        (request,) = row_requests.requests(self.system, self.task.material, [row])
        asking = asyncio.create_task(self._in_time(request))
        self._asking.add(asking)
        asking.add_done_callback(self._ended)
        found: Judged | str
        try:
            found = await asyncio.shield(asking)
        except TimeoutError:
            found = FAILED
        except StageError:
            return OVER_BUDGET  # what is spent cannot be written down
        if found == FAILED:
            self._failures += 1
            if self._failures >= FAILURES:
                self._silent_until = time.monotonic() + REST_SECONDS
        else:
            self._failures = 0
        return found

    async def close(self) -> None:
        """Closes its connections, and ends what is still asked."""
        for asking in self._asking:
            asking.cancel()
        for line in self._lines:
            await line.close()

    def _ended(self, asking: asyncio.Task[Judged | str]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # nobody may wait for it any more

    async def _in_time(self, request: Request) -> Judged | str:
        async with asyncio.timeout(self.task.recipe.route.api_seconds):
            return await self._asked(request)

    async def _asked(self, request: Request) -> Judged | str:
        found = await self._judged(request)
        if isinstance(found, str):
            return found
        problem = found.parsed.problem
        if problem in _IN_WORDS and request.choices is None:
            found = await self._judged(_repair(request, found.answer.output or "", problem))
        return INVALID if isinstance(found, Judged) and found.parsed.problem is not None else found

    async def _judged(self, request: Request) -> Judged | str:
        reply = await self._reply(request)
        if reply.received is None:
            if reply.error == NOT_SENT.error:
                return OVER_BUDGET
            return FAILED if reply.again else REFUSED
        answer = answer_of(reply.received)
        parsed = self.task.read(answer)
        return Judged(answer, parsed, self.task.told_confidence(answer) if parsed.problem is None else None)

    async def _reply(self, request: Request) -> Reply:
        """Returns the reply, asked again without a parameter that the provider refuses by name."""
        while True:
            line = self._lines[-1]
            reply = await line.reply(request)
            optional = WIRES[line.backend.wire].OPTIONAL
            refused = api_errors.parameter(reply.error or "", optional)
            if refused is None or refused in line.backend.left_out:
                return reply
            if line is self._lines[-1]:
                backend = replace(line.backend, left_out=(*line.backend.left_out, refused))
                self._lines.append(Line(backend, self._purse))


def of(task: Task, place: Path) -> Escalation | Kept:
    """Returns the API model that a task's requests may be escalated to, or why there is none. Raises RecipeError where
    its model family does not take what the recipe sets.

    `place`: registry/<name>, where what is spent is written down.
    """
    recipe, name = task.recipe, baseline_of(task)
    if not recipe.privacy.data_may_leave:
        return Kept("data_may_not_leave", "privacy.data_may_leave is false")
    chosen = [one for one in catalog.closed(recipe) if one.name == name]
    if not chosen or chosen[0].baseline is None:
        return Kept("no_api_model", "the recipe names no API model (route.baseline)")
    system, baseline = chosen[0], chosen[0].baseline
    if told := _cannot(system, baseline):
        return Kept("no_api_model", f"{name} {told}; name another one (route.baseline)")
    if missing := catalog.not_run([system], recipe):
        return Kept("no_api_model", missing[0].why)
    if unknown := pricing.unknown([baseline]):
        return Kept("no_api_model", unknown[0])
    if not recipe.route.mirror and (told := _no_threshold(task)):
        return Kept("no_threshold", told)
    ledger = None
    if pricing.of(baseline) is not None:
        if not recipe.route.usd_per_month:
            return Kept("no_budget", "route.usd_per_month is 0")
        ledger = Ledger(place / "spend", recipe.route.usd_per_month)
    seconds = min(baseline.timeout_seconds, recipe.route.api_seconds)
    backend = replace(
        api_models.remote(baseline, task.material),
        timeout_seconds=seconds,
        longest_wait_seconds=recipe.route.api_seconds,
    )
    return Escalation(task, system, backend, ledger)


def baseline_of(task: Task) -> str | None:
    """Returns the name of the baseline that answers below the threshold: the one that the recipe names for that, or as
    its target, else that of the plan, else the first."""
    named = task.recipe.route.baseline or task.recipe.route.not_worse_than
    closed = {one.name for one in catalog.closed(task.recipe)}
    return named or next((name for name in catalog.for_the_rest(task.recipe) if name in closed), None)


def _no_threshold(task: Task) -> str | None:
    """Returns why no threshold says what to escalate, None where one does."""
    if not task.routing.keeps(task.recipe.route):
        return "the threshold is of another target than `route` names now; `make compare`, then `make deploy`"
    if task.routing.threshold is None:
        return task.routing.why_none or "routing.json has no threshold"
    return None


def _cannot(system: System, baseline: Baseline) -> str | None:
    """Returns what the gateway cannot give to a baseline, None where it can ask it as the comparison does."""
    if system.shots:
        return "is asked with examples of train, which are not deployed"
    if isinstance(baseline.instruction, list):
        return "has several instructions, of which the comparison chose one"
    return None


def _repair(request: Request, output: str, problem: str) -> Request:
    told = f"This is no answer of the task: {_IN_WORDS[problem]}. Answer again, with the answer alone."
    more = [{"role": "assistant", "content": output}, {"role": "user", "content": told}]
    return replace(request, id=f"{request.id}-again", messages=[*request.messages, *more])
