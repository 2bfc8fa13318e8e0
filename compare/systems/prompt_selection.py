"""Choose among several instructions for an API model: the one with the best score on validation rows.

The API model gets its best instruction without a look at the test set. Every candidate gets the same rows, the first
`compare.choose_rows` of validation. The cost of the choice is part of the model's cost and counts towards its budget.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compare import eval_dataset
from compare.eval_dataset import EvalDataset
from compare.records import System
from compare.scoring import predictions
from compare.systems.responses import ComparisonContext, SystemRequests, to_system_answer
from insource.backends.budgets import Budget
from insource.backends.pricing import TokenPrice
from insource.config.metric_names import METRICS
from insource.tasks import metric_label, references
from insource.tasks.data_row import Rows
from insource.tracking.scores.comparison import select_deciding_metric

RequestBuilder = Callable[[System, EvalDataset, Rows], SystemRequests]


@dataclass(frozen=True)
class SelectedPrompt:
    """A system with one instruction."""

    system: System
    notes: Sequence[str] = ()
    spent_usd: float = 0.0
    """Cost of the selection."""


def prompt_candidates(system: System) -> list[System]:
    """Return one copy of the system for each of its instructions."""
    assert system.baseline is not None
    instructions = system.baseline.instruction
    return [
        dataclasses.replace(system, baseline=system.baseline.model_copy(update={"instruction": instruction}))
        for instruction in (instructions if isinstance(instructions, list) else [instructions])
    ]


def trial_requests(context: ComparisonContext, system: System, request_builder: RequestBuilder) -> list[SystemRequests]:
    """Return the requests of the selection, [] if there is at most one instruction."""
    candidates = prompt_candidates(system)
    if len(candidates) == 1:
        return []
    dataset = _selection_dataset(context)
    return [request_builder(candidate, dataset, dataset.test) for candidate in candidates]


def select_prompt(
    context: ComparisonContext,
    system: System,
    request_builder: RequestBuilder,
    budget: Budget | None,
    price: TokenPrice | None,
) -> SelectedPrompt:
    """Return the system with the instruction that is best in the deciding metric. Of equal ones the first wins."""
    candidates, trials = prompt_candidates(system), trial_requests(context, system, request_builder)
    if not trials:
        return SelectedPrompt(candidates[0])
    settings = context.recipe.compare
    metric = select_deciding_metric(settings.primary, tuple(METRICS[context.recipe.task.task_name]))
    dataset = _selection_dataset(context)
    usd, values = 0.0, list[float]()
    for trial in trials:
        cached_usd = trial.cached_cost_usd()
        collected = trial.collect(budget, price)
        usd += cached_usd + collected.spent_usd
        if not collected.complete:
            message = f"{system.title}: its first instruction was taken: choosing among them was not ended"
            return SelectedPrompt(candidates[0], [f"{message} ({collected.why_incomplete})"], usd)
        parsed = [predictions.parse_answer(dataset, to_system_answer(collected, row["id"])) for row in dataset.test]
        targets = references.select_targets(dataset.task, dataset.spec, dataset.test, parsed)
        values.append(dataset.task.score(dataset.spec, targets, parsed)[metric])
    best_index = values.index(max(values))
    message = (
        f"{system.title}: instruction {best_index + 1} of {len(values)}, chosen on {len(dataset.test)} validation rows"
    )
    values_text = ", ".join(f"{value:.1%}" for value in values)
    return SelectedPrompt(candidates[best_index], [f"{message} ({metric_label(metric)} {values_text})"], usd)


def _selection_dataset(context: ComparisonContext) -> EvalDataset:
    dataset = eval_dataset.load_validation_dataset(context.run)
    return dataclasses.replace(dataset, test=dataset.test[: context.recipe.compare.choose_rows])
