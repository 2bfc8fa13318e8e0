"""What the report shows of costs: where owning pays, the curve behind it, and what the page's sliders start from.

in   "inputs": {"gpu_usd_per_hour": 0.8, "utilization": 0.4, "requests_per_second": 20, ...}, $0.0004 a closed request
out  {"figure": "Owning pays from 8,961,001 requests a month.", "more": "...", "here": "..."}, and two polylines

report.js says the same sentences and draws the same lines when a slider moves; `crossings` has the formula of both.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from compare.cost.break_even import StepCost, break_even_points
from compare.report import wording
from compare.report.charts import Axis
from compare.report.wording import Scores

View = dict[str, Any]

CURVE_SAMPLES, DRAWN_STEPS = 240, 24
"""Of a curve: volumes it is computed at, and machines whose steps are drawn as steps."""
MAX_REQUESTS = 1e12
SLIDERS = (
    ("monthly_requests", "requests a month"),
    ("gpu_usd_per_hour", "USD an hour for one"),
    ("utilization", "utilization over the month"),
    ("engineer_share", "share of an engineer"),
)


def step_cost_from_inputs(inputs: Mapping[str, Any]) -> StepCost:
    """Returns what owning costs by the month under these inputs."""
    hourly = inputs["gpu_usd_per_hour"]
    capacity = inputs["requests_per_second"] * 3600 * inputs["hours_per_month"] * inputs["utilization"]
    engineer_usd = inputs["engineer_usd_per_month"] * inputs["engineer_share"]
    fixed_usd = engineer_usd + inputs["training_hours_per_month"] * hourly
    return StepCost(hourly * inputs["hours_per_month"], floor(capacity), fixed_usd)


def break_even_text(inputs: Mapping[str, Any], title: str, usd_per_request: float) -> dict[str, str]:
    """Returns the sentences about one closed system: from when on owning pays, and what it is at the volume given."""
    stairs, volume = step_cost_from_inputs(inputs), inputs["monthly_requests"]
    found = break_even_points(stairs.machine_usd, stairs.capacity, stairs.fixed_usd, usd_per_request)
    if found is None:
        figure = "Owning never pays."
        more = (
            f"A full machine costs {wording.format_usd(stairs.machine_usd)} a month, and the {stairs.capacity:,} "
            "requests "
            "that "
            f"it can answer cost {wording.format_usd(stairs.capacity * usd_per_request)} there."
        )
    else:
        figure = f"Owning pays from {wording.format_count(found[0], 'request')} a month."
        more = f"That is {wording.format_compact(found[0] * inputs['tokens_per_request'])} tokens."
        if found[1] > found[0]:
            more += f" Each further machine costs more at first; for good it pays from {found[1]:,}."
    if stairs.capacity < 1:
        return {"figure": figure, "more": "At this utilization a machine answers no request.", "here": ""}
    own, theirs = stairs.usd(volume), volume * usd_per_request
    here = (
        f"At {wording.format_count(volume, 'request')} a month: owned {wording.format_usd(own)} with "
        f"{wording.format_count(stairs.machines(volume), 'machine')}, {title} {wording.format_usd(theirs)}."
    )
    return {"figure": figure, "more": more, "here": here}


def cost_polylines(inputs: Mapping[str, Any], usd_per_request: float, across: Axis, upwards: Axis) -> dict[str, str]:
    """Returns both costs by the month over the volume as polylines on a square of 100 by 100, which they may leave."""
    stairs = step_cost_from_inputs(inputs)
    step = (log10(across.high) - log10(across.low)) / CURVE_SAMPLES
    volumes = {round(across.low * 10 ** (step * at)) for at in range(CURVE_SAMPLES + 1)}
    volumes |= {stairs.capacity * k + more for k in range(1, DRAWN_STEPS + 1) for more in (0, 1)}
    shown = sorted(one for one in volumes if max(across.low, 1) <= one <= across.high)
    own = [(one, stairs.usd(one)) for one in shown] if stairs.capacity else []
    return {
        "own": _polyline(own, across, upwards),
        "other": _polyline([(v, v * usd_per_request) for v in shown], across, upwards),
    }


def build_cost_section(scores: Scores) -> View:
    """Returns the section of costs. Without a measured throughput, or a closed price, it has no picture."""
    told, named = scores["cost"], wording.display_names(scores)
    systems = [{"name": name, "title": named.get(name, name), **one} for name, one in told["systems"].items()]
    other = wording.primary_pair(scores)[1]
    # The plan's baseline is shown first, where its price is known.
    systems.sort(key=lambda one: (one["usd_per_request"] is None, one["name"] != other))
    priced = [one for one in systems if one["usd_per_request"] is not None]
    measured = told["owned"]["measured"]
    listed = [one for one in scores["systems"].values() if one["price"]]
    return {
        "owned": told["owned"],
        "inputs": told["inputs"],
        "systems": systems,
        "monthly": _monthly_rows(systems),
        "sensitivity": [one for one in systems if one["sensitivity"]],
        "prices": [{"title": wording.display_name(one), **one["price"]} for one in listed],
        "picture": _cost_chart(told, priced) if measured and priced else None,
    }


def _cost_chart(told: Mapping[str, Any], priced: Sequence[Mapping[str, Any]]) -> View:
    """Returns the curve and what the sliders start from."""
    inputs, first = told["inputs"], priced[0]
    stairs = step_cost_from_inputs(inputs)
    far = max(1e8, 10 * inputs["monthly_requests"], *(10 * (_permanent_requests(one) or 0) for one in priced))
    across = Axis(min(1e3, _decade_below(inputs["monthly_requests"])), min(_decade_above(far), MAX_REQUESTS), log=True)
    least = _decade_below(stairs.usd(1) / 30)
    most = max(stairs.usd(int(across.high)), *(across.high * one["usd_per_request"] for one in priced))
    upwards = Axis(least, max(_decade_above(most), 10 * least), log=True)
    return {
        "said": break_even_text(inputs, first["title"], first["usd_per_request"]),
        "curves": cost_polylines(inputs, first["usd_per_request"], across, upwards),
        "x_ticks": across.ticks(7),
        "y_ticks": upwards.ticks(6),
        "volume": across.at(inputs["monthly_requests"]),
        "sliders": [_slider(name, about, inputs, across) for name, about in SLIDERS],
        "choices": [one["title"] for one in priced],
        "for_script": {
            "inputs": inputs,
            "axes": {"x": [across.low, across.high], "y": [upwards.low, upwards.high]},
            "samples": CURVE_SAMPLES,
            "steps": DRAWN_STEPS,
            "systems": [{"title": one["title"], "usd_per_request": one["usd_per_request"]} for one in priced],
        },
    }


def _slider(name: str, about: str, inputs: Mapping[str, Any], across: Axis) -> View:
    """Returns the ends of a slider. That of the volume moves its power of ten."""
    value = inputs[name]
    ends = {"gpu_usd_per_hour": (0.0, max(10.0, 4 * value)), "utilization": (0.01, 1.0), "engineer_share": (0.0, 1.0)}
    low, high = ends.get(name, (log10(across.low), log10(across.high)))
    shown = {"monthly_requests": f"{value:,}", "gpu_usd_per_hour": f"${value:.2f}"}
    about = f"{inputs['machine']}, USD an hour" if name == "gpu_usd_per_hour" else about
    at = log10(value) if name == "monthly_requests" else value
    return {
        "name": name,
        "about": about,
        "low": low,
        "high": high,
        "at": at,
        "shown": shown.get(name, wording.format_axis_percent(value)),
    }


def _monthly_rows(systems: Sequence[Mapping[str, Any]]) -> list[View]:
    """Returns a row for each monthly volume, with what every closed system costs at it."""
    if not systems:
        return []
    return [
        {**row, "closed": [{"title": one["title"], **one["monthly"][at]} for one in systems]}
        for at, row in enumerate(systems[0]["monthly"])
    ]


def _permanent_requests(one: Mapping[str, Any]) -> int | None:
    found: int | None = one["break_even"]["for_good_requests"]
    return found


def _polyline(points: Sequence[tuple[float, float]], across: Axis, upwards: Axis) -> str:
    return " ".join(f"{_position(x, across):.2f},{100 - _position(y, upwards):.2f}" for x, y in points)


def _position(value: float, axis: Axis) -> float:
    """Returns where a value lies on a logarithmic axis, in percent, beyond its ends too."""
    low, high = log10(axis.low), log10(axis.high)
    return 100 * (log10(max(value, 1e-9)) - low) / (high - low)


def _decade_below(value: float) -> float:
    return float(10.0 ** floor(log10(max(value, 1))))


def _decade_above(value: float) -> float:
    return float(10.0 ** ceil(log10(max(value, 1))))
