"""The first request to each closed model, with a train row, before the plan is written and the test set is read.

    python -m compare.first_request classifier      the same by itself (`make doctor RECIPE=classifier`), for cents

    asked     openai:gpt-6-luna: answers, model gpt-6-luna-2026-09-22, 231 tokens read, 12 written
    refused   anthropic:claude-haiku-5-5: HTTP 401: invalid x-api-key

A parameter that is refused with a 400 naming it is left out from then on, which the report tells. A system that gets no
answer is not asked the test rows: it is INCOMPLETE, with the provider's sentence. The answer is kept in
`runs/<recipe>/.answers/<system>.first.jsonl` and asked for again only if the request is another one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compare import eval_dataset, models, preflight
from compare.systems import api_models, catalog
from compare.systems.catalog import SkippedSystem, System
from compare.systems.responses import ComparisonContext
from insource.backends import api_errors, collection, pricing
from insource.backends.budgets import Budget
from insource.backends.client import API_MODULES
from insource.backends.response_cache import CachedResponse
from insource.config import cli
from insource.config.recipe import Recipe
from insource.tracking import run
from insource.tracking.run import Run


@dataclass(frozen=True)
class FirstResponse:
    """What a closed system said to its first request."""

    system: System
    """Without the parameters that its provider refused."""
    answer: CachedResponse | None
    why_not: str | None
    """Why there is no answer; None where there is one."""

    def line(self) -> str:
        """Returns what the console shows."""
        if self.answer is None or self.why_not:
            return f"refused   {self.system.name}: {self.why_not}"
        if self.answer.error:
            return f"asked     {self.system.name}: takes requests, and refuses this train row for what it says"
        told = f"asked     {self.system.name}: answers, model {self.answer.model_id}"
        if self.answer.input_tokens is not None:
            told += f", {self.answer.input_tokens:,} tokens read, {self.answer.output_tokens or 0:,} written"
        if self.system.baseline and (day := models.announced_shutdown(self.system.baseline)):
            told += f"; it is shut down on {day}"
        if self.answer.finish_reason == "length":
            told += "; CUT by the output limit: raise max_output_tokens, or lower effort"
        return told + (f"; without {', '.join(self.system.left_out)}, which it refuses" if self.system.left_out else "")


def send_first_requests(
    place: ComparisonContext, running: Sequence[System]
) -> tuple[list[System], list[SkippedSystem]]:
    """Returns the systems to ask, and those that gave no answer to their first request. Raises RecipeError where a
    price is unknown, or a model family does not take what the recipe sets."""
    closed = [one for one in running if one.kind == "closed"]
    api_models.lookup_prices(closed)
    budget = Budget(place.recipe.compare.budget_usd)
    found = {one.name: send_first_request(place, one, budget) for one in closed}
    for first in found.values():
        print(first.line(), file=sys.stderr, flush=True)
    refused = [
        SkippedSystem(
            one.system.name, one.system.title, f"INCOMPLETE: its first request: {one.why_not}", incomplete=True
        )
        for one in found.values()
        if one.why_not
    ]
    names = {one.name for one in refused}
    asked = [found[one.name].system if one.name in found else one for one in running]
    return [one for one in asked if one.name not in names], refused


def send_first_request(place: ComparisonContext, system: System, budget: Budget) -> FirstResponse:
    """Returns what a closed system answers to one train row, asked again without a parameter that it refuses."""
    place.answers.mkdir(exist_ok=True)
    price = pricing.lookup_price(system.baseline) if system.baseline else None
    while True:
        asking = api_models.build_first_request(place, system)
        question, optional = asking.questions[0], API_MODULES[asking.backend.wire].OPTIONAL_PARAMETERS
        answer = collection.find_last_response(asking.backend, asking.identity, question, asking.journal)
        if answer is None or not api_errors.find_rejected_parameter(answer.error or "", optional):
            found = asking.collect(budget if price else None, price)
            answer = found.answers.get((question.id, question.repeat))
            if answer is None:
                return FirstResponse(system, None, found.why_incomplete or "not asked")
        refused = api_errors.find_rejected_parameter(answer.error or "", optional)
        if refused is None or refused in system.left_out:
            # What is final lies in the row: too long, or filtered. The next row may be neither.
            return FirstResponse(system, answer, None if answer.final else answer.error)
        print(f"left out  {refused}, which {system.name} refuses: {answer.error}", file=sys.stderr, flush=True)
        system = replace(system, left_out=(*system.left_out, refused))


def request_body_json(place: ComparisonContext, system: System) -> str:
    """Returns the first request as it would be sent, as JSON."""
    asking = api_models.build_first_request(place, system)
    sent = API_MODULES[asking.backend.wire].build_body(asking.backend, asking.questions[0].request)
    return json.dumps(sent, ensure_ascii=False, indent=1)


def validation_context(here: Run, name: str, recipe: Recipe) -> ComparisonContext:
    """Returns the comparison without its test rows: train and validation alone are read."""
    return ComparisonContext(here, name, recipe, eval_dataset.load_validation_dataset(here))


def main(arguments: argparse.Namespace) -> int:
    """Asks each closed baseline of a recipe once. Returns 0 where each of them answered, 3 where one did not."""
    from compare.stage import merge_recipe_settings

    loaded, here = run.load_recipe_and_run(arguments)
    return check_baselines(loaded.name, here, merge_recipe_settings(loaded, here))


def check_baselines(name: str, here: Run, recipe: Recipe) -> int:
    """Asks each closed baseline once. Returns 0 where each of them answered, 3 where one did not."""
    chosen = catalog.api_systems(recipe)
    if not chosen:
        print(f"{name} has no closed baseline")
        return cli.OK
    missing = catalog.skipped_systems(chosen, recipe)
    left_out = {one.name for one in missing}
    for one in missing:
        print(f"not run   {one.title}: {one.why}")
    place, running = validation_context(here, name, recipe), [one for one in chosen if one.name not in left_out]
    preflight.check(place, running)
    _, refused = send_first_requests(place, running)
    return cli.GATE_FAILED if refused or missing else cli.OK


def _command() -> int:
    parser = cli.build_parser("compare.first_request", "Ask each closed baseline of a recipe one train row, for cents.")
    cli.add_run_option(parser)
    return main(parser.parse_intermixed_args())


if __name__ == "__main__":
    cli.run_cli(_command)
