"""The first request to each API model, with a train row, before the plan is written and the test set is read.

    python -m compare.first_request classifier      only this check (`make doctor RECIPE=classifier`), for cents

    queried   openai:gpt-6-luna: answers, model gpt-6-luna-2026-09-22, 231 tokens read, 12 written
    refused   anthropic:claude-haiku-5-5: HTTP 401: invalid x-api-key

A parameter that the provider rejects by name with HTTP 400 or 422 is omitted from then on; the report notes it. A
system without an answer gets no test rows: it is INCOMPLETE, with the provider's message. The answer is cached in
`runs/<recipe>/.answers/<system>.first.jsonl`. It is requested again only if the request differs.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compare import eval_dataset, models, preflight
from compare.recipe_settings import merge_recipe_settings
from compare.records import SkippedSystem, System
from compare.systems import api_models, catalog
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
    """The answer of an API model to its first request."""

    system: System
    """Without the parameters that its provider rejected."""
    answer: CachedResponse | None
    failure_reason: str | None
    """Why there is no answer, None if there is one."""

    def line(self) -> str:
        """Return the console line."""
        if self.answer is None or self.failure_reason:
            return f"refused   {self.system.name}: {self.failure_reason}"
        if self.answer.error:
            return f"queried   {self.system.name}: accepts requests, but refuses the content of this train row"
        message = f"queried   {self.system.name}: answers, model {self.answer.model_id}"
        if self.answer.input_tokens is not None:
            message += f", {self.answer.input_tokens:,} tokens read, {self.answer.output_tokens or 0:,} written"
        if self.system.baseline and (day := models.announced_shutdown(self.system.baseline)):
            message += f"; it is shut down on {day}"
        if self.answer.finish_reason == "length":
            message += "; CUT by the output limit: raise max_output_tokens, or lower effort"
        return message + (
            f"; without {', '.join(self.system.omitted_parameters)}, which it refuses"
            if self.system.omitted_parameters
            else ""
        )


def send_first_requests(
    context: ComparisonContext, systems: Sequence[System]
) -> tuple[list[System], list[SkippedSystem]]:
    """Return the systems that answered their first request or need none, and those that did not answer.

    Raise RecipeError if a price is unknown, or if a model family does not take the settings of the recipe.
    """
    api_systems = [system for system in systems if system.kind == "closed"]
    api_models.lookup_prices(api_systems)
    budget = Budget(context.recipe.compare.budget_usd)
    responses = {system.name: send_first_request(context, system, budget) for system in api_systems}
    for response in responses.values():
        print(response.line(), file=sys.stderr, flush=True)
    refused = [
        SkippedSystem(
            response.system.name,
            response.system.title,
            f"INCOMPLETE: its first request: {response.failure_reason}",
            incomplete=True,
        )
        for response in responses.values()
        if response.failure_reason
    ]
    refused_names = {system.name for system in refused}
    updated_systems = [responses[system.name].system if system.name in responses else system for system in systems]
    return [system for system in updated_systems if system.name not in refused_names], refused


def send_first_request(context: ComparisonContext, system: System, budget: Budget) -> FirstResponse:
    """Return the answer of an API model to one train row. A rejected parameter is omitted and the request repeated."""
    context.cache_dir.mkdir(exist_ok=True)
    price = pricing.lookup_price(system.baseline) if system.baseline else None
    while True:
        system_requests = api_models.build_first_request(context, system)
        request = system_requests.requests[0]
        optional_parameters = API_MODULES[system_requests.endpoint.api_format].OPTIONAL_PARAMETERS
        answer = collection.find_last_response(
            system_requests.endpoint, system_requests.identity, request, system_requests.cache_path
        )
        if answer is None or not api_errors.find_rejected_parameter(answer.error or "", optional_parameters):
            collected = system_requests.collect(budget if price else None, price)
            answer = collected.answers.get((request.id, request.repeat))
            if answer is None:
                return FirstResponse(system, None, collected.why_incomplete or "not asked")
        rejected = api_errors.find_rejected_parameter(answer.error or "", optional_parameters)
        if rejected is None or rejected in system.omitted_parameters:
            # A final error is due to the row (too long, or filtered). The next row may have neither problem.
            return FirstResponse(system, answer, None if answer.final else answer.error)
        print(f"left out  {rejected}, which {system.name} refuses: {answer.error}", file=sys.stderr, flush=True)
        system = replace(system, omitted_parameters=(*system.omitted_parameters, rejected))


def request_body_json(context: ComparisonContext, system: System) -> str:
    """Return the body of the first request as JSON."""
    system_requests = api_models.build_first_request(context, system)
    body = API_MODULES[system_requests.endpoint.api_format].build_body(
        system_requests.endpoint, system_requests.requests[0].request
    )
    return json.dumps(body, ensure_ascii=False, indent=1)


def validation_context(trained_run: Run, name: str, recipe: Recipe) -> ComparisonContext:
    """Return the context of a comparison without test rows. Only train and validation rows are read."""
    return ComparisonContext(trained_run, name, recipe, eval_dataset.load_validation_dataset(trained_run))


def check_baselines(name: str, trained_run: Run, recipe: Recipe) -> int:
    """Send the first request to each API model. Return 0 if all answered, 3 otherwise."""
    systems = catalog.api_systems(recipe)
    if not systems:
        print(f"{name} has no API baseline")
        return cli.OK
    skipped = catalog.skipped_systems(systems, recipe)
    skipped_names = {system.name for system in skipped}
    for system in skipped:
        print(f"not run   {system.title}: {system.reason}")
    context = validation_context(trained_run, name, recipe)
    runnable = [system for system in systems if system.name not in skipped_names]
    preflight.check(context, runnable)
    _, refused = send_first_requests(context, runnable)
    return cli.GATE_FAILED if refused or skipped else cli.OK


def _command() -> int:
    parser = cli.build_parser(
        "compare.first_request", "Send one train row to each API baseline of a recipe, for cents."
    )
    cli.add_run_option(parser)
    loaded, trained_run = run.load_recipe_and_run(parser.parse_intermixed_args())
    return check_baselines(loaded.name, trained_run, merge_recipe_settings(loaded, trained_run))


if __name__ == "__main__":
    cli.run_cli(_command)
