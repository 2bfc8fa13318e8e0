"""Which of several instructions a closed model is given: the one that it answers validation rows best with.

It is to do as well as it can without a look at the test set. Every candidate is asked the same rows, the first
`compare.choose_rows` of validation; what that costs is a part of what the model cost, and within the same budget.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compare import eval_dataset
from compare.eval_dataset import Material, Rows
from compare.scoring import predictions
from compare.systems.catalog import System
from compare.systems.responses import Asking, Place, answer_of
from insource.backends.budgets import Budget
from insource.backends.pricing import Priced
from insource.config.conflicts import METRICS
from insource.tasks import in_words, references

Asked = Callable[[System, Material, Rows], Asking]


@dataclass(frozen=True)
class Chosen:
    """A system with one instruction."""

    system: System
    notes: Sequence[str] = ()
    spent_usd: float = 0.0
    """On choosing."""


def variants(system: System) -> list[System]:
    """Returns a system once for each of its instructions."""
    assert system.baseline is not None
    given = system.baseline.instruction
    return [
        dataclasses.replace(system, baseline=system.baseline.model_copy(update={"instruction": one}))
        for one in (given if isinstance(given, list) else [given])
    ]


def trials(place: Place, system: System, asked: Asked) -> list[Asking]:
    """Returns what is asked to choose: nothing where there is one instruction, or none."""
    candidates = variants(system)
    if len(candidates) == 1:
        return []
    mine = _tried_on(place)
    return [asked(one, mine, mine.test) for one in candidates]


def chosen(place: Place, system: System, asked: Asked, budget: Budget | None, price: Priced | None) -> Chosen:
    """Returns a system with the instruction that is best by the metric that decides; the first of those that are."""
    candidates, asking = variants(system), trials(place, system, asked)
    if not asking:
        return Chosen(candidates[0])
    compare = place.recipe.compare
    metric = compare.primary.metric if compare.primary else METRICS[place.recipe.task.variant][0]
    mine = _tried_on(place)
    usd, values = 0.0, list[float]()
    for one in asking:
        before = one.known_usd()
        found = one.collect(budget, price)
        usd += before + found.spent_usd
        if not found.complete:
            told = f"{system.title}: its first instruction was taken: choosing among them was not ended"
            return Chosen(candidates[0], [f"{told} ({found.why_incomplete})"], usd)
        parsed = [predictions.read(mine, answer_of(found, row["id"])) for row in mine.test]
        targets = references.targets_of(mine.module, mine.spec, mine.test, parsed)
        values.append(mine.module.score(mine.spec, targets, parsed)[metric])
    best = values.index(max(values))
    told = f"{system.title}: instruction {best + 1} of {len(values)}, chosen on {len(mine.test)} validation rows"
    figures = ", ".join(f"{value:.1%}" for value in values)
    return Chosen(candidates[best], [f"{told} ({in_words(metric)} {figures})"], usd)


def _tried_on(place: Place) -> Material:
    mine = eval_dataset.of_validation(place.here)
    return dataclasses.replace(mine, test=mine.test[: place.recipe.compare.choose_rows])
