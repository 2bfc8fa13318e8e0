"""The cost section of the report: break-even, cost curves, and the start values of the page's sliders.

in   "inputs": {"gpu_usd_per_hour": 0.8, "utilization": 0.4, "requests_per_second": 20, ...}, $0.0004 per API request
out  {"figure": "Self-hosting is cheaper from 8,961,001 requests a month.", "more": "...", ...}, and two polylines

report.js writes the same sentences and draws the same lines when a slider moves. The docstring of
`cost.break_even.break_even_points` has the formula of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from compare.cost.break_even import StepCost, break_even_points
from compare.report import wording
from compare.report.charts import Axis
from insource.system.number_format import format_axis_percent, format_compact, format_count, format_usd
from insource.tracking.scores.comparison import Scores
from insource.tracking.scores.cost_result import CostInputs, CostResult, MeasuredCost, PaidSystemCost

View = dict[str, Any]

CURVE_SAMPLES, DRAWN_STEPS = 240, 24
"""Volumes at which a curve is computed, and machines whose steps are drawn as steps."""
MAX_REQUESTS = 1e12
SLIDERS = (
    ("monthly_requests", "requests a month"),
    ("gpu_usd_per_hour", "USD an hour for one"),
    ("utilization", "utilization over the month"),
    ("engineer_share", "share of an engineer"),
)


def step_cost_from_inputs(inputs: CostInputs) -> StepCost:
    """Return the monthly cost of self-hosting under these inputs, for a throughput that was measured."""
    hourly = inputs.gpu_usd_per_hour
    assert hourly is not None and inputs.requests_per_second is not None, "a cost that was measured has both"
    capacity = inputs.requests_per_second * 3600 * inputs.hours_per_month * inputs.utilization
    engineer_usd = inputs.engineer_usd_per_month * inputs.engineer_share
    fixed_usd = engineer_usd + inputs.training_hours_per_month * hourly
    return StepCost(hourly * inputs.hours_per_month, floor(capacity), fixed_usd)


def break_even_text(inputs: CostInputs, title: str, usd_per_request: float) -> dict[str, str]:
    """Return the sentences about one paid system: its break-even, and the costs at the given volume."""
    step_cost, volume = step_cost_from_inputs(inputs), inputs.monthly_requests
    points = break_even_points(step_cost.machine_usd, step_cost.capacity, step_cost.fixed_usd, usd_per_request)
    if points is None:
        headline = "Self-hosting is never cheaper."
        detail = (
            f"A full machine costs {format_usd(step_cost.machine_usd)} a month, and the {step_cost.capacity:,} "
            f"requests that it can answer cost {format_usd(step_cost.capacity * usd_per_request)} there."
        )
    else:
        headline = f"Self-hosting is cheaper from {format_count(points[0], 'request')} a month."
        detail = f"That is {format_compact(points[0] * inputs.tokens_per_request)} tokens."
        if points[1] > points[0]:
            detail += f" Each further machine costs more at first; it is permanently cheaper from {points[1]:,}."
    if step_cost.capacity < 1:
        return {"figure": headline, "more": "At this utilization a machine answers no request.", "here": ""}
    self_hosted_usd, api_usd = step_cost.usd(volume), volume * usd_per_request
    at_volume = (
        f"At {format_count(volume, 'request')} a month: self-hosted {format_usd(self_hosted_usd)} with "
        f"{format_count(step_cost.machines(volume), 'machine')}, {title} {format_usd(api_usd)}."
    )
    return {"figure": headline, "more": detail, "here": at_volume}


def cost_polylines(inputs: CostInputs, usd_per_request: float, x_axis: Axis, y_axis: Axis) -> dict[str, str]:
    """Return both monthly costs over the volume as polylines on a square of 100 by 100. Points may be outside it."""
    step_cost = step_cost_from_inputs(inputs)
    step = (log10(x_axis.high) - log10(x_axis.low)) / CURVE_SAMPLES
    volumes = {round(x_axis.low * 10 ** (step * index)) for index in range(CURVE_SAMPLES + 1)}
    volumes |= {step_cost.capacity * k + extra for k in range(1, DRAWN_STEPS + 1) for extra in (0, 1)}
    visible_volumes = sorted(volume for volume in volumes if max(x_axis.low, 1) <= volume <= x_axis.high)
    self_hosted_points = [(volume, step_cost.usd(volume)) for volume in visible_volumes] if step_cost.capacity else []
    return {
        "own": _polyline(self_hosted_points, x_axis, y_axis),
        "other": _polyline([(v, v * usd_per_request) for v in visible_volumes], x_axis, y_axis),
    }


@dataclass(frozen=True)
class PaidSystem:
    """A paid system with its cost."""

    name: str
    title: str
    cost: PaidSystemCost


def build_cost_section(scores: Scores) -> View:
    """Return the cost section. It has no chart without a measured throughput or without a known price."""
    costs, titles = scores.cost, wording.display_names(scores)
    systems = [PaidSystem(name, titles.get(name, name), cost) for name, cost in costs.systems.items()]
    baseline = scores.primary_pair[1]
    # The plan's baseline comes first if its price is known.
    systems.sort(key=lambda system: (system.cost.usd_per_request is None, system.name != baseline))
    priced = [(system, system.cost.usd_per_request) for system in systems if system.cost.usd_per_request is not None]
    return {
        "self_hosted": costs.self_hosted,
        "inputs": costs.inputs,
        "systems": systems,
        "monthly": _monthly_rows(systems),
        "sensitivity": [system for system in systems if system.cost.sensitivity],
        "prices": [
            {"title": wording.display_name(system), "price": system.price}
            for system in scores.systems.values()
            if system.price
        ],
        "picture": _cost_chart(costs, priced) if isinstance(costs.self_hosted, MeasuredCost) and priced else None,
    }


def _cost_chart(costs: CostResult, priced: Sequence[tuple[PaidSystem, float]]) -> View:
    """Return the cost curves and the start values of the sliders. `priced` has the USD per request of each system."""
    inputs, (first_system, first_usd) = costs.inputs, priced[0]
    step_cost = step_cost_from_inputs(inputs)
    permanent_requests = (10 * (system.cost.break_even.permanent_requests or 0) for system, _ in priced)
    max_volume = max(1e8, 10 * inputs.monthly_requests, *permanent_requests)
    x_axis = Axis(
        min(1e3, _decade_below(inputs.monthly_requests)), min(_decade_above(max_volume), MAX_REQUESTS), log=True
    )
    min_usd = _decade_below(step_cost.usd(1) / 30)
    max_usd = max(step_cost.usd(int(x_axis.high)), *(x_axis.high * usd for _, usd in priced))
    y_axis = Axis(min_usd, max(_decade_above(max_usd), 10 * min_usd), log=True)
    return {
        "sentences": break_even_text(inputs, first_system.title, first_usd),
        "curves": cost_polylines(inputs, first_usd, x_axis, y_axis),
        "x_ticks": x_axis.ticks(7),
        "y_ticks": y_axis.ticks(6),
        "volume": x_axis.position(inputs.monthly_requests),
        "sliders": [_slider(name, label, inputs, x_axis) for name, label in SLIDERS],
        "choices": [system.title for system, _ in priced],
        "for_script": {
            "inputs": inputs.to_json(),
            "axes": {"x": [x_axis.low, x_axis.high], "y": [y_axis.low, y_axis.high]},
            "samples": CURVE_SAMPLES,
            "steps": DRAWN_STEPS,
            "systems": [{"title": system.title, "usd_per_request": usd} for system, usd in priced],
        },
    }


def _slider(name: str, label: str, inputs: CostInputs, x_axis: Axis) -> View:
    """Return range and position of a slider. The slider of the volume moves its power of ten."""
    value: float = getattr(inputs, name)
    bounds = {"gpu_usd_per_hour": (0.0, max(10.0, 4 * value)), "utilization": (0.01, 1.0), "engineer_share": (0.0, 1.0)}
    low, high = bounds.get(name, (log10(x_axis.low), log10(x_axis.high)))
    display = {"monthly_requests": f"{value:,}", "gpu_usd_per_hour": f"${value:.2f}"}
    label = f"{inputs.machine}, USD an hour" if name == "gpu_usd_per_hour" else label
    position = log10(value) if name == "monthly_requests" else value
    return {
        "name": name,
        "about": label,
        "low": low,
        "high": high,
        "at": position,
        "shown": display.get(name, format_axis_percent(value)),
    }


def _monthly_rows(systems: Sequence[PaidSystem]) -> list[View]:
    """Return a row for each monthly volume, with the cost of every paid system."""
    if not systems:
        return []
    return [
        {
            "volume": row,
            "closed": [{"title": system.title, "costs": system.cost.monthly[index]} for system in systems],
        }
        for index, row in enumerate(systems[0].cost.monthly)
    ]


def _polyline(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    return " ".join(f"{_position(x, x_axis):.2f},{100 - _position(y, y_axis):.2f}" for x, y in points)


def _position(value: float, axis: Axis) -> float:
    """Return the position of a value on a logarithmic axis in percent, without clipping."""
    low, high = log10(axis.low), log10(axis.high)
    return 100 * (log10(max(value, 1e-9)) - low) / (high - low)


def _decade_below(value: float) -> float:
    return float(10.0 ** floor(log10(max(value, 1))))


def _decade_above(value: float) -> float:
    return float(10.0 ** ceil(log10(max(value, 1))))
