"""The estimate of --dry-run: the number of requests to each API model, and their cost."""

from collections.abc import Sequence

from compare import first_request
from compare.records import System
from compare.systems import prompt_selection, row_requests
from insource.backends import pricing
from insource.backends.budgets import estimate_cost
from insource.backends.types import RowRequest
from insource.config.recipe import Recipe
from insource.tracking.data_report import DataReport
from insource.tracking.run import Run


def cost_estimate_lines(run: Run, recipe: Recipe, systems: Sequence[System]) -> list[str]:
    """Return the console lines with requests and cost of each API model.

    Validation rows represent the test rows, so that the test set is not read.
    """
    written = DataReport.read(run.folder / "data").rows.written
    rows, calibration_rows = written["test"], written.get("calibration", 0)
    context = first_request.validation_context(run, run.recipe_name, recipe)
    dataset = context.dataset
    lines = [f"would send {rows:,} test rows to {', '.join(system.name for system in systems)}"]
    for system in systems:
        if system.baseline is None or system.kind != "closed":
            continue
        lines += [
            f"body      {system.name}, its first request (a train row):",
            first_request.request_body_json(context, system),
        ]
        price = pricing.lookup_price(system.baseline)
        if price is None:
            lines.append(f"cost      {system.name}: not known")
            continue
        candidate, *other_candidates = prompt_selection.prompt_candidates(system)
        requests = [
            RowRequest(request.id, 0, request)
            for request in row_requests.build_requests(candidate, dataset, dataset.test)
        ]
        estimate = estimate_cost(requests, price, system.baseline.mode == "batch")
        extra_rows = 0
        if other_candidates:
            extra_rows += min(len(requests), recipe.compare.choose_rows) * (1 + len(other_candidates))
        if system.baseline.uses_decision_api:
            extra_rows += recipe.compare.calibrate_rows + calibration_rows
        elif system.name == recipe.route.not_worse_than:
            extra_rows += calibration_rows
        factor = (rows + min(rows, recipe.compare.repeat_rows) + extra_rows) / max(1, len(requests))
        cost_text = f"about ${estimate.expected_usd * factor:,.2f}, at most ${estimate.upper_usd * factor:,.2f}"
        lines.append(f"cost      {system.name}: {cost_text}")
    return [*lines, f"budget    ${recipe.compare.budget_usd:,.2f} (compare.budget_usd)"]
