"""Systems that others answer for: providers, who are asked within the budget, and answers that the user has already."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from backends.ask import shutdown_date
from backends.exchange import NO_KEY, Backend
from compare import answers_file, instructions, prices, questions
from compare.answers import Collected, Question
from compare.answers_file import AS_BY_DEFAULT, Rules
from compare.gathered import Asking, Gathered, Place, remembered, told
from compare.material import Material, Rows
from compare.spend import Budget
from compare.systems import System
from recipes.errors import RecipeError
from recipes.schema_compare import Baseline
from tracking import run

WIRES = {"openai": "openai", "azure": "openai", "anthropic": "anthropic", "bedrock": "anthropic", "vertex": "anthropic"}
CLOUDS = ("azure", "bedrock", "vertex")


def everyone(place: Place, systems: Sequence[System]) -> dict[str, Gathered]:
    """Returns what each provider answered, by name, one after the other within one budget: what was spent on answers
    of earlier invocations that still count is a part of it. Raises RecipeError, before anybody is asked, where a price
    is unknown."""
    if mistakes := prices.unknown(_baseline(one) for one in systems):
        raise RecipeError("\n".join(mistakes))
    priced = [(one, prices.of(_baseline(one))) for one in systems]
    spent = sum(known.known_usd() for one, price in priced if price for known in _everything(place, one))
    budget = Budget(place.recipe.compare.budget_usd, spent)
    found = {}
    for system, price in priced:
        mine = budget if price else None
        chosen = instructions.chosen(place, system, partial(_asking, place), mine, price)
        one = asked(place, chosen.system)
        before = one.known_usd()
        answers = one.collect(mine, price)
        usd = chosen.spent_usd + before + answers.spent_usd if price else None
        ends = _shutdown_date(one, answers)
        found[system.name] = told(
            one, answers, place, spent_usd=usd, price=price, shutdown_date=ends, notes=chosen.notes
        )
    return found


def _everything(place: Place, system: System) -> list[Asking]:
    """Everything that a provider may be asked, or was by an earlier invocation: with any of its instructions."""
    tests = [asked(place, one) for one in instructions.variants(system)]
    return tests + instructions.trials(place, system, partial(_asking, place))


def _shutdown_date(asking: Asking, found: Collected) -> str | None:
    """Returns when the provider will shut the model down: as it says now, or as it said when it was last asked."""
    said = {"shutdown_date": shutdown_date(asking.backend), "asked": run.now()} if found.asked else None
    known = remembered(asking.journal.with_suffix(".model.json"), [asking.identity, asking.backend.model], said)
    return known["shutdown_date"] if known else None


def asked(place: Place, system: System) -> Asking:
    """Returns everything that a provider is asked: the test rows, and the first of them a second time."""
    once = _asking(place, system, place.material, place.material.test)
    again = [Question(one.id, 1, one.request) for one in once.questions[: place.recipe.compare.repeat_rows]]
    return replace(once, questions=[*once.questions, *again])


def _asking(place: Place, system: System, material: Material, rows: Rows) -> Asking:
    baseline = _baseline(system)
    every = [Question(one.id, 0, one) for one in questions.requests(system, material, rows)]
    identity = [baseline.provider, baseline.base_url]
    return Asking(system, remote(baseline, material), identity, every, place.journal(system))


def _baseline(system: System) -> Baseline:
    assert system.baseline is not None
    return system.baseline


def remote(baseline: Baseline, material: Material) -> Backend:
    """Returns how a baseline of the recipe is asked."""
    schema = material.prompt["output_schema"]
    return Backend(
        wire=WIRES[baseline.provider],  # type: ignore[arg-type]
        model=baseline.model or "",
        base_url=baseline.base_url,
        api_key=(os.environ.get(baseline.key_env) if baseline.key_env else None) or NO_KEY,
        cloud=baseline.provider if baseline.provider in CLOUDS else None,  # type: ignore[arg-type]
        structured="json_schema" if baseline.structured_output and schema else "none",
        temperature=baseline.temperature,
        timeout_seconds=baseline.timeout_seconds,
        retries=baseline.retries,
        concurrency=baseline.concurrency,
    )


def given(place: Place, system: System, rules: Rules = AS_BY_DEFAULT) -> Gathered:
    """Returns the answers in a file that the user has. Raises RecipeError naming the line that cannot be used."""
    baseline = _baseline(system)
    file = answers_file.read(baseline, rules)
    found, why, notes = answers_file.matched(file, system.name, place.material, rules)
    return Gathered(system, found, complete=why is None, why_incomplete=why, price=prices.of(baseline), notes=notes)
