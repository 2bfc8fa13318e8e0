"""Measure whether several rows may share one request to a decision endpoint, by requesting the same rows both ways.

    python -m compare.together classifier --rows 20

    alone     <baseline>: 20 requests, ... tokens read; queried again, a probability moves by at most ...
    together  1 request, ... tokens read; 20 of 20 choices the same; a probability moves by at most ...
    yes       rows that share a request get the answers of single requests        (or no, with exit code 3)

The API format has one input for all questions of a request (openai 3.54, types/decision_create_params.py). Rows that
share a request are therefore put into the instructions of their questions, after the task's instruction. Each question
repeats the labels, so that sharing saves little but requests. A comparison sends one row per request; this command
measures an endpoint with several. It uses train rows. It costs cents: three times as much as these rows cost in a
comparison.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compare import first_request, preflight
from compare.recipe_settings import merge_recipe_settings
from compare.records import System
from compare.systems import api_models, catalog, row_requests
from compare.systems.responses import ComparisonContext
from insource.backends import budgets, pricing
from insource.backends.client import ATTEMPT_TIMEOUT_FACTOR, call_sdk, stream_results
from insource.backends.failures import AttemptFailure
from insource.backends.types import Backend, Completion, Request, RowRequest, Usage
from insource.backends.wire import openai_decisions
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.tracking import run

# A provider may round probabilities to three digits.
PROBABILITY_ROUNDING = 0.0015
MAX_QUESTIONS = 400
DEFAULT_ROWS = 20


@dataclass(frozen=True)
class AnswerDifference:
    """Difference of two lists of answers to the same rows."""

    same_choices: int
    max_difference: float
    """The largest difference of a label's probability."""


@dataclass(frozen=True)
class SharingMeasurement:
    """Results for the same rows: one per request, the same a second time, and all in one request."""

    rows: int
    individual_tokens: int
    together_tokens: int
    repeated: AnswerDifference
    """Between the two runs with one row per request: the variation without sharing."""
    together: AnswerDifference

    @property
    def may_share(self) -> bool:
        """Return whether a shared request gives the same answers as single requests.

        Probabilities may differ as much as they do without sharing.
        """
        return self.together.same_choices == self.rows and self.together.max_difference <= max(
            PROBABILITY_ROUNDING, self.repeated.max_difference
        )

    def lines(self, name: str) -> list[str]:
        """Return the console lines."""
        repeat_text = f"queried again, a probability moves by at most {self.repeated.max_difference:.3f}"
        same_text = f"{self.together.same_choices:,} of {self.rows:,} choices the same"
        conclusion = "yes       rows that share a request get the answers of single requests"
        if not self.may_share:
            conclusion = "no        rows that share a request get other answers than single requests"
        return [
            f"single    {name}: {self.rows:,} requests, {self.individual_tokens:,} tokens read; {repeat_text}",
            f"together  1 request, {self.together_tokens:,} tokens read; {same_text}; a probability moves by at most "
            f"{self.together.max_difference:.3f}",
            conclusion,
        ]


def measure_sharing(backend: Backend, requests: Sequence[Request]) -> SharingMeasurement:
    """Return the comparison of an endpoint's answers to single and to shared requests.

    Raise StageError if an answer is missing.
    """
    individual, repeat = (asyncio.run(_request_individually(backend, requests)) for _ in range(2))
    shared, usage = asyncio.run(_request_together(backend, requests))
    return SharingMeasurement(
        rows=len(requests),
        individual_tokens=sum(completion.usage.input_tokens or 0 for completion in individual),
        together_tokens=usage.input_tokens or 0,
        repeated=compare_answers(individual, repeat),
        together=compare_answers(individual, shared),
    )


def compare_answers(a: Sequence[Completion], b: Sequence[Completion]) -> AnswerDifference:
    """Return the difference of two lists of answers to the same rows. A refusal is a choice without probabilities."""
    same = sum(first.output == second.output for first, second in zip(a, b, strict=True))
    shifts = [
        abs(first.probabilities[label] - second.probabilities[label])
        for first, second in zip(a, b, strict=True)
        if first.probabilities and second.probabilities
        for label in first.probabilities
    ]
    return AnswerDifference(same, max(shifts, default=0.0))


