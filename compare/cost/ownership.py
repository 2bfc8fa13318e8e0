"""What owning costs by the month, what closed calls cost, and what becomes of the break-even under other assumptions.

Owned(requests_per_second=20, hardware="1x NVIDIA L4", on_gpu=True, training_seconds=1800, tokens_per_request=240)
at $0.80 an hour, 40% utilization, $12,000 for an engineer of whom a quarter is taken, and $0.00045 for a closed call:

    a machine     $584.00 a month, 21,024,000 requests of it
    besides       $3,000.40 a month for engineer and training, whatever the volume
    owning pays   from 7,965,334 requests a month, for good

Nothing here is estimated: without a measured throughput nobody knows what owning costs, and nothing is said of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from compare.cost.break_even import BreakEven, StepCost, break_even
from insource.backends.pricing import TokenPrice
from insource.backends.types import Usage
from insource.config.schema import serving_and_cost

HOURS_PER_MONTH = 730
MONTHLY_TOKENS = (10**6, 10**7, 10**8, 10**9, 10**10)
UTILIZATIONS = (0.1, 0.2, 0.4, 0.8)
ENGINEER_SHARES = (0.0, 0.1, 0.25, 0.5)
# Keys of the recipe, as the report names them.
SENSITIVITY_LABELS = {
    "gpu_usd_per_hour": "GPU, USD an hour",
    "cpu_usd_per_hour": "machine, USD an hour",
    "utilization": "utilization",
    "engineer_share": "engineer share",
}

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SelfHostedMeasurement:
    """What was measured of the model that one would own."""

    requests_per_second: float | None
    """Of one machine, at the concurrency stated; None: not measured on what would serve it."""
    hardware: str
    on_gpu: bool
    gpus: int = 1
    """Of one machine."""
    training_seconds: float
    tokens_per_request: float
    """Read and written, by its own tokenizer."""
    why_not: str | None = None
    """Why its throughput was not measured."""
    right: float | None = None
    """Share of the test rows that it answers right."""


@dataclass(frozen=True)
class ApiCost:
    """What a request to a closed model, or to one whose answers one has, costs: the mean over the test set. None: not
    known."""

    name: str
    usd_per_request: float | None
    """As it was used, at the list price."""
    usd_per_request_batch: float | None = None
    usd_per_request_cached: float | None = None
    """Had all input been read from the provider's cache: a bound, as no cache holds what is new in each request."""
    why_not: str | None = None


def missing_reason(given: serving_and_cost.Cost, owned: SelfHostedMeasurement) -> str | None:
    """Returns why nobody can tell what owning costs; None where one can."""
    if owned.requests_per_second is None:
        return owned.why_not or "the throughput of this base was not measured on the hardware that would serve it"
    if machine_usd_per_hour(given, owned) is None:
        return (
            f"throughput was measured on a CPU ({owned.hardware}), and the recipe does not say what such a machine "
            "costs (cost.cpu_usd_per_hour)"
        )
    if _capacity(given, owned) < 1:
        return f"{owned.requests_per_second:g} requests a second are less than one a month at this utilization"
    return None


def machine_usd_per_hour(given: serving_and_cost.Cost, owned: SelfHostedMeasurement) -> float | None:
    """Returns what one machine costs an hour, with all its GPUs; None: a CPU whose price nobody gave."""
    return given.gpu_usd_per_hour * owned.gpus if owned.on_gpu else given.cpu_usd_per_hour


def build_step_cost(given: serving_and_cost.Cost, owned: SelfHostedMeasurement) -> StepCost | None:
    """Returns what owning costs by the month; None where nobody can tell (`why_not`)."""
    hourly = machine_usd_per_hour(given, owned)
    if hourly is None or missing_reason(given, owned) is not None:
        return None
    training_usd = _training_hours(given, owned) * hourly
    engineer_usd = given.engineer_usd_per_month * given.engineer_share
    return StepCost(hourly * HOURS_PER_MONTH, _capacity(given, owned), engineer_usd + training_usd)


