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
from compare.systems.responses import ComparisonContext
from insource.backends import budgets, pricing
from insource.backends.client import ATTEMPT_TIMEOUT_FACTOR, AttemptFailure, call_sdk, stream_results
from insource.backends.response_cache import RowRequest
from insource.backends.types import Backend, Completion, Request, Usage
from insource.backends.wire import openai_decisions
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.tracking import run

# A provider may round to three digits.
PROBABILITY_ROUNDING = 0.0015
MAX_QUESTIONS = 400
DEFAULT_ROWS = 20


@dataclass(frozen=True)
class AnswerDifference:
    """How two answers to the same rows differ."""

    same_choices: int
    most: float
    """The largest difference of a probability of a label."""


@dataclass(frozen=True)
class SharingMeasurement:
    """The same rows asked alone, alone a second time, and all in one request."""

    rows: int
    alone_tokens: int
    together_tokens: int
    by_itself: AnswerDifference
    """Between the two times that rows were asked alone: how much answers vary anyway."""
    together: AnswerDifference

    @property
    def may_share(self) -> bool:
        """Returns whether rows that share a request are answered as rows that are asked alone."""
        return self.together.same_choices == self.rows and self.together.most <= max(
            PROBABILITY_ROUNDING, self.by_itself.most
        )

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


def measure_sharing(backend: Backend, requests: Sequence[Request]) -> SharingMeasurement:
    """Returns how an endpoint answers rows alone and together. Raises StageError where one of them is not answered."""
    first, again = (asyncio.run(_request_individually(backend, requests)) for _ in range(2))
    shared, usage = asyncio.run(_request_together(backend, requests))
    return SharingMeasurement(
        rows=len(requests),
        alone_tokens=sum(one.usage.input_tokens or 0 for one in first),
        together_tokens=usage.input_tokens or 0,
        by_itself=compare_answers(first, again),
        together=compare_answers(first, shared),
    )


def compare_answers(a: Sequence[Completion], b: Sequence[Completion]) -> AnswerDifference:
    """Returns how the answers to the same rows differ; a refusal has no probabilities, and is a choice."""
    same = sum(one.output == other.output for one, other in zip(a, b, strict=True))
    moved = [
        abs(one.probabilities[label] - other.probabilities[label])
        for one, other in zip(a, b, strict=True)
        if one.probabilities and other.probabilities
        for label in one.probabilities
    ]
    return AnswerDifference(same, max(moved, default=0.0))


def shared_request_body(backend: Backend, requests: Sequence[Request]) -> dict[str, Any]:
    """Returns one request with a question for each row."""
    asked = []
    for request in requests:
        (question,) = openai_decisions.build_body(backend, request)["questions"]
        parts = [question["instructions"], openai_decisions.require_choice_question(backend, request).text]
        asked.append({**question, "instructions": [{"type": "input_text", "text": text} for text in parts]})
    return {"model": backend.model, "input": "Each question brings a text of its own.", "questions": asked}


async def _request_individually(backend: Backend, requests: Sequence[Request]) -> list[Completion]:
    found: dict[str, Completion] = {}
    async for reply in stream_results(backend, requests):
        if reply.received is None:
            raise StageError(f"row {reply.id} was not answered: {reply.error}")
        found[reply.id] = reply.received
    return [found[request.id] for request in requests]


async def _request_together(backend: Backend, requests: Sequence[Request]) -> tuple[list[Completion], Usage]:
    async with openai_decisions.make_client(backend) as client:
        call = client.decisions.create(**shared_request_body(backend, requests))
        found = await call_sdk(backend, call, ATTEMPT_TIMEOUT_FACTOR * backend.timeout_seconds)
    if isinstance(found, AttemptFailure):
        raise StageError(f"{len(requests):,} rows in one request were not answered: {found.error}")
    if len(found.answers) != len(requests):
        raise StageError(f"{len(found.answers):,} answers to {len(requests):,} questions")
    single = [found.model_copy(update={"answers": [one]}) for one in found.answers]
    answers = [
        openai_decisions.parse_completion(one, backend, request) for one, request in zip(single, requests, strict=True)
    ]
    return answers, answers[0].usage


def main(arguments: argparse.Namespace) -> int:
    """Measures the decision endpoints of a recipe. Returns 0 where rows may share a request, 3 where they may not."""
    from compare.stage import merge_recipe_settings

    loaded, here = run.load_recipe_and_run(arguments)
    place = first_request.validation_context(here, loaded.name, merge_recipe_settings(loaded, here))
    chosen = [one for one in catalog.api_systems(place.recipe) if one.baseline and one.baseline.api == "decisions"]
    if missing := catalog.skipped_systems(chosen, place.recipe):
        raise RecipeError("\n".join(f"{one.title} cannot be asked: {one.why}" for one in missing))
    if not chosen:
        raise RecipeError(f"{loaded.name} has no baseline with api: decisions")
    preflight.check(place, chosen)
    found = {one.name: _measure_system(place, one, arguments.rows) for one in chosen}
    for name, one in found.items():
        print(*one.lines(name), sep="\n")
    return cli.OK if all(one.may_share for one in found.values()) else cli.GATE_FAILED


def _measure_system(place: ComparisonContext, system: System, rows: int) -> SharingMeasurement:
    assert system.baseline is not None
    backend = api_models.build_first_request(place, system).backend
    requests = row_requests.build_requests(system, place.material, place.material.train[: min(rows, MAX_QUESTIONS)])
    if (price := pricing.lookup_price(system.baseline)) is not None:
        most = 3 * budgets.estimate_cost([RowRequest(one.id, 0, one) for one in requests], price).upper_usd
        if most > place.recipe.compare.budget_usd:
            raise RecipeError(
                f"{len(requests):,} rows asked three times may cost ${most:,.2f}, and compare.budget_usd is "
                f"${place.recipe.compare.budget_usd:,.2f}; ask for fewer (--rows), or raise it"
            )
    return measure_sharing(backend, requests)


def _command() -> int:
    parser = cli.build_parser("compare.together", "Measure whether several rows may share a decision request.")
    cli.add_run_option(parser)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help=f"train rows to ask, 2 to {MAX_QUESTIONS} (20)")
    arguments = parser.parse_intermixed_args()
    if not 2 <= arguments.rows <= MAX_QUESTIONS:
        raise RecipeError(f"--rows: given {arguments.rows}, allowed 2 to {MAX_QUESTIONS}")
    return main(arguments)


if __name__ == "__main__":
    cli.run_cli(_command)
