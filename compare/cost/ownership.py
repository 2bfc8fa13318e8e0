"""Monthly cost of self-hosting and of API calls, and the break-even under other assumptions.

SelfHostedMeasurement(requests_per_second=20, hardware="1x NVIDIA L4", on_gpu=True, training_seconds=1800,
                      tokens_per_request=240)
at $0.80 per hour, 40% utilization, $12,000 for an engineer with a share of a quarter, and $0.00045 per API call:

    a machine     $584.00 per month, 21,024,000 requests
    fixed         $3,000.40 per month for engineer and training, at any volume
    break-even    7,965,334 requests per month; above it self-hosting stays cheaper

Nothing is estimated: without a measured throughput the cost of self-hosting is unknown, and no cost is reported.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import floor

from compare.cost.break_even import BreakEven, StepCost, break_even
from insource.backends.pricing import TokenPrice
from insource.backends.types import Usage
from insource.config.schema import serving_and_cost
from insource.tracking.scores.cost_result import (
    ChangedAssumption,
    CostInputs,
    CostResult,
    MeasuredCost,
    MonthlyCost,
    PaidSystemCost,
    UnmeasuredCost,
)

HOURS_PER_MONTH = 730
MONTHLY_TOKENS = (10**6, 10**7, 10**8, 10**9, 10**10)
UTILIZATIONS = (0.1, 0.2, 0.4, 0.8)
ENGINEER_SHARES = (0.0, 0.1, 0.25, 0.5)
SENSITIVITY_LABELS = {
    "gpu_usd_per_hour": "GPU, USD an hour",
    "cpu_usd_per_hour": "machine, USD an hour",
    "utilization": "utilization",
    "engineer_share": "engineer share",
}


@dataclass(frozen=True, kw_only=True)
class SelfHostedMeasurement:
    """Measurements of the self-hosted model."""

    requests_per_second: float | None
    """Of one machine, at the reported concurrency; None if not measured on the serving hardware."""
    hardware: str
    on_gpu: bool
    gpus: int = 1
    """Of one machine."""
    training_seconds: float
    tokens_per_request: float
    """Input and output, by the model's own tokenizer."""
    missing_reason: str | None = None
    """Why its throughput was not measured."""
    correct_fraction: float | None = None
    """Fraction of the test rows with a right answer."""


@dataclass(frozen=True)
class ApiCost:
    """Mean cost of a request to a paid system over the test set. None: unknown."""

    name: str
    usd_per_request: float | None
    """As used, at the list price."""
    usd_per_request_batch: float | None = None
    usd_per_request_cached: float | None = None
    """With all input read from the provider's cache: a lower bound, as no cache contains the new part of a request."""
    missing_reason: str | None = None


def missing_reason(assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement) -> str | None:
    """Return why the cost of self-hosting is unknown, None if it is known."""
    if self_hosted.requests_per_second is None:
        return (
            self_hosted.missing_reason
            or "the throughput of this base was not measured on the hardware that would serve it"
        )
    if machine_usd_per_hour(assumptions, self_hosted) is None:
        return (
            f"throughput was measured on a CPU ({self_hosted.hardware}), and the recipe does not say what such a "
            "machine costs (cost.cpu_usd_per_hour)"
        )
    if _capacity(assumptions, self_hosted) < 1:
        return f"{self_hosted.requests_per_second:g} requests a second are less than one a month at this utilization"
    return None


def machine_usd_per_hour(assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement) -> float | None:
    """Return the hourly cost of one machine with all its GPUs; None for a CPU machine without a price."""
    return assumptions.gpu_usd_per_hour * self_hosted.gpus if self_hosted.on_gpu else assumptions.cpu_usd_per_hour


def build_step_cost(assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement) -> StepCost | None:
    """Return the monthly cost of self-hosting; None if it is unknown (`missing_reason`)."""
    hourly = machine_usd_per_hour(assumptions, self_hosted)
    if hourly is None or missing_reason(assumptions, self_hosted) is not None:
        return None
    training_usd = _training_hours(assumptions, self_hosted) * hourly
    engineer_usd = assumptions.engineer_usd_per_month * assumptions.engineer_share
    return StepCost(hourly * HOURS_PER_MONTH, _capacity(assumptions, self_hosted), engineer_usd + training_usd)


