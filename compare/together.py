"""Whether several rows may share one request to a decision endpoint: measured, by asking the same rows both ways.

    python -m compare.together classifier --rows 20

    alone     <baseline>: 20 requests, ... tokens read; asked again, a probability moves by at most ...
    together  1 request, ... tokens read; 20 of 20 choices the same; a probability moves by at most ...
    yes       rows that share a request are answered as rows that are asked alone        (or no, with exit code 3)

The wire has one input for all questions of a request (openai 3.54, types/decision_create_params.py), so that the rows
that share one stand in the questions' own instructions, behind the task's instruction. Each question has to repeat the
labels, so that little is saved but requests. A comparison therefore asks one row a request; this command says what an
endpoint does with several. It asks train rows, and costs cents: three times what these rows cost in a comparison.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compare import first_request, preflight
from compare.systems import api_models, catalog, row_requests
from compare.systems.catalog import System
from compare.systems.responses import Place
from insource.backends import budgets, pricing
from insource.backends.client import LIMITS_AN_ATTEMPT, Failed, attempted, replies
from insource.backends.response_cache import Question
from insource.backends.types import Backend, Received, Request, Usage
from insource.backends.wire import openai_decisions
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.tracking import run

# A provider may round to three digits.
ROUNDING = 0.0015
MOST_QUESTIONS = 400
ROWS = 20


@dataclass(frozen=True)
class Difference:
    """How two answers to the same rows differ."""

    same_choices: int
    most: float
    """The largest difference of a probability of a label."""


@dataclass(frozen=True)
class Measured:
    """The same rows asked alone, alone a second time, and all in one request."""

    rows: int
    alone_tokens: int
    together_tokens: int
    by_itself: Difference
    """Between the two times that rows were asked alone: how much answers vary anyway."""
    together: Difference

    @property
    def may_share(self) -> bool:
        """Returns whether rows that share a request are answered as rows that are asked alone."""
        return self.together.same_choices == self.rows and self.together.most <= max(ROUNDING, self.by_itself.most)

    def lines(self, name: str) -> list[str]:
        """Returns what the console shows."""
        again = f"asked again, a probability moves by at most {self.by_itself.most:.3f}"
        same = f"{self.together.same_choices:,} of {self.rows:,} choices the same"
        told = "yes       rows that share a request are answered as rows that are asked alone"
        if not self.may_share:
            told = "no        rows that share a request are answered otherwise than rows that are asked alone"
        return [
            f"alone     {name}: {self.rows:,} requests, {self.alone_tokens:,} tokens read; {again}",
            f"together  1 request, {self.together_tokens:,} tokens read; {same}; a probability moves by at most "
            f"{self.together.most:.3f}",
            told,
        ]


def measured(backend: Backend, requests: Sequence[Request]) -> Measured:
    """Returns how an endpoint answers rows alone and together. Raises StageError where one of them is not answered."""
    first, again = (asyncio.run(_alone(backend, requests)) for _ in range(2))
    shared, usage = asyncio.run(_together(backend, requests))
    return Measured(
        rows=len(requests),
        alone_tokens=sum(one.usage.input_tokens or 0 for one in first),
        together_tokens=usage.input_tokens or 0,
        by_itself=difference(first, again),
        together=difference(first, shared),
    )


def difference(a: Sequence[Received], b: Sequence[Received]) -> Difference:
    """Returns how the answers to the same rows differ; a refusal has no probabilities, and is a choice."""
    same = sum(one.output == other.output for one, other in zip(a, b, strict=True))
    moved = [
        abs(one.probabilities[label] - other.probabilities[label])
        for one, other in zip(a, b, strict=True)
        if one.probabilities and other.probabilities
        for label in one.probabilities
    ]
    return Difference(same, max(moved, default=0.0))


def body(backend: Backend, requests: Sequence[Request]) -> dict[str, Any]:
    """Returns one request with a question for each row."""
    asked = []
    for request in requests:
        (question,) = openai_decisions.body(backend, request)["questions"]
        parts = [question["instructions"], openai_decisions.choices_of(backend, request).text]
        asked.append({**question, "instructions": [{"type": "input_text", "text": text} for text in parts]})
    return {"model": backend.model, "input": "Each question brings a text of its own.", "questions": asked}


async def _alone(backend: Backend, requests: Sequence[Request]) -> list[Received]:
    found: dict[str, Received] = {}
    async for reply in replies(backend, requests):
        if reply.received is None:
            raise StageError(f"row {reply.id} was not answered: {reply.error}")
        found[reply.id] = reply.received
    return [found[request.id] for request in requests]


async def _together(backend: Backend, requests: Sequence[Request]) -> tuple[list[Received], Usage]:
    async with openai_decisions.client(backend) as client:
        call = client.decisions.create(**body(backend, requests))
        found = await attempted(backend, call, LIMITS_AN_ATTEMPT * backend.timeout_seconds)
    if isinstance(found, Failed):
        raise StageError(f"{len(requests):,} rows in one request were not answered: {found.error}")
    if len(found.answers) != len(requests):
        raise StageError(f"{len(found.answers):,} answers to {len(requests):,} questions")
    single = [found.model_copy(update={"answers": [one]}) for one in found.answers]
    answers = [openai_decisions.received(one, backend, request) for one, request in zip(single, requests, strict=True)]
    return answers, answers[0].usage


def main(arguments: argparse.Namespace) -> int:
    """Measures the decision endpoints of a recipe. Returns 0 where rows may share a request, 3 where they may not."""
    from compare.stage import asked_now

    loaded, here = run.of_call(arguments)
    place = first_request.place_of(here, loaded.name, asked_now(loaded, here))
    chosen = [one for one in catalog.closed(place.recipe) if one.baseline and one.baseline.api == "decisions"]
    if missing := catalog.not_run(chosen, place.recipe):
        raise RecipeError("\n".join(f"{one.title} cannot be asked: {one.why}" for one in missing))
    if not chosen:
        raise RecipeError(f"{loaded.name} has no baseline with api: decisions")
    preflight.check(place, chosen)
    found = {one.name: _of(place, one, arguments.rows) for one in chosen}
    for name, one in found.items():
        print(*one.lines(name), sep="\n")
    return cli.DONE if all(one.may_share for one in found.values()) else cli.GATE


def _of(place: Place, system: System, rows: int) -> Measured:
    assert system.baseline is not None
    backend = api_models.first(place, system).backend
    requests = row_requests.requests(system, place.material, place.material.train[: min(rows, MOST_QUESTIONS)])
    if (price := pricing.of(system.baseline)) is not None:
        most = 3 * budgets.estimate([Question(one.id, 0, one) for one in requests], price).upper_usd
        if most > place.recipe.compare.budget_usd:
            raise RecipeError(
                f"{len(requests):,} rows asked three times may cost ${most:,.2f}, and compare.budget_usd is "
                f"${place.recipe.compare.budget_usd:,.2f}; ask for fewer (--rows), or raise it"
            )
    return measured(backend, requests)


def _command() -> int:
    parser = cli.parser("compare.together", "Measure whether several rows may share a decision request.")
    cli.add_run(parser)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"train rows to ask, 2 to {MOST_QUESTIONS} (20)")
    arguments = parser.parse_intermixed_args()
    if not 2 <= arguments.rows <= MOST_QUESTIONS:
        raise RecipeError(f"--rows: given {arguments.rows}, allowed 2 to {MOST_QUESTIONS}")
    return main(arguments)


if __name__ == "__main__":
    cli.run(_command)