def shared_request_body(backend: Backend, requests: Sequence[Request]) -> dict[str, Any]:
    """Return the body of one request with a question for each row."""
    questions = []
    for request in requests:
        (question,) = openai_decisions.build_body(backend, request)["questions"]
        parts = [question["instructions"], openai_decisions.require_choice_question(backend, request).text]
        questions.append({**question, "instructions": [{"type": "input_text", "text": text} for text in parts]})
    return {"model": backend.model, "input": "Each question brings a text of its own.", "questions": questions}


async def _request_individually(backend: Backend, requests: Sequence[Request]) -> list[Completion]:
    completions: dict[str, Completion] = {}
    async for reply in stream_results(backend, requests):
        if reply.completion is None:
            raise StageError(f"row {reply.id} was not answered: {reply.error}", code="INS-A009")
        completions[reply.id] = reply.completion
    return [completions[request.id] for request in requests]


async def _request_together(backend: Backend, requests: Sequence[Request]) -> tuple[list[Completion], Usage]:
    async with openai_decisions.make_client(backend) as client:
        call = client.decisions.create(**shared_request_body(backend, requests))
        result = await call_sdk(backend, call, ATTEMPT_TIMEOUT_FACTOR * backend.timeout_seconds)
    if isinstance(result, AttemptFailure):
        raise StageError(f"{len(requests):,} rows in one request were not answered: {result.error}", code="INS-A009")
    if len(result.answers) != len(requests):
        raise StageError(
            f"the provider returned {len(result.answers):,} answers to {len(requests):,} rows", code="INS-A009"
        )
    responses = [result.model_copy(update={"answers": [answer]}) for answer in result.answers]
    answers = [
        openai_decisions.parse_completion(response, backend, request)
        for response, request in zip(responses, requests, strict=True)
    ]
    return answers, answers[0].usage


def main(arguments: argparse.Namespace) -> int:
    """Measure the decision endpoints of a recipe. Return 0 if rows may share a request, 3 otherwise."""
    loaded, trained_run = run.load_recipe_and_run(arguments)
    context = first_request.validation_context(trained_run, loaded.name, merge_recipe_settings(loaded, trained_run))
    systems = [
        system
        for system in catalog.api_systems(context.recipe)
        if system.baseline and system.baseline.api == "decisions"
    ]
    if skipped := catalog.skipped_systems(systems, context.recipe):
        raise RecipeError(
            "\n".join(f"{system.title} cannot be evaluated: {system.reason}" for system in skipped), code="INS-A001"
        )
    if not systems:
        raise RecipeError(f"compare.baselines: {loaded.name} has no baseline with api: decisions", code="INS-C010")
    preflight.check(context, systems)
    measurements = {system.name: _measure_system(context, system, arguments.rows) for system in systems}
    for name, measurement in measurements.items():
        print(*measurement.lines(name), sep="\n")
    return cli.OK if all(measurement.may_share for measurement in measurements.values()) else cli.GATE_FAILED


def _measure_system(context: ComparisonContext, system: System, rows: int) -> SharingMeasurement:
    assert system.baseline is not None
    backend = api_models.build_first_request(context, system).endpoint
    requests = row_requests.build_requests(system, context.dataset, context.dataset.train[: min(rows, MAX_QUESTIONS)])
    if (price := pricing.lookup_price(system.baseline)) is not None:
        max_usd = (
            3 * budgets.estimate_cost([RowRequest(request.id, 0, request) for request in requests], price).upper_usd
        )
        if max_usd > context.recipe.compare.budget_usd:
            raise RecipeError(
                f"{len(requests):,} rows requested three times may cost ${max_usd:,.2f}, but compare.budget_usd is "
                f"${context.recipe.compare.budget_usd:,.2f}; request fewer (--rows), or raise it",
                code="INS-A003",
            )
    return measure_sharing(backend, requests)


def _command() -> int:
    parser = cli.build_parser("compare.together", "Measure whether several rows may share a decision request.")
    cli.add_run_option(parser)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help=f"train rows to ask, 2 to {MAX_QUESTIONS} (20)")
    arguments = parser.parse_intermixed_args()
    if not 2 <= arguments.rows <= MAX_QUESTIONS:
        raise RecipeError(f"--rows: given {arguments.rows}, allowed 2 to {MAX_QUESTIONS}", code="INS-R011")
    return main(arguments)


if __name__ == "__main__":
    cli.run_cli(_command)
