"""The costs of self-hosting and of paid systems: `cost` in scores.json.

{"owned": {"measured": true, "usd_per_month": 3584.4, ...}, "inputs": {"gpu_usd_per_hour": 0.8, ...},
 "systems": {"openai:gpt-6-luna": {"usd_per_request": 0.00045, "monthly": [...], "break_even": {...}, ...}}}
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from insource.tracking.record import Number, Record, key


class UnmeasuredCost(Record):
    """Why the cost of self-hosting is unknown."""

    measured: Literal[False]
    missing_reason: str = key("why_not")
    hardware: str
    gpus: int


class MeasuredCost(Record):
    """The cost of self-hosting at the recipe's volume."""

    measured: Literal[True]
    missing_reason: None = key("why_not")
    hardware: str
    gpus: int
    machine_usd_per_hour: Number
    requests_per_second: Number
    capacity_requests: int
    capacity_tokens: int
    usd_per_million_tokens_at_full_use: Number | None
    requests: int
    machines: int
    machines_usd: Number
    engineer_usd: Number
    training_usd: Number
    usd_per_month: Number
    usd_per_1k: Number
    usd_per_1k_correct: Number | None = key("usd_per_1k_right")


class CostInputs(Record):
    """The start values of the report's sliders."""

    machine: str
    gpu_usd_per_hour: Number | None
    """Of one machine with all its GPUs; None for a CPU machine without a price."""
    utilization: Number
    engineer_usd_per_month: Number
    engineer_share: Number
    training_hours_per_month: Number
    requests_per_second: Number | None
    tokens_per_request: Number
    monthly_requests: int
    hours_per_month: Number


class MonthlyCost(Record):
    """Both costs at one monthly volume."""

    tokens: int
    requests: int
    of_recipe: bool
    """Whether it is the recipe's volume."""
    api_usd: Number | None = key("closed_usd")
    api_batch_usd: Number | None = key("closed_batch_usd")
    api_cached_usd: Number | None = key("closed_cached_usd")
    self_hosted_usd: Number | None = key("owned_usd")
    machines: int | None


class BreakEvenResult(Record):
    """Monthly volumes from which self-hosting is cheaper."""

    first_requests: int | None
    first_tokens: int | None
    permanent_requests: int | None = key("for_good_requests")
    permanent_tokens: int | None = key("for_good_tokens")
    never: bool
    reason: str | None = key("why")
    """Why it never is cheaper, or why the result is withheld."""


class ChangedAssumption(Record):
    """The break-even with one assumption changed."""

    assumption: str = key("what")
    value: Number
    first_requests: int | None
    first_tokens: int | None


class PaidSystemCost(Record):
    """The cost of a paid system, compared with self-hosting."""

    usd_per_request: Number | None
    usd_per_request_batch: Number | None
    usd_per_request_cached: Number | None
    monthly: Sequence[MonthlyCost]
    break_even: BreakEvenResult
    sensitivity: Sequence[ChangedAssumption]


class CostResult(Record):
    """The cost of self-hosting and of every paid system."""

    self_hosted: MeasuredCost | UnmeasuredCost = key("owned")
    inputs: CostInputs
    systems: Mapping[str, PaidSystemCost]