def compute_api_cost(name: str, price: TokenPrice | None, usages: Iterable[Usage]) -> ApiCost:
    """Return the mean cost of the requests whose tokens the provider counted."""
    if price is None:
        return ApiCost(name, None, missing_reason="its price is unknown; give it in the recipe (baselines: price)")
    counted = [usage for usage in usages if usage.input_tokens is not None and usage.output_tokens is not None]
    if not counted:
        return ApiCost(name, None, missing_reason="no answer has a token count")
    batch_usd = cached_usd = None
    if price.batch_input_usd_per_million is not None:
        batch_usd = sum(price.usd(usage, batch=True) for usage in counted) / len(counted)
    if price.cached_input_usd_per_million is not None:
        fully_cached = [replace(usage, cached_tokens=usage.input_tokens) for usage in counted]
        cached_usd = sum(map(price.usd, fully_cached)) / len(counted)
    return ApiCost(name, sum(map(price.usd, counted)) / len(counted), batch_usd, cached_usd)


def compute_reported_cost(name: str, usd: Sequence[float]) -> ApiCost:
    """Return the mean of the costs that answers report (cost_usd in a file of answers)."""
    if not usd:
        return ApiCost(name, None, missing_reason="no answer has a cost_usd, and the recipe gives no price (price)")
    return ApiCost(name, sum(usd) / len(usd))


@dataclass(frozen=True)
class CostComparison:
    """The cost of self-hosting compared with those of all paid systems."""

    assumptions: serving_and_cost.Cost
    self_hosted: SelfHostedMeasurement
    api_costs: Sequence[ApiCost]

    def break_even(self, api_cost: ApiCost) -> BreakEven:
        """Return the break-even with a paid system. It is withheld if one of the two costs is unknown."""
        step_cost = build_step_cost(self.assumptions, self.self_hosted)
        if step_cost is None:
            return BreakEven(reason=f"withheld: {missing_reason(self.assumptions, self.self_hosted)}")
        if api_cost.usd_per_request is None:
            return BreakEven(reason=f"withheld: {api_cost.missing_reason or 'what a request costs is not known'}")
        return break_even(step_cost, api_cost.usd_per_request)

    def summarize(self) -> CostResult:
        """Return the record of scores.json."""
        return CostResult(
            self_hosted=summarize_self_hosting(self.assumptions, self.self_hosted),
            inputs=slider_inputs(self.assumptions, self.self_hosted),
            systems={api_cost.name: self._summarize_system(api_cost) for api_cost in self.api_costs},
        )

    def _summarize_system(self, api_cost: ApiCost) -> PaidSystemCost:
        return PaidSystemCost(
            usd_per_request=api_cost.usd_per_request,
            usd_per_request_batch=api_cost.usd_per_request_batch,
            usd_per_request_cached=api_cost.usd_per_request_cached,
            monthly=monthly_table(self.assumptions, self.self_hosted, api_cost),
            break_even=self.break_even(api_cost).with_tokens(self.self_hosted.tokens_per_request),
            sensitivity=sensitivity_table(self.assumptions, self.self_hosted, api_cost),
        )


def monthly_table(
    assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement, api_cost: ApiCost
) -> list[MonthlyCost]:
    """Return the costs at several monthly volumes, including the recipe's volume, sorted by volume."""
    step_cost, tokens_each = build_step_cost(assumptions, self_hosted), self_hosted.tokens_per_request

    def row(requests: int, tokens: int, is_recipe_volume: bool) -> MonthlyCost:
        return MonthlyCost(
            tokens=tokens,
            requests=requests,
            of_recipe=is_recipe_volume,
            api_usd=_total_usd(requests, api_cost.usd_per_request),
            api_batch_usd=_total_usd(requests, api_cost.usd_per_request_batch),
            api_cached_usd=_total_usd(requests, api_cost.usd_per_request_cached),
            self_hosted_usd=step_cost.usd(requests) if step_cost else None,
            machines=step_cost.machines(requests) if step_cost else None,
        )

    rows = [row(max(1, round(tokens / tokens_each)), tokens, False) for tokens in MONTHLY_TOKENS if tokens_each > 0]
    rows.append(row(assumptions.monthly_requests, round(assumptions.monthly_requests * tokens_each), True))
    return sorted(rows, key=lambda entry: entry.requests)


def sensitivity_table(
    assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement, api_cost: ApiCost
) -> list[ChangedAssumption]:
    """Return the break-even under other assumptions, one changed at a time; empty if it is withheld."""
    if api_cost.usd_per_request is None or build_step_cost(assumptions, self_hosted) is None:
        return []
    hourly = "gpu_usd_per_hour" if self_hosted.on_gpu else "cpu_usd_per_hour"
    changes = [
        *((hourly, getattr(assumptions, hourly) * factor) for factor in (0.5, 2)),
        *(("utilization", fraction) for fraction in UTILIZATIONS),
        *(("engineer_share", fraction) for fraction in ENGINEER_SHARES),
    ]
    rows = [
        _sensitivity_row(
            assumptions.model_copy(update={key: value}),
            self_hosted,
            api_cost.usd_per_request,
            SENSITIVITY_LABELS[key],
            value,
        )
        for key, value in changes
    ]
    prices = {
        "closed price halved, USD a request": api_cost.usd_per_request / 2,
        "closed batch price, USD a request": api_cost.usd_per_request_batch,
        "closed price with all input cached, USD a request": api_cost.usd_per_request_cached,
    }
    return rows + [
        _sensitivity_row(assumptions, self_hosted, usd, label, usd) for label, usd in prices.items() if usd is not None
    ]


