"""The cost section of the report: break-even, cost curves, and the start values of the page's sliders.

in   "inputs": {"gpu_usd_per_hour": 0.8, "utilization": 0.4, "requests_per_second": 20, ...}, $0.0004 per API request
out  {"figure": "Owning pays from 8,961,001 requests a month.", "more": "...", "here": "..."}, and two polylines

report.js writes the same sentences and draws the same lines when a slider moves. The docstring of
`cost.break_even.break_even_points` has the formula of both.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from compare.cost.break_even import StepCost, break_even_points
from compare.report import wording
from compare.report.charts import Axis
from compare.report.wording import Scores
from insource.system.number_format import format_axis_percent, format_compact, format_count, format_usd

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


def step_cost_from_inputs(inputs: Mapping[str, Any]) -> StepCost:
    """Return the monthly cost of self-hosting under these inputs."""
    hourly = inputs["gpu_usd_per_hour"]
    capacity = inputs["requests_per_second"] * 3600 * inputs["hours_per_month"] * inputs["utilization"]
    engineer_usd = inputs["engineer_usd_per_month"] * inputs["engineer_share"]
    fixed_usd = engineer_usd + inputs["training_hours_per_month"] * hourly
    return StepCost(hourly * inputs["hours_per_month"], floor(capacity), fixed_usd)


def break_even_text(inputs: Mapping[str, Any], title: str, usd_per_request: float) -> dict[str, str]:
    """Return the sentences about one paid system: its break-even, and the costs at the given volume."""
    step_cost, volume = step_cost_from_inputs(inputs), inputs["monthly_requests"]
    points = break_even_points(step_cost.machine_usd, step_cost.capacity, step_cost.fixed_usd, usd_per_request)
    if points is None:
        headline = "Owning never pays."
        detail = (
            f"A full machine costs {format_usd(step_cost.machine_usd)} a month, and the {step_cost.capacity:,} "
            f"requests that it can answer cost {format_usd(step_cost.capacity * usd_per_request)} there."
        )
    else:
        headline = f"Owning pays from {format_count(points[0], 'request')} a month."
        detail = f"That is {format_compact(points[0] * inputs['tokens_per_request'])} tokens."
        if points[1] > points[0]:
            detail += f" Each further machine costs more at first; for good it pays from {points[1]:,}."
    if step_cost.capacity < 1:
        return {"figure": headline, "more": "At this utilization a machine answers no request.", "here": ""}
    owned_usd, api_usd = step_cost.usd(volume), volume * usd_per_request
    at_volume = (
        f"At {format_count(volume, 'request')} a month: owned {format_usd(owned_usd)} with "
        f"{format_count(step_cost.machines(volume), 'machine')}, {title} {format_usd(api_usd)}."
    )
    return {"figure": headline, "more": detail, "here": at_volume}


def cost_polylines(inputs: Mapping[str, Any], usd_per_request: float, x_axis: Axis, y_axis: Axis) -> dict[str, str]:
    """Return both monthly costs over the volume as polylines on a square of 100 by 100. Points may be outside it."""
    step_cost = step_cost_from_inputs(inputs)
    step = (log10(x_axis.high) - log10(x_axis.low)) / CURVE_SAMPLES
    volumes = {round(x_axis.low * 10 ** (step * index)) for index in range(CURVE_SAMPLES + 1)}
    volumes |= {step_cost.capacity * k + extra for k in range(1, DRAWN_STEPS + 1) for extra in (0, 1)}
    visible_volumes = sorted(volume for volume in volumes if max(x_axis.low, 1) <= volume <= x_axis.high)
    owned_points = [(volume, step_cost.usd(volume)) for volume in visible_volumes] if step_cost.capacity else []
    return {
        "own": _polyline(owned_points, x_axis, y_axis),
        "other": _polyline([(v, v * usd_per_request) for v in visible_volumes], x_axis, y_axis),
    }


def build_cost_section(scores: Scores) -> View:
    """Return the cost section. It has no chart without a measured throughput or without a known price."""
    costs, titles = scores["cost"], wording.display_names(scores)
    systems = [{"name": name, "title": titles.get(name, name), **system} for name, system in costs["systems"].items()]
    baseline = wording.primary_pair(scores)[1]
    # The plan's baseline comes first if its price is known.
    systems.sort(key=lambda system: (system["usd_per_request"] is None, system["name"] != baseline))
    priced = [system for system in systems if system["usd_per_request"] is not None]
    measured = costs["owned"]["measured"]
    listed = [system for system in scores["systems"].values() if system["price"]]
    return {
        "owned": costs["owned"],
        "inputs": costs["inputs"],
        "systems": systems,
        "monthly": _monthly_rows(systems),
        "sensitivity": [system for system in systems if system["sensitivity"]],
        "prices": [{"title": wording.display_name(system), **system["price"]} for system in listed],
        "picture": _cost_chart(costs, priced) if measured and priced else None,
    }


def _cost_chart(costs: Mapping[str, Any], priced: Sequence[Mapping[str, Any]]) -> View:
    """Return the cost curves and the start values of the sliders."""
    inputs, first_system = costs["inputs"], priced[0]
    step_cost = step_cost_from_inputs(inputs)
    max_volume = max(
        1e8, 10 * inputs["monthly_requests"], *(10 * (_permanent_requests(system) or 0) for system in priced)
    )
    x_axis = Axis(
        min(1e3, _decade_below(inputs["monthly_requests"])), min(_decade_above(max_volume), MAX_REQUESTS), log=True
    )
    min_usd = _decade_below(step_cost.usd(1) / 30)
    max_usd = max(step_cost.usd(int(x_axis.high)), *(x_axis.high * system["usd_per_request"] for system in priced))
    y_axis = Axis(min_usd, max(_decade_above(max_usd), 10 * min_usd), log=True)
    return {
        "said": break_even_text(inputs, first_system["title"], first_system["usd_per_request"]),
        "curves": cost_polylines(inputs, first_system["usd_per_request"], x_axis, y_axis),
        "x_ticks": x_axis.ticks(7),
        "y_ticks": y_axis.ticks(6),
        "volume": x_axis.position(inputs["monthly_requests"]),
        "sliders": [_slider(name, label, inputs, x_axis) for name, label in SLIDERS],
        "choices": [system["title"] for system in priced],
        "for_script": {
            "inputs": inputs,
            "axes": {"x": [x_axis.low, x_axis.high], "y": [y_axis.low, y_axis.high]},
            "samples": CURVE_SAMPLES,
            "steps": DRAWN_STEPS,
            "systems": [{"title": system["title"], "usd_per_request": system["usd_per_request"]} for system in priced],
        },
    }


def _slider(name: str, label: str, inputs: Mapping[str, Any], x_axis: Axis) -> View:
    """Return range and position of a slider. The slider of the volume moves its power of ten."""
    value = inputs[name]
    bounds = {"gpu_usd_per_hour": (0.0, max(10.0, 4 * value)), "utilization": (0.01, 1.0), "engineer_share": (0.0, 1.0)}
    low, high = bounds.get(name, (log10(x_axis.low), log10(x_axis.high)))
    display = {"monthly_requests": f"{value:,}", "gpu_usd_per_hour": f"${value:.2f}"}
    label = f"{inputs['machine']}, USD an hour" if name == "gpu_usd_per_hour" else label
    position = log10(value) if name == "monthly_requests" else value
    return {
        "name": name,
        "about": label,
        "low": low,
        "high": high,
        "at": position,
        "shown": display.get(name, format_axis_percent(value)),
    }


def _monthly_rows(systems: Sequence[Mapping[str, Any]]) -> list[View]:
    """Return a row for each monthly volume, with the cost of every paid system."""
    if not systems:
        return []
    return [
        {**row, "closed": [{"title": system["title"], **system["monthly"][index]} for system in systems]}
        for index, row in enumerate(systems[0]["monthly"])
    ]


def _permanent_requests(system: Mapping[str, Any]) -> int | None:
    requests: int | None = system["break_even"]["for_good_requests"]
    return requests


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
