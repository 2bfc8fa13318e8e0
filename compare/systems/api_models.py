"""Systems outside this machine: API models, queried within the budget, and the user's files of answers."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from compare import models
from compare.eval_dataset import EvalDataset, load_validation_dataset
from compare.records import Scale, System, SystemResponses
from compare.scoring import confidence
from compare.systems import answer_file, prompt_selection, row_requests
from compare.systems.answer_file import DEFAULT_RULES, ReadingRules
from compare.systems.responses import ComparisonContext, SystemRequests, load_or_store, to_responses, to_system_answer
from insource.backends import api_requests, pricing
from insource.backends.budgets import Budget
from insource.backends.client import fetch_shutdown_date
from insource.backends.collection import CollectResult
from insource.backends.pricing import TokenPrice
from insource.backends.types import Backend, RowRequest
from insource.config.errors import RecipeError, join_errors
from insource.config.schema.compare import Baseline
from insource.system.timestamps import utc_timestamp
from insource.tasks.data_row import Rows


def collect_from_apis(context: ComparisonContext, systems: Sequence[System]) -> dict[str, SystemResponses]:
    """Return the responses of each API model by name, one after the other within one budget.

    The budget includes the cost of cached answers of earlier invocations. Raise RecipeError before any request if a
    price is unknown.
    """
    priced_systems = lookup_prices(systems)
    spent_usd = sum(
        requests.cached_cost_usd()
        for candidate, price in priced_systems
        if price
        for requests in _all_requests(context, candidate)
    )
    budget = Budget(context.recipe.compare.budget_usd, spent_usd)
    responses: dict[str, SystemResponses] = {}
    selected: dict[str, prompt_selection.SelectedPrompt] = {}
    for system, price in priced_systems:
        system_budget = budget if price else None
        selected[system.name] = selection = prompt_selection.select_prompt(
            context, system, partial(_build_requests, context), system_budget, price
        )
        test_requests = build_test_requests(context, selection.system)
        cached_usd = test_requests.cached_cost_usd()
        collected = test_requests.collect(system_budget, price)
        usd = selection.spent_usd + cached_usd + collected.spent_usd if price else None
        shutdown_date = _shutdown_date(test_requests, collected)
        omission_notes = [
            f"{system.title}: queried without {name}, which its provider refuses" for name in system.omitted_parameters
        ]
        message_note = f"{system.title}: queried with its own messages, not the task's prompt"
        message_notes = [message_note] if _baseline(system).messages else []
        responses[system.name] = replace(
            to_responses(test_requests, collected, context),
            spent_usd=usd,
            price=price,
            shutdown_date=shutdown_date,
            scale=_fit_scale(context, system, collected),
            notes=[*selection.notes, *message_notes, *omission_notes],
        )
    # Last, so that a budget which is exhausted by these requests does not affect the comparison.
    for system, price in priced_systems:
        routing_requests = build_routing_requests(context, selected[system.name].system)
        if routing_requests is not None:
            responses[system.name] = _add_calibration_answers(
                responses[system.name], routing_requests, budget if price else None, price
            )
    return responses


def _add_calibration_answers(
    responses: SystemResponses, system_requests: SystemRequests, budget: Budget | None, price: TokenPrice | None
) -> SystemResponses:
    """Return the responses with answers to the calibration rows, if all rows were answered."""
    cached_usd = system_requests.cached_cost_usd()
    collected = system_requests.collect(budget, price)
    usd = (responses.spent_usd or 0.0) + cached_usd + collected.spent_usd if price else None
    if not collected.complete:
        return replace(responses, spent_usd=usd, calibration_missing_reason=collected.why_incomplete)
    return replace(
        responses,
        spent_usd=usd,
        calibration_answers=[to_system_answer(collected, request.id) for request in system_requests.requests],
    )


def build_routing_requests(context: ComparisonContext, system: System) -> SystemRequests | None:
    """Return the requests for calibration rows that only `route.not_worse_than` needs.

    None for any other system, and for a decision endpoint, which gets the calibration rows in any case.
    """
    if system.name != context.recipe.route.not_worse_than or _baseline(system).uses_decision_api:
        return None
    return _build_requests(context, system, context.dataset, context.dataset.calibration)


def lookup_prices(systems: Sequence[System]) -> list[tuple[System, TokenPrice | None]]:
    """Return the systems with their prices, None for a local stand-in. Raise RecipeError if a price is unknown."""
    if problems := pricing.find_unknown_prices(_baseline(system) for system in systems):
        raise join_errors([RecipeError(problem, code="INS-A002") for problem in problems])
    return [(system, pricing.lookup_price(_baseline(system))) for system in systems]


def _all_requests(context: ComparisonContext, system: System) -> list[SystemRequests]:
    """Return all requests that a provider may get or got in an earlier invocation, with each of its instructions."""
    candidates = prompt_selection.prompt_candidates(system)
    test_requests = [build_test_requests(context, candidate) for candidate in candidates]
    routing_requests = [build_routing_requests(context, candidate) for candidate in candidates]
    return [
        build_first_request(context, system),
        *test_requests,
        *(requests for requests in routing_requests if requests is not None),
        *prompt_selection.trial_requests(context, system, partial(_build_requests, context)),
    ]


def _shutdown_date(system_requests: SystemRequests, collected: CollectResult) -> str | None:
    """Return the shutdown date of a model: from the provider now, else from its last reply, else from its SDK."""
    fresh = None
    if collected.n_requested:
        fresh = {"shutdown_date": fetch_shutdown_date(system_requests.endpoint), "asked": utc_timestamp()}
    path = system_requests.cache_path.with_suffix(".model.json")
    cached = load_or_store(path, [system_requests.identity, system_requests.endpoint.model], fresh)
    announced: str | None = cached["shutdown_date"] if cached else None
    return announced or models.announced_shutdown(_baseline(system_requests.system))


def build_first_request(context: ComparisonContext, system: System) -> SystemRequests:
    """Return the first request to a provider: one train row, in live mode whatever the baseline's mode."""
    candidate = prompt_selection.prompt_candidates(system)[0]
    live = replace(candidate, baseline=_baseline(candidate).model_copy(update={"mode": "live"}))
    system_requests = _build_requests(context, live, context.dataset, context.dataset.train[:1])
    return replace(system_requests, cache_path=system_requests.cache_path.with_suffix(".first.jsonl"))