def compute_api_cost(name: str, price: TokenPrice | None, usages: Iterable[Usage]) -> ApiCost:
    """Returns what a request costs on average, over all those whose tokens the provider counted."""
    if price is None:
        return ApiCost(name, None, why_not="nobody here knows its price; give it in the recipe (baselines: price)")
    told = [one for one in usages if one.input_tokens is not None and one.output_tokens is not None]
    if not told:
        return ApiCost(name, None, why_not="no answer tells how many tokens it took")
    batch = price.batch_input_usd_per_million is not None
    cached = price.cached_input_usd_per_million is not None
    return ApiCost(
        name,
        sum(price.usd(one) for one in told) / len(told),
        sum(price.usd(one, batch=True) for one in told) / len(told) if batch else None,
        sum(price.usd(replace(one, cached_tokens=one.input_tokens)) for one in told) / len(told) if cached else None,
    )


def compute_reported_cost(name: str, usd: Sequence[float]) -> ApiCost:
    """Returns what a request costs on average where each answer tells its own cost (cost_usd of a file of answers)."""
    if not usd:
        return ApiCost(name, None, why_not="no answer tells its cost_usd, and the recipe gives no price (price)")
    return ApiCost(name, sum(usd) / len(usd))


@dataclass(frozen=True)
class CostComparison:
    """The whole comparison of costs."""

    given: serving_and_cost.Cost
    owned: SelfHostedMeasurement
    closed: Sequence[ApiCost]

    def break_even(self, one: ApiCost) -> BreakEven:
        """Returns from which volume owning is cheaper than a closed model; withheld where one of both is not known."""
        stairs = build_step_cost(self.given, self.owned)
        if stairs is None:
            return BreakEven(why=f"withheld: {missing_reason(self.given, self.owned)}")
        if one.usd_per_request is None:
            return BreakEven(why=f"withheld: {one.why_not or 'what a request costs is not known'}")
        return break_even(stairs, one.usd_per_request)

    def json(self) -> Json:
        """Returns what scores.json says of costs."""
        return {
            "owned": self_hosting_json(self.given, self.owned),
            "inputs": slider_inputs(self.given, self.owned),
            "systems": {one.name: self._system(one) for one in self.closed},
        }

    def _system(self, one: ApiCost) -> Json:
        return {
            "usd_per_request": one.usd_per_request,
            "usd_per_request_batch": one.usd_per_request_batch,
            "usd_per_request_cached": one.usd_per_request_cached,
            "monthly": monthly_table(self.given, self.owned, one),
            "break_even": self.break_even(one).json(self.owned.tokens_per_request),
            "sensitivity": sensitivity_table(self.given, self.owned, one),
        }


def monthly_table(given: serving_and_cost.Cost, owned: SelfHostedMeasurement, one: ApiCost) -> list[Json]:
    """Returns the table of monthly volumes, the recipe's own among them, by volume."""
    stairs, tokens_each = build_step_cost(given, owned), owned.tokens_per_request

    def row(requests: int, tokens: int, of_recipe: bool) -> Json:
        return {
            "tokens": tokens,
            "requests": requests,
            "of_recipe": of_recipe,
            "closed_usd": _scaled(requests, one.usd_per_request),
            "closed_batch_usd": _scaled(requests, one.usd_per_request_batch),
            "closed_cached_usd": _scaled(requests, one.usd_per_request_cached),
            "owned_usd": stairs.usd(requests) if stairs else None,
            "machines": stairs.machines(requests) if stairs else None,
        }

    rows = [row(max(1, round(tokens / tokens_each)), tokens, False) for tokens in MONTHLY_TOKENS if tokens_each > 0]
    rows.append(row(given.monthly_requests, round(given.monthly_requests * tokens_each), True))
    return sorted(rows, key=lambda line: float(line["requests"]))


