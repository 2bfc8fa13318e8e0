"""What a comparison says on the console: the ten lines at its end, and with --dry-run what it would ask and cost."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from compare import first_request
from compare.report import routing_section, wording
from compare.systems import prompt_selection, row_requests
from compare.systems.catalog import System
from insource.backends import pricing
from insource.backends.budgets import estimate_cost
from insource.backends.collection import RowRequest
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tasks import metric_label
from insource.tracking.run import Run

MAX_LINES = 10


def summary_lines(here: Run, scores: Mapping[str, Any]) -> list[str]:
    """Returns the ten lines that a comparison ends with."""
    metric = scores["plan"]["metric"] if scores["plan"] else scores["task"]["metrics"][0]
    best_first = sorted(scores["systems"].values(), key=lambda one: -one["metrics"][metric]["value"])
    first = [f"verdict   {scores['verdict']['choice'].upper()}: {scores['verdict']['headline']}"]
    if linear := wording.linear_baseline_note(scores):
        first.append(f"linear    {linear.says}")
    first.append(f"questions {wording.format_votes(scores)}")
    last = []
    if told := scores["systems"]["tuned"]["latency"]:
        figures = f"p50 {told['p50_seconds']:.2f} s, p95 {told['p95_seconds']:.2f} s"
        last.append(f"latency   {figures} of the tuned model, {told['concurrency']} requests at a time")
    if told := routing_section.build_routing_section(scores):
        last.append(f"routing   {routing_section.policy_summary(told['policy'])}")
    if scores["not_run"]:
        last.append(f"not run   {', '.join(one['name'] for one in scores['not_run'])}")
    last.append(f"report    {os.path.relpath(here.folder / 'report.html')}")
    room = MAX_LINES - len(first) - len(last)
    return [*first, *(_system_line(one, metric) for one in best_first[:room]), *last]


def _system_line(one: Mapping[str, Any], metric: str) -> str:
    value = one["metrics"][metric]
    told = f"{metric_label(metric)} {value['value']:.1%} ({value['ci_low']:.1%} to {value['ci_high']:.1%})"
    return f"          {told}  {one['title']}{'' if one['complete'] else '  INCOMPLETE'}"


def cost_estimate_lines(here: Run, recipe: Recipe, running: Sequence[System]) -> list[str]:
    """Returns what each closed system would be asked and would cost, by validation rows: the test stays shut."""
    data = atomic_files.read_json(here.folder / "data" / "data.json")
    rows = int(data["rows"]["written"]["test"])
    place = first_request.validation_context(here, here.recipe_name, recipe)
    mine = place.material
    lines = [f"would ask {rows:,} test rows of {', '.join(one.name for one in running)}"]
    for one in running:
        if one.baseline is None or one.kind != "closed":
            continue
        lines += [
            f"body      {one.name}, its first request (a train row):",
            first_request.request_body_json(place, one),
        ]
        price = pricing.lookup_price(one.baseline)
        if price is None:
            lines.append(f"cost      {one.name}: not known")
            continue
        first, *more = prompt_selection.prompt_candidates(one)
        asked = [RowRequest(request.id, 0, request) for request in row_requests.build_requests(first, mine, mine.test)]
        reckoned = estimate_cost(asked, price, one.baseline.mode == "batch")
        to_choose = min(len(asked), recipe.compare.choose_rows) * (1 + len(more)) if more else 0
        for_a_scale = recipe.compare.calibrate_rows + int(data["rows"]["written"].get("calibration", 0))
        to_route = int(data["rows"]["written"].get("calibration", 0)) if one.name == recipe.route.not_worse_than else 0
        more_rows = to_choose + (for_a_scale if one.baseline.decides else to_route)
        times = (rows + min(rows, recipe.compare.repeat_rows) + more_rows) / max(1, len(asked))
        told = f"about ${reckoned.expected_usd * times:,.2f}, at most ${reckoned.upper_usd * times:,.2f}"
        lines.append(f"cost      {one.name}: {told}")
    return [*lines, f"budget    ${recipe.compare.budget_usd:,.2f} (compare.budget_usd)"]
