"""Checks of all baselines before any request is paid for and before the test set is read.

in   a file of answers with a duplicate id, a model without a known price, 300 labels for an endpoint that takes 255
out  RecipeError with all three problems and their fixes; no request was sent, and the ledger has no new entry

`systems.catalog.skipped_systems` handles providers that may not get the data or have no API key: they are reported as
not run. A failed check of this module ends the comparison. No check sends data; the first request comes next
(first_request.py).
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from compare.records import System
from compare.systems import answer_file, api_models, prompt_selection, row_requests
from compare.systems.responses import ComparisonContext
from insource.backends import pricing
from insource.backends.client import API_MODULES
from insource.backends.types import Backend
from insource.config.errors import RecipeError, join_errors

Check = Callable[[ComparisonContext, Sequence[System]], Iterator[RecipeError]]


def check(context: ComparisonContext, systems: Sequence[System]) -> None:
    """Raise RecipeError with all problems that would later end the comparison of these systems."""
    if problems := [problem for run_check in CHECKS for problem in run_check(context, systems)]:
        raise join_errors(problems)


def unknown_prices(context: ComparisonContext, systems: Sequence[System]) -> Iterator[RecipeError]:
    """Yield the API models without a known price."""
    baselines = [system.baseline for system in systems if system.kind == "closed" and system.baseline]
    for message in pricing.find_unknown_prices(baselines):
        yield RecipeError(message, code="INS-A002")


def unnamed_keys(context: ComparisonContext, systems: Sequence[System]) -> Iterator[RecipeError]:
    """Yield the baselines at another host than their provider's whose API key the recipe does not name."""
    for system in systems:
        if system.baseline and (key := system.baseline.withheld_key_env):
            yield RecipeError(
                f"compare.baselines: {system.name}: {key} is not sent to {system.baseline.base_url}, which is no https "
                "address of its provider; name the environment variable with the key for that host: api_key_env: ... "
                "(any variable that is set, where the host wants no key)",
                code="INS-A007",
            )


def unusable_files(context: ComparisonContext, systems: Sequence[System]) -> Iterator[RecipeError]:
    """Yield why a file of answers cannot be used, as far as the check is possible without the test rows."""
    for system in systems:
        if system.kind == "file" and system.baseline:
            try:
                answer_file.read_answer_file(system.baseline, answer_file.build_rules(context.recipe))
            except RecipeError as error:
                yield error


def unusable_settings(context: ComparisonContext, systems: Sequence[System]) -> Iterator[RecipeError]:
    """Yield why a request to an API model cannot be built with the settings of the recipe.

    Reasons: parameters that the model family does not take, more labels than the endpoint takes, missing credentials or
    a missing library of a cloud.
    """
    for system in systems:
        if system.kind != "closed" or system.baseline is None:
            continue
        try:
            backend = api_models.build_endpoint(system.baseline, context.dataset, system.omitted_parameters)
            # Examples do not affect the check, and retrieving them is slow.
            plain = replace(prompt_selection.prompt_candidates(system)[0], shots=0)
            (request,) = row_requests.build_requests(plain, context.dataset, context.dataset.train[:1])
            API_MODULES[backend.api_format].build_body(backend, request)
            asyncio.run(_open_client(backend))
        except RecipeError as error:
            is_located = str(error).startswith("compare.baselines: ")
            yield error if is_located else error.with_message(f"compare.baselines: {system.name}: {error}")


async def _open_client(backend: Backend) -> None:
    """Create the SDK's client, which looks for credentials and sends nothing."""
    async with API_MODULES[backend.api_format].make_client(backend):
        pass


CHECKS: Sequence[Check] = (unknown_prices, unnamed_keys, unusable_files, unusable_settings)
