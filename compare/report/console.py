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


def summary_lines(run: Run, scores: Mapping[str, Any]) -> list[str]:
    """Returns the ten lines that a comparison ends with."""
    metric = scores["plan"]["metric"] if scores["plan"] else scores["task"]["metrics"][0]
    best_first = sorted(scores["systems"].values(), key=lambda system: -system["metrics"][metric]["value"])
    header = [f"verdict   {scores['verdict']['choice'].upper()}: {scores['verdict']['headline']}"]
    if note := wording.linear_baseline_note(scores):
        header.append(f"linear    {note.says}")
    header.append(f"questions {wording.format_votes(scores)}")
    footer = []
    if section := scores["systems"]["tuned"]["latency"]:
        percentiles = f"p50 {section['p50_seconds']:.2f} s, p95 {section['p95_seconds']:.2f} s"
        footer.append(f"latency   {percentiles} of the tuned model, {section['concurrency']} requests at a time")
    if section := routing_section.build_routing_section(scores):
        footer.append(f"routing   {routing_section.policy_summary(section['policy'])}")
    if scores["not_run"]:
        footer.append(f"not run   {', '.join(skipped['name'] for skipped in scores['not_run'])}")
    footer.append(f"report    {os.path.relpath(run.folder / 'report.html')}")
    available_lines = MAX_LINES - len(header) - len(footer)
    return [*header, *(_system_line(system, metric) for system in best_first[:available_lines]), *footer]


def _system_line(system: Mapping[str, Any], metric: str) -> str:
    value = system["metrics"][metric]
    score_text = f"{metric_label(metric)} {value['value']:.1%} ({value['ci_low']:.1%} to {value['ci_high']:.1%})"
    return f"          {score_text}  {system['title']}{'' if system['complete'] else '  INCOMPLETE'}"


def cost_estimate_lines(run: Run, recipe: Recipe, systems: Sequence[System]) -> list[str]:
    """Returns what each closed system would be asked and would cost, by validation rows: the test stays shut."""
    data = atomic_files.read_json(run.folder / "data" / "data.json")
    rows = int(data["rows"]["written"]["test"])
    context = first_request.validation_context(run, run.recipe_name, recipe)
    dataset = context.material
    lines = [f"would ask {rows:,} test rows of {', '.join(system.name for system in systems)}"]
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
        selection_rows = (
            min(len(requests), recipe.compare.choose_rows) * (1 + len(other_candidates)) if other_candidates else 0
        )
        scale_rows = recipe.compare.calibrate_rows + int(data["rows"]["written"].get("calibration", 0))
        routing_rows = (
            int(data["rows"]["written"].get("calibration", 0)) if system.name == recipe.route.not_worse_than else 0
        )
        extra_rows = selection_rows + (scale_rows if system.baseline.decides else routing_rows)
        factor = (rows + min(rows, recipe.compare.repeat_rows) + extra_rows) / max(1, len(requests))
        cost_text = f"about ${estimate.expected_usd * factor:,.2f}, at most ${estimate.upper_usd * factor:,.2f}"
        lines.append(f"cost      {system.name}: {cost_text}")
    return [*lines, f"budget    ${recipe.compare.budget_usd:,.2f} (compare.budget_usd)"]