def build_test_requests(context: ComparisonContext, system: System) -> SystemRequests:
    """Return the requests for the test rows and the repeats of the first ones.

    A decision endpoint also gets the validation rows for its scale, and the calibration rows.
    """
    test_requests = _build_requests(context, system, context.dataset, context.dataset.test)
    repeats = [
        RowRequest(request.id, 1, request.request)
        for request in test_requests.requests[: context.recipe.compare.repeat_rows]
    ]
    decision_requests: list[RowRequest] = []
    if _baseline(system).uses_decision_api:
        rows = [*_scale_rows(context), *context.dataset.calibration]
        decision_requests = list(_build_requests(context, system, context.dataset, rows).requests)
    return replace(test_requests, requests=[*test_requests.requests, *repeats, *decision_requests])


def _scale_rows(context: ComparisonContext) -> Rows:
    """Return the validation rows on which the scale of a decision endpoint is fitted."""
    return load_validation_dataset(context.run).test[: context.recipe.compare.calibrate_rows]


def _fit_scale(context: ComparisonContext, system: System, collected: CollectResult) -> Scale | None:
    if not _baseline(system).uses_decision_api:
        return None
    rows = _scale_rows(context)
    return confidence.fit_scale(context.dataset, rows, [to_system_answer(collected, row["id"]) for row in rows])


def _build_requests(context: ComparisonContext, system: System, dataset: EvalDataset, rows: Rows) -> SystemRequests:
    baseline = _baseline(system)
    requests = [RowRequest(request.id, 0, request) for request in row_requests.build_requests(system, dataset, rows)]
    identity = [baseline.provider, baseline.base_url]
    backend = replace(
        build_endpoint(baseline, dataset, system.omitted_parameters),
        bypass_proxy=not context.recipe.privacy.data_may_leave,
    )
    return SystemRequests(system, backend, identity, requests, context.cache_path(system))


def _baseline(system: System) -> Baseline:
    assert system.baseline is not None
    return system.baseline


def build_endpoint(baseline: Baseline, dataset: EvalDataset, omitted_parameters: tuple[str, ...] = ()) -> Backend:
    """Return the endpoint of a baseline, without the parameters that its provider rejected.

    Raise RecipeError if its model family does not take the settings of the recipe.
    """
    location = f"compare.baselines: {baseline.display_name}"
    return api_requests.build_endpoint(baseline, dataset.prompt.output_schema, location, omitted_parameters)


def load_answer_file(
    context: ComparisonContext, system: System, rules: ReadingRules = DEFAULT_RULES
) -> SystemResponses:
    """Return the answers of a user's file. Raise RecipeError with the line that cannot be used."""
    baseline = _baseline(system)
    file = answer_file.read_answer_file(baseline, rules)
    answers, reason, notes = answer_file.match_rows(file, system.name, context.dataset, rules)
    responses = SystemResponses(
        system,
        answers,
        complete=reason is None,
        incomplete_reason=reason,
        price=pricing.lookup_price(baseline),
        notes=notes,
    )
    if system.name != context.recipe.route.not_worse_than:
        return responses
    calibration = context.dataset.calibration
    n_missing = sum(row["id"] not in file.by_id for row in calibration)
    if n_missing or not calibration:
        message = f"{file.path.name} has no answer to {n_missing:,} of the {len(calibration):,} calibration rows"
        return replace(responses, calibration_missing_reason=message)
    calibration_dataset = replace(context.dataset, test=calibration)
    calibration_answers, _, _ = answer_file.match_rows(file, system.name, calibration_dataset, rules)
    return replace(responses, calibration_answers=calibration_answers)
