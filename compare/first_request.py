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
from compare.systems.catalog import NotRun, System
from compare.systems.responses import Place
from insource.backends import api_errors, collection, pricing
from insource.backends.budgets import Budget
from insource.backends.client import WIRES
from insource.backends.response_cache import Answered
from insource.config import cli
from insource.config.recipe import Recipe
from insource.tracking import run
from insource.tracking.run import Run


@dataclass(frozen=True)
class First:
    """What a closed system said to its first request."""

    system: System
    """Without the parameters that its provider refused."""
    answer: Answered | None
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
        if self.system.baseline and (day := models.announced(self.system.baseline)):
            told += f"; it is shut down on {day}"
        if self.answer.finish_reason == "length":
            told += "; CUT by the output limit: raise max_output_tokens, or lower effort"
        return told + (f"; without {', '.join(self.system.left_out)}, which it refuses" if self.system.left_out else "")


def of_all(place: Place, running: Sequence[System]) -> tuple[list[System], list[NotRun]]:
    """Returns the systems to ask, and those that gave no answer to their first request. Raises RecipeError where a
    price is unknown, or a model family does not take what the recipe sets."""
    closed = [one for one in running if one.kind == "closed"]
    api_models.priced(closed)
    budget = Budget(place.recipe.compare.budget_usd)
    found = {one.name: ask(place, one, budget) for one in closed}
    for first in found.values():
        print(first.line(), file=sys.stderr, flush=True)
    refused = [
        NotRun(one.system.name, one.system.title, f"INCOMPLETE: its first request: {one.why_not}", incomplete=True)
        for one in found.values()
        if one.why_not
    ]
    names = {one.name for one in refused}
    asked = [found[one.name].system if one.name in found else one for one in running]
    return [one for one in asked if one.name not in names], refused


def ask(place: Place, system: System, budget: Budget) -> First:
    """Returns what a closed system answers to one train row, asked again without a parameter that it refuses."""
    place.answers.mkdir(exist_ok=True)
    price = pricing.of(system.baseline) if system.baseline else None
    while True:
        asking = api_models.first(place, system)
        question, optional = asking.questions[0], WIRES[asking.backend.wire].OPTIONAL
        answer = collection.last(asking.backend, asking.identity, question, asking.journal)
        if answer is None or not api_errors.parameter(answer.error or "", optional):
            found = asking.collect(budget if price else None, price)
            answer = found.answers.get((question.id, question.repeat))
            if answer is None:
                return First(system, None, found.why_incomplete or "not asked")
        refused = api_errors.parameter(answer.error or "", optional)
        if refused is None or refused in system.left_out:
            # What is final lies in the row: too long, or filtered. The next row may be neither.
            return First(system, answer, None if answer.final else answer.error)
        print(f"left out  {refused}, which {system.name} refuses: {answer.error}", file=sys.stderr, flush=True)
        system = replace(system, left_out=(*system.left_out, refused))


def body(place: Place, system: System) -> str:
    """Returns the first request as it would be sent, as JSON."""
    asking = api_models.first(place, system)
    sent = WIRES[asking.backend.wire].body(asking.backend, asking.questions[0].request)
    return json.dumps(sent, ensure_ascii=False, indent=1)


def place_of(here: Run, name: str, recipe: Recipe) -> Place:
    """Returns the comparison without its test rows: train and validation alone are read."""
    return Place(here, name, recipe, eval_dataset.of_validation(here))


def main(arguments: argparse.Namespace) -> int:
    """Asks each closed baseline of a recipe once. Returns 0 where each of them answered, 3 where one did not."""
    from compare.stage import asked_now

    loaded, here = run.of_call(arguments)
    return checked(loaded.name, here, asked_now(loaded, here))


def checked(name: str, here: Run, recipe: Recipe) -> int:
    """Asks each closed baseline once. Returns 0 where each of them answered, 3 where one did not."""
    chosen = catalog.closed(recipe)
    if not chosen:
        print(f"{name} has no closed baseline")
        return cli.DONE
    missing = catalog.not_run(chosen, recipe)
    left_out = {one.name for one in missing}
    for one in missing:
        print(f"not run   {one.title}: {one.why}")
    place, running = place_of(here, name, recipe), [one for one in chosen if one.name not in left_out]
    preflight.check(place, running)
    _, refused = of_all(place, running)
    return cli.GATE if refused or missing else cli.DONE


def _command() -> int:
    parser = cli.parser("compare.first_request", "Ask each closed baseline of a recipe one train row, for cents.")
    cli.add_run(parser)
    return main(parser.parse_intermixed_args())


if __name__ == "__main__":
    cli.run(_command)