def _sensitivity_row(
    assumptions: serving_and_cost.Cost,
    self_hosted: SelfHostedMeasurement,
    usd_per_request: float,
    label: str,
    value: float,
) -> ChangedAssumption:
    step_cost = build_step_cost(assumptions, self_hosted)
    # At a low utilization a machine may not reach one request per month: then there is no break-even.
    first_requests = break_even(step_cost, usd_per_request).first_requests if step_cost else None
    tokens = None if first_requests is None else round(first_requests * self_hosted.tokens_per_request)
    return ChangedAssumption(assumption=label, value=value, first_requests=first_requests, first_tokens=tokens)


def summarize_self_hosting(
    assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement
) -> MeasuredCost | UnmeasuredCost:
    """Return the cost of self-hosting at the recipe's volume, or why it is unknown."""
    gpus = self_hosted.gpus if self_hosted.on_gpu else 0
    step_cost, hourly = build_step_cost(assumptions, self_hosted), machine_usd_per_hour(assumptions, self_hosted)
    if step_cost is None or hourly is None or self_hosted.requests_per_second is None:
        reason = missing_reason(assumptions, self_hosted) or ""
        return UnmeasuredCost(measured=False, missing_reason=reason, hardware=self_hosted.hardware, gpus=gpus)
    volume = assumptions.monthly_requests
    usd, machines = step_cost.usd(volume), step_cost.machines(volume)
    full_tokens = self_hosted.requests_per_second * 3600 * self_hosted.tokens_per_request
    return MeasuredCost(
        measured=True,
        missing_reason=None,
        hardware=self_hosted.hardware,
        gpus=gpus,
        machine_usd_per_hour=hourly,
        requests_per_second=self_hosted.requests_per_second,
        capacity_requests=step_cost.capacity,
        capacity_tokens=round(step_cost.capacity * self_hosted.tokens_per_request),
        usd_per_million_tokens_at_full_use=hourly / full_tokens * 1e6 if full_tokens else None,
        requests=volume,
        machines=machines,
        machines_usd=machines * step_cost.machine_usd,
        engineer_usd=assumptions.engineer_usd_per_month * assumptions.engineer_share,
        training_usd=_training_hours(assumptions, self_hosted) * hourly,
        usd_per_month=usd,
        usd_per_1k=usd / volume * 1000,
        usd_per_1k_correct=usd / volume / self_hosted.correct_fraction * 1000 if self_hosted.correct_fraction else None,
    )


def slider_inputs(assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement) -> CostInputs:
    """Return the start values of the report's sliders.

    `gpu_usd_per_hour` is the cost of one machine with all its GPUs, named by `machine`: the cost of one step.
    """
    machine = (
        "CPU machine"
        if not self_hosted.on_gpu
        else "GPU"
        if self_hosted.gpus == 1
        else f"machine of {self_hosted.gpus} GPUs"
    )
    return CostInputs(
        machine=machine,
        gpu_usd_per_hour=machine_usd_per_hour(assumptions, self_hosted),
        utilization=assumptions.utilization,
        engineer_usd_per_month=assumptions.engineer_usd_per_month,
        engineer_share=assumptions.engineer_share,
        training_hours_per_month=_training_hours(assumptions, self_hosted),
        requests_per_second=self_hosted.requests_per_second,
        tokens_per_request=self_hosted.tokens_per_request,
        monthly_requests=assumptions.monthly_requests,
        hours_per_month=HOURS_PER_MONTH,
    )


def _capacity(assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement) -> int:
    """Return the monthly requests of one machine, rounded down."""
    return floor((self_hosted.requests_per_second or 0.0) * 3600 * HOURS_PER_MONTH * assumptions.utilization)


def _training_hours(assumptions: serving_and_cost.Cost, self_hosted: SelfHostedMeasurement) -> float:
    return self_hosted.training_seconds / 3600 * assumptions.retrainings_per_month


def _total_usd(requests: int, usd: float | None) -> float | None:
    return None if usd is None else requests * usd