def sensitivity_table(given: serving_and_cost.Cost, owned: SelfHostedMeasurement, one: ApiCost) -> list[Json]:
    """Returns the break-even under other assumptions, one changed at a time; nothing where it is withheld."""
    if one.usd_per_request is None or build_step_cost(given, owned) is None:
        return []
    hourly = "gpu_usd_per_hour" if owned.on_gpu else "cpu_usd_per_hour"
    changes = [
        *((hourly, getattr(given, hourly) * times) for times in (0.5, 2)),
        *(("utilization", share) for share in UTILIZATIONS),
        *(("engineer_share", share) for share in ENGINEER_SHARES),
    ]
    found = [
        _with_assumption(
            given.model_copy(update={key: value}), owned, one.usd_per_request, SENSITIVITY_LABELS[key], value
        )
        for key, value in changes
    ]
    prices = {
        "closed price halved, USD a request": one.usd_per_request / 2,
        "closed batch price, USD a request": one.usd_per_request_batch,
        "closed price with all input cached, USD a request": one.usd_per_request_cached,
    }
    return found + [_with_assumption(given, owned, usd, what, usd) for what, usd in prices.items() if usd is not None]


def _with_assumption(
    given: serving_and_cost.Cost, owned: SelfHostedMeasurement, usd_per_request: float, what: str, value: float
) -> Json:
    stairs = build_step_cost(given, owned)
    # A machine that is hardly used may not answer one request a month: then no volume pays.
    first = break_even(stairs, usd_per_request).first_requests if stairs else None
    tokens = None if first is None else round(first * owned.tokens_per_request)
    return {"what": what, "value": value, "first_requests": first, "first_tokens": tokens}


def self_hosting_json(given: serving_and_cost.Cost, owned: SelfHostedMeasurement) -> Json:
    """Returns what owning costs at the recipe's volume, or why nobody can tell."""
    told = {"hardware": owned.hardware, "gpus": owned.gpus if owned.on_gpu else 0}
    stairs, hourly = build_step_cost(given, owned), machine_usd_per_hour(given, owned)
    if stairs is None or hourly is None or owned.requests_per_second is None:
        return {"measured": False, "why_not": missing_reason(given, owned), **told}
    volume = given.monthly_requests
    usd, machines = stairs.usd(volume), stairs.machines(volume)
    full_tokens = owned.requests_per_second * 3600 * owned.tokens_per_request
    return {
        "measured": True,
        "why_not": None,
        **told,
        "machine_usd_per_hour": hourly,
        "requests_per_second": owned.requests_per_second,
        "capacity_requests": stairs.capacity,
        "capacity_tokens": round(stairs.capacity * owned.tokens_per_request),
        "usd_per_million_tokens_at_full_use": hourly / full_tokens * 1e6 if full_tokens else None,
        "requests": volume,
        "machines": machines,
        "machines_usd": machines * stairs.machine_usd,
        "engineer_usd": given.engineer_usd_per_month * given.engineer_share,
        "training_usd": _training_hours(given, owned) * hourly,
        "usd_per_month": usd,
        "usd_per_1k": usd / volume * 1000,
        "usd_per_1k_right": usd / volume / owned.right * 1000 if owned.right else None,
    }


def slider_inputs(given: serving_and_cost.Cost, owned: SelfHostedMeasurement) -> Json:
    """Returns what the report's sliders start from. `gpu_usd_per_hour` is of one machine with all that is in it, which
    `machine` names: that is what a step of the staircase costs."""
    machine = "CPU machine" if not owned.on_gpu else "GPU" if owned.gpus == 1 else f"machine of {owned.gpus} GPUs"
    return {
        "machine": machine,
        "gpu_usd_per_hour": machine_usd_per_hour(given, owned),
        "utilization": given.utilization,
        "engineer_usd_per_month": given.engineer_usd_per_month,
        "engineer_share": given.engineer_share,
        "training_hours_per_month": _training_hours(given, owned),
        "requests_per_second": owned.requests_per_second,
        "tokens_per_request": owned.tokens_per_request,
        "monthly_requests": given.monthly_requests,
        "hours_per_month": HOURS_PER_MONTH,
    }


def _capacity(given: serving_and_cost.Cost, owned: SelfHostedMeasurement) -> int:
    """Whole requests: a machine does not answer a part of one."""
    return floor((owned.requests_per_second or 0.0) * 3600 * HOURS_PER_MONTH * given.utilization)


def _training_hours(given: serving_and_cost.Cost, owned: SelfHostedMeasurement) -> float:
    return owned.training_seconds / 3600 * given.retrainings_per_month


def _scaled(requests: int, usd: float | None) -> float | None:
    return None if usd is None else requests * usd
