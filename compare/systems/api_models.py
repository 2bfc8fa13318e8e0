"""Systems that others answer for: providers, who are asked within the budget, and answers that the user has already."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from compare import models
from compare.eval_dataset import EvalDataset, Rows, load_validation_dataset
from compare.scoring import confidence
from compare.scoring.confidence import Scale
from compare.systems import answer_file, prompt_selection, row_requests
from compare.systems.answer_file import DEFAULT_RULES, ReadingRules
from compare.systems.catalog import System
from compare.systems.responses import (
    ComparisonContext,
    SystemRequests,
    SystemResponses,
    load_or_store,
    to_responses,
    to_system_answer,
)
from insource.backends import pricing
from insource.backends.budgets import Budget
from insource.backends.client import fetch_shutdown_date
from insource.backends.collection import CollectResult, RowRequest
from insource.backends.pricing import TokenPrice
from insource.backends.types import DUMMY_API_KEY, Backend
from insource.backends.wire import model_families
from insource.backends.wire.model_families import UNKNOWN, Family
from insource.config.errors import RecipeError
from insource.config.schema.compare import Baseline
from insource.tracking import run

CLOUD_PROVIDERS = ("azure", "bedrock", "vertex")


def collect_from_apis(place: ComparisonContext, systems: Sequence[System]) -> dict[str, SystemResponses]:
    """Returns what each provider answered, by name, one after the other within one budget: what was spent on answers
    of earlier invocations that still count is a part of it. Raises RecipeError, before anybody is asked, where a price
    is unknown."""
    with_price = lookup_prices(systems)
    spent = sum(known.known_usd() for one, price in with_price if price for known in _all_requests(place, one))
    budget = Budget(place.recipe.compare.budget_usd, spent)
    found: dict[str, SystemResponses] = {}
    chosen: dict[str, prompt_selection.SelectedPrompt] = {}
    for system, price in with_price:
        mine = budget if price else None
        chosen[system.name] = choice = prompt_selection.select_prompt(
            place, system, partial(_build_requests, place), mine, price
        )
        one = build_test_requests(place, choice.system)
        before = one.known_usd()
        answers = one.collect(mine, price)
        usd = choice.spent_usd + before + answers.spent_usd if price else None
        ends = _shutdown_date(one, answers)
        left_out = [f"{system.title}: asked without {name}, which its provider refuses" for name in system.left_out]
        own = (
            [f"{system.title}: asked with its own messages, not the task's prompt"]
            if _baseline(system).messages
            else []
        )
        more = {"price": price, "shutdown_date": ends, "notes": [*choice.notes, *own, *left_out]}
        found[system.name] = to_responses(
            one, answers, place, spent_usd=usd, scale=_fit_scale(place, system, answers), **more
        )
    # Last, so that a budget which ends here takes nothing from the comparison.
    for system, price in with_price:
        asking = build_routing_requests(place, chosen[system.name].system)
        if asking is not None:
            found[system.name] = _add_calibration_answers(found[system.name], asking, budget if price else None, price)
    return found


def _add_calibration_answers(
    got: SystemResponses, asking: SystemRequests, budget: Budget | None, price: TokenPrice | None
) -> SystemResponses:
    """Returns what a system answered with its answers to the calibration rows, if all of them were asked."""
    before = asking.known_usd()
    answers = asking.collect(budget, price)
    usd = (got.spent_usd or 0.0) + before + answers.spent_usd if price else None
    if not answers.complete:
        return replace(got, spent_usd=usd, why_not_calibration=answers.why_incomplete)
    return replace(got, spent_usd=usd, calibration=[to_system_answer(answers, one.id) for one in asking.questions])


def build_routing_requests(place: ComparisonContext, system: System) -> SystemRequests | None:
    """Returns the calibration rows that a system is asked for `route.not_worse_than` alone; None of another system,
    and of one that decides, which is asked them in any case."""
    if system.name != place.recipe.route.not_worse_than or _baseline(system).decides:
        return None
    return _build_requests(place, system, place.material, place.material.calibration)


def lookup_prices(systems: Sequence[System]) -> list[tuple[System, TokenPrice | None]]:
    """Returns systems with their price, None for a stand-in on this machine. Raises RecipeError where a provider's
    price is unknown."""
    if mistakes := pricing.find_unknown_prices(_baseline(one) for one in systems):
        raise RecipeError("\n".join(mistakes))
    return [(one, pricing.lookup_price(_baseline(one))) for one in systems]


def _all_requests(place: ComparisonContext, system: System) -> list[SystemRequests]:
    """Everything that a provider may be asked, or was by an earlier invocation: with any of its instructions."""
    tests = [build_test_requests(place, one) for one in prompt_selection.prompt_candidates(system)]
    bought = [
        one for variant in prompt_selection.prompt_candidates(system) if (one := build_routing_requests(place, variant))
    ]
    return [
        build_first_request(place, system),
        *tests,
        *bought,
        *prompt_selection.trial_requests(place, system, partial(_build_requests, place)),
    ]


def _shutdown_date(asking: SystemRequests, found: CollectResult) -> str | None:
    """Returns when the provider will shut the model down: as it says now, or as it said when it was last asked; else as
    its SDK announces it."""
    said = {"shutdown_date": fetch_shutdown_date(asking.backend), "asked": run.utc_timestamp()} if found.asked else None
    known = load_or_store(asking.journal.with_suffix(".model.json"), [asking.identity, asking.backend.model], said)
    told: str | None = known["shutdown_date"] if known else None
    return told or models.announced_shutdown(_baseline(asking.system))


def build_first_request(place: ComparisonContext, system: System) -> SystemRequests:
    """Returns the first request to a provider: one train row, live whatever the mode is."""
    one = prompt_selection.prompt_candidates(system)[0]
    live = replace(one, baseline=_baseline(one).model_copy(update={"mode": "live"}))
    asking = _build_requests(place, live, place.material, place.material.train[:1])
    return replace(asking, journal=asking.journal.with_suffix(".first.jsonl"))


def build_test_requests(place: ComparisonContext, system: System) -> SystemRequests:
    """Returns everything that a provider is asked: the test rows, and the first of them a second time; one that decides
    also the validation rows that its scale is fitted on, and the calibration rows."""
    once = _build_requests(place, system, place.material, place.material.test)
    again = [RowRequest(one.id, 1, one.request) for one in once.questions[: place.recipe.compare.repeat_rows]]
    known: list[RowRequest] = []
    if _baseline(system).decides:
        rows = [*_scale_rows(place), *place.material.calibration]
        known = list(_build_requests(place, system, place.material, rows).questions)
    return replace(once, questions=[*once.questions, *again, *known])


def _scale_rows(place: ComparisonContext) -> Rows:
    """The validation rows that an endpoint that decides is asked, so that its probabilities can be put on a scale."""
    return load_validation_dataset(place.here).test[: place.recipe.compare.calibrate_rows]


def _fit_scale(place: ComparisonContext, system: System, found: CollectResult) -> Scale | None:
    if not _baseline(system).decides:
        return None
    rows = _scale_rows(place)
    return confidence.fit_scale(place.material, rows, [to_system_answer(found, row["id"]) for row in rows])


def _build_requests(place: ComparisonContext, system: System, material: EvalDataset, rows: Rows) -> SystemRequests:
    baseline = _baseline(system)
    every = [RowRequest(one.id, 0, one) for one in row_requests.build_requests(system, material, rows)]
    identity = [baseline.provider, baseline.base_url]
    backend = replace(
        build_endpoint(baseline, material, system.left_out), direct=not place.recipe.privacy.data_may_leave
    )
    return SystemRequests(system, backend, identity, every, place.journal(system))


def _baseline(system: System) -> Baseline:
    assert system.baseline is not None
    return system.baseline


def build_endpoint(baseline: Baseline, material: EvalDataset, left_out: tuple[str, ...] = ()) -> Backend:
    """Returns how a baseline of the recipe is asked, without the parameters that its provider refused. Raises
    RecipeError where its model family does not take what the recipe sets."""
    schema, wire = material.prompt["output_schema"], row_requests.lookup_api_format(baseline)
    family = model_families.find_family(wire, baseline.model or "")
    _check_model_family(baseline, family)
    return Backend(
        wire=wire,
        model=baseline.model or "",
        base_url=baseline.base_url,
        api_key=(os.environ.get(baseline.key_env) if baseline.key_env else None) or DUMMY_API_KEY,
        cloud=baseline.provider if baseline.provider in CLOUD_PROVIDERS else None,  # type: ignore[arg-type]
        structured="json_schema" if baseline.structured_output and schema and family.structured else "none",
        log_probabilities=family.tells_log_probabilities(baseline.effort),
        temperature=baseline.temperature,
        effort=baseline.effort,
        closed=True,
        left_out=left_out,
        timeout_seconds=baseline.timeout_seconds,
        retries=baseline.retries,
        concurrency=baseline.concurrency,
    )


def _check_model_family(baseline: Baseline, family: Family) -> None:
    where = f"compare.baselines: {baseline.called}"
    if baseline.effort is not None and family is not UNKNOWN and baseline.effort not in family.efforts:
        allowed = f"{family.name} takes {', '.join(family.efforts) or 'no effort'}"
        raise RecipeError(f"{where}: effort: given {baseline.effort}, {allowed} ({family.source})")
    if baseline.temperature is not None and not family.takes_temperature(baseline.effort):
        may = ' unless effort is "none"' if family.sampling == "without_reasoning" else ""
        raise RecipeError(
            f"{where}: temperature: given {baseline.temperature:g}, but {family.name} takes none{may} "
            f"({family.source}); leave it out"
        )
    if baseline.mode == "batch" and not family.batch:
        raise RecipeError(
            f"{where}: mode: given batch, and it is not known that {baseline.model} is served in batches "
            "(insource/backends/wire/model_families.py does not have it); set mode: live"
        )


def load_answer_file(place: ComparisonContext, system: System, rules: ReadingRules = DEFAULT_RULES) -> SystemResponses:
    """Returns the answers in a file that the user has. Raises RecipeError naming the line that cannot be used."""
    baseline = _baseline(system)
    file = answer_file.read_answer_file(baseline, rules)
    found, why, notes = answer_file.match_rows(file, system.name, place.material, rules)
    got = SystemResponses(
        system, found, complete=why is None, why_incomplete=why, price=pricing.lookup_price(baseline), notes=notes
    )
    if system.name != place.recipe.route.not_worse_than:
        return got
    calibration = place.material.calibration
    missing = sum(row["id"] not in file.by_id for row in calibration)
    if missing or not calibration:
        told = f"{file.path.name} has no answer to {missing:,} of the {len(calibration):,} calibration rows"
        return replace(got, why_not_calibration=told)
    other = replace(place.material, test=calibration)
    return replace(got, calibration=answer_file.match_rows(file, system.name, other, rules)[0])
