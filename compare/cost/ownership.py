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
    """True if a machine has one GPU, False if it has none."""
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

    @property
    def machine_usd_per_hour(self) -> float | None:
        """Hourly cost of one machine; None for a CPU machine without a price."""
        return self.assumptions.gpu_usd_per_hour if self.self_hosted.on_gpu else self.assumptions.cpu_usd_per_hour

    @property
    def capacity(self) -> int:
        """Monthly requests of one machine, rounded down."""
        requests_per_second = self.self_hosted.requests_per_second or 0.0
        return floor(requests_per_second * 3600 * HOURS_PER_MONTH * self.assumptions.utilization)

    @property
    def training_hours_per_month(self) -> float:
        return self.self_hosted.training_seconds / 3600 * self.assumptions.retrainings_per_month

    @property
    def engineer_usd_per_month(self) -> float:
        return self.assumptions.engineer_usd_per_month * self.assumptions.engineer_share

    @property
    def missing_reason(self) -> str | None:
        """Why the cost of self-hosting is unknown, None if it is known."""
        self_hosted = self.self_hosted
        if self_hosted.requests_per_second is None:
            return (
                self_hosted.missing_reason
                or "the throughput of this base was not measured on the hardware that would serve it"
            )
        if self.machine_usd_per_hour is None:
            return (
                f"throughput was measured on a CPU ({self_hosted.hardware}), and the recipe does not say what such a "
                "machine costs (cost.cpu_usd_per_hour)"
            )
        if self.capacity < 1:
            rate = f"{self_hosted.requests_per_second:g} requests a second"
            return f"{rate} are less than one a month at this utilization"
        return None

    @property
    def step_cost(self) -> StepCost | None:
        """Monthly cost of self-hosting; None if it is unknown (`missing_reason`)."""
        hourly = self.machine_usd_per_hour
        if hourly is None or self.missing_reason is not None:
            return None
        training_usd = self.training_hours_per_month * hourly
        return StepCost(hourly * HOURS_PER_MONTH, self.capacity, self.engineer_usd_per_month + training_usd)

    def break_even(self, api_cost: ApiCost) -> BreakEven:
        """Return the break-even with a paid system. It is withheld if one of the two costs is unknown."""
        if (step_cost := self.step_cost) is None:
            return BreakEven(reason=f"withheld: {self.missing_reason}")
        if api_cost.usd_per_request is None:
            return BreakEven(reason=f"withheld: {api_cost.missing_reason or 'what a request costs is not known'}")
        return break_even(step_cost, api_cost.usd_per_request)

    def summarize(self) -> CostResult:
        """Return the record of scores.json."""
        return CostResult(
            self_hosted=self._summarize_self_hosting(),
            inputs=self._slider_inputs(),
            systems={api_cost.name: self._summarize_system(api_cost) for api_cost in self.api_costs},
        )

    def _summarize_system(self, api_cost: ApiCost) -> PaidSystemCost:
        return PaidSystemCost(
            usd_per_request=api_cost.usd_per_request,
            usd_per_request_batch=api_cost.usd_per_request_batch,
            usd_per_request_cached=api_cost.usd_per_request_cached,
            monthly=self._monthly_table(api_cost),
            break_even=self.break_even(api_cost).with_tokens(self.self_hosted.tokens_per_request),
            sensitivity=self._sensitivity_table(api_cost),
        )

    def _monthly_table(self, api_cost: ApiCost) -> list[MonthlyCost]:
        """Return the costs at several monthly volumes, including the recipe's volume, sorted by volume."""
        step_cost, tokens_each = self.step_cost, self.self_hosted.tokens_per_request

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
        volume = self.assumptions.monthly_requests
        rows.append(row(volume, round(volume * tokens_each), True))
        return sorted(rows, key=lambda entry: entry.requests)

    def _sensitivity_table(self, api_cost: ApiCost) -> list[ChangedAssumption]:
        """Return the break-even under other assumptions, one changed at a time; empty if it is withheld."""
        if api_cost.usd_per_request is None or self.step_cost is None:
            return []
        hourly = "gpu_usd_per_hour" if self.self_hosted.on_gpu else "cpu_usd_per_hour"
        changes = [
            *((hourly, getattr(self.assumptions, hourly) * factor) for factor in (0.5, 2)),
            *(("utilization", fraction) for fraction in UTILIZATIONS),
            *(("engineer_share", fraction) for fraction in ENGINEER_SHARES),
        ]
        rows = []
        for key, value in changes:
            changed = replace(self, assumptions=self.assumptions.model_copy(update={key: value}))
            rows.append(changed._sensitivity_row(api_cost.usd_per_request, SENSITIVITY_LABELS[key], value))
        prices = {
            "closed price halved, USD a request": api_cost.usd_per_request / 2,
            "closed batch price, USD a request": api_cost.usd_per_request_batch,
            "closed price with all input cached, USD a request": api_cost.usd_per_request_cached,
        }
        return rows + [self._sensitivity_row(usd, label, usd) for label, usd in prices.items() if usd is not None]

    def _sensitivity_row(self, usd_per_request: float, label: str, value: float) -> ChangedAssumption:
        step_cost = self.step_cost
        # At a low utilization a machine may not reach one request per month: then there is no break-even.
        first_requests = break_even(step_cost, usd_per_request).first_requests if step_cost else None
        tokens = None if first_requests is None else round(first_requests * self.self_hosted.tokens_per_request)
        return ChangedAssumption(assumption=label, value=value, first_requests=first_requests, first_tokens=tokens)

    def _summarize_self_hosting(self) -> MeasuredCost | UnmeasuredCost:
        """Return the cost of self-hosting at the recipe's volume, or why it is unknown."""
        self_hosted, gpus = self.self_hosted, int(self.self_hosted.on_gpu)
        step_cost, hourly = self.step_cost, self.machine_usd_per_hour
        if step_cost is None or hourly is None or self_hosted.requests_per_second is None:
            reason = self.missing_reason or ""
            return UnmeasuredCost(measured=False, missing_reason=reason, hardware=self_hosted.hardware, gpus=gpus)
        volume = self.assumptions.monthly_requests
        usd, machines = step_cost.usd(volume), step_cost.machines(volume)
        full_tokens = self_hosted.requests_per_second * 3600 * self_hosted.tokens_per_request
        correct_fraction = self_hosted.correct_fraction
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
            engineer_usd=self.engineer_usd_per_month,
            training_usd=self.training_hours_per_month * hourly,
            usd_per_month=usd,
            usd_per_1k=usd / volume * 1000,
            usd_per_1k_correct=usd / volume / correct_fraction * 1000 if correct_fraction else None,
        )

    def _slider_inputs(self) -> CostInputs:
        """Return the start values of the report's sliders.

        `gpu_usd_per_hour` is the cost of one machine, named by `machine`: the cost of one step.
        """
        assumptions, self_hosted = self.assumptions, self.self_hosted
        return CostInputs(
            machine="GPU" if self_hosted.on_gpu else "CPU machine",
            gpu_usd_per_hour=self.machine_usd_per_hour,
            utilization=assumptions.utilization,
            engineer_usd_per_month=assumptions.engineer_usd_per_month,
            engineer_share=assumptions.engineer_share,
            training_hours_per_month=self.training_hours_per_month,
            requests_per_second=self_hosted.requests_per_second,
            tokens_per_request=self_hosted.tokens_per_request,
            monthly_requests=assumptions.monthly_requests,
            hours_per_month=HOURS_PER_MONTH,
        )


def _total_usd(requests: int, usd: float | None) -> float | None:
    return None if usd is None else requests * usd
