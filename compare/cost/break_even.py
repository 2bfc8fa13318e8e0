"""The monthly volume from which self-hosting is cheaper than API calls, in steps of one machine.

StepCost(machine_usd=584, capacity=21_024_000, fixed_usd=3000.4) against $0.00045 per API call:

    1,000,000 requests     $3,584.40 against $450.00
    7,965,334 requests     the first volume at which self-hosting is cheaper
    21,024,001 requests    a second machine: $4,168.40 against $9,460.80, still cheaper, so that it stays cheaper

Just above a step self-hosting may cost more again. So there are two results: the first volume at which it is cheaper,
and the volume from which it stays cheaper. If a full machine costs more than the API calls that it replaces, the result
is never.
"""

from dataclasses import dataclass
from math import floor

from insource.tracking.scores.cost_result import BreakEvenResult

# Upper bound of a plan: if only more machines would be cheaper, the result is never.
MAX_MACHINES = 1e9


@dataclass(frozen=True)
class StepCost:
    """Monthly cost of self-hosting at any volume."""

    machine_usd: float
    """Of one machine per month."""
    capacity: int
    """Requests per month that one machine can answer."""
    fixed_usd: float
    """Engineer and training per month."""

    def machines(self, requests: int) -> int:
        """Return the number of machines for a monthly volume, at least one."""
        return max(1, -(-requests // self.capacity))

    def usd(self, requests: int) -> float:
        """Return the cost of a monthly volume."""
        return self.machines(requests) * self.machine_usd + self.fixed_usd


@dataclass(frozen=True)
class BreakEven:
    """Monthly requests from which self-hosting is cheaper; both None if it never is, or if the costs are unknown."""

    first_requests: int | None = None
    permanent_requests: int | None = None
    never: bool = False
    reason: str | None = None
    """Why it never is cheaper, or why the result is withheld."""

    def with_tokens(self, tokens_per_request: float) -> BreakEvenResult:
        """Return the record of scores.json, with tokens beside requests."""
        first_requests, permanent_requests = self.first_requests, self.permanent_requests
        return BreakEvenResult(
            first_requests=first_requests,
            first_tokens=None if first_requests is None else round(first_requests * tokens_per_request),
            permanent_requests=permanent_requests,
            permanent_tokens=None if permanent_requests is None else round(permanent_requests * tokens_per_request),
            never=self.never,
            reason=self.reason,
        )


def break_even_points(
    machine_usd: float, capacity: int, fixed_usd: float, usd_per_request: float
) -> tuple[int, int] | None:
    """Return the first monthly volume at which self-hosting is cheaper, and the volume from which it stays cheaper.

    None if it never is. With M = machine_usd, C = capacity, F = fixed_usd, p = usd_per_request:

    v requests take k = max(1, ceil(v / C)) machines, and self-hosting is cheaper if k M + F < v p.

    report.js repeats these lines:

        gain = p C - M                            saving of a full machine
        never, if gain * 1e9 <= M + F             it saves nothing, or too little for a billion machines to cover F
        k = floor(F / gain) + 1                   the fewest machines that are cheaper when they are full
        while floor((k M + F) / p) + 1 > k C: k = k + 1       (if rounding made k too small by one)
        first = floor((k M + F) / p) + 1
        k = floor((F + (C - 1) p) / gain) + 1     the fewest of which the last is cheaper from its first request
        for_good = max(first, min(floor(((k - 1) M + F) / p), (k - 1) C) + 1)

    The first: v = k C, all machines full, is the best case of k machines. It is cheaper if k gain > F.

    The last: v = (k - 1) C + 1 is the worst case. It is cheaper if k gain > F + (C - 1) p. With k - 1 machines that
    condition does not hold. So the last volume that is not cheaper has k - 1 machines. It is the integer part of
    ((k - 1) M + F) / p.
    """
    gain = usd_per_request * capacity - machine_usd
    if gain * MAX_MACHINES <= machine_usd + fixed_usd:
        return None
    machines = floor(fixed_usd / gain) + 1
    while floor((machines * machine_usd + fixed_usd) / usd_per_request) + 1 > machines * capacity:
        machines += 1
    first_requests = floor((machines * machine_usd + fixed_usd) / usd_per_request) + 1
    full_machines = floor((fixed_usd + (capacity - 1) * usd_per_request) / gain)
    last_not_cheaper = min(floor((full_machines * machine_usd + fixed_usd) / usd_per_request), full_machines * capacity)
    return first_requests, max(first_requests, last_not_cheaper + 1)


def break_even(step_cost: StepCost, usd_per_request: float) -> BreakEven:
    """Return the break-even of self-hosting against API calls at that price, or why there is none."""
    points = break_even_points(step_cost.machine_usd, step_cost.capacity, step_cost.fixed_usd, usd_per_request)
    if points is not None:
        return BreakEven(*points)
    replaced = step_cost.capacity * usd_per_request
    reason = (
        f"a full machine costs ${step_cost.machine_usd:,.2f} a month, and the {step_cost.capacity:,} API calls "
        f"that it replaces cost ${replaced:,.2f}"
    )
    if replaced > step_cost.machine_usd:
        reason += f": too little is left to pay for engineer and training (${step_cost.fixed_usd:,.2f})"
    return BreakEven(never=True, reason=reason)
