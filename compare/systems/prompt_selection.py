"""Which of several instructions a closed model is given: the one that it answers validation rows best with.

It is to do as well as it can without a look at the test set. Every candidate is asked the same rows, the first
`compare.choose_rows` of validation; what that costs is a part of what the model cost, and within the same budget.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compare import eval_dataset
from compare.eval_dataset import EvalDataset, Rows
from compare.scoring import predictions
from compare.systems.catalog import System
from compare.systems.responses import ComparisonContext, SystemRequests, to_system_answer
from insource.backends.budgets import Budget
from insource.backends.pricing import TokenPrice
from insource.config.conflicts import METRICS
from insource.tasks import metric_label, references

RequestBuilder = Callable[[System, EvalDataset, Rows], SystemRequests]


@dataclass(frozen=True)
class SelectedPrompt:
    """A system with one instruction."""

    system: System
    notes: Sequence[str] = ()
    spent_usd: float = 0.0
    """On choosing."""


def prompt_candidates(system: System) -> list[System]:
    """Returns a system once for each of its instructions."""
    assert system.baseline is not None
    given = system.baseline.instruction
    return [
        dataclasses.replace(system, baseline=system.baseline.model_copy(update={"instruction": one}))
        for one in (given if isinstance(given, list) else [given])
    ]


def trial_requests(place: ComparisonContext, system: System, asked: RequestBuilder) -> list[SystemRequests]:
    """Returns what is asked to choose: nothing where there is one instruction, or none."""
    candidates = prompt_candidates(system)
    if len(candidates) == 1:
        return []
    mine = _selection_dataset(place)
    return [asked(one, mine, mine.test) for one in candidates]


def select_prompt(
    place: ComparisonContext, system: System, asked: RequestBuilder, budget: Budget | None, price: TokenPrice | None
) -> SelectedPrompt:
    """Returns a system with the instruction that is best by the metric that decides; the first of those that are."""
    candidates, asking = prompt_candidates(system), trial_requests(place, system, asked)
    if not asking:
        return SelectedPrompt(candidates[0])
    compare = place.recipe.compare
    metric = compare.primary.metric if compare.primary else METRICS[place.recipe.task.variant][0]
    mine = _selection_dataset(place)
    usd, values = 0.0, list[float]()
    for one in asking:
        before = one.known_usd()
        found = one.collect(budget, price)
        usd += before + found.spent_usd
        if not found.complete:
            told = f"{system.title}: its first instruction was taken: choosing among them was not ended"
            return SelectedPrompt(candidates[0], [f"{told} ({found.why_incomplete})"], usd)
        parsed = [predictions.parse_answer(mine, to_system_answer(found, row["id"])) for row in mine.test]
        targets = references.select_targets(mine.module, mine.spec, mine.test, parsed)
        values.append(mine.module.score(mine.spec, targets, parsed)[metric])
    best = values.index(max(values))
    told = f"{system.title}: instruction {best + 1} of {len(values)}, chosen on {len(mine.test)} validation rows"
    figures = ", ".join(f"{value:.1%}" for value in values)
    return SelectedPrompt(candidates[best], [f"{told} ({metric_label(metric)} {figures})"], usd)


def _selection_dataset(place: ComparisonContext) -> EvalDataset:
    mine = eval_dataset.load_validation_dataset(place.here)
    return dataclasses.replace(mine, test=mine.test[: place.recipe.compare.choose_rows])
