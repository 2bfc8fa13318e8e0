"""From which monthly volume on owning is cheaper than closed calls, where machines are bought whole.

Staircase(machine_usd=584, capacity=21_024_000, fixed_usd=3000.4) against $0.00045 a closed call:

    1,000,000 requests     $3,584.40 against $450.00
    7,965,334 requests     the first volume at which owning is cheaper
    21,024,001 requests    a second machine: $4,168.40 against $9,460.80, still cheaper, so that it is for good

Right above a step owning may cost more again, so there are two answers: the first volume that pays, and that from which
every larger one does. Where a full machine costs more than the closed calls that it replaces, the answer is never.
"""

from dataclasses import dataclass
from math import floor
from typing import Any

# More machines than this are no plan: what pays only with more of them never pays.
MAX_MACHINES = 1e9


@dataclass(frozen=True)
class StepCost:
    """What owning costs by the month, at any volume."""

    machine_usd: float
    """Of one machine for a month."""
    capacity: int
    """Requests that one machine answers in a month."""
    fixed_usd: float
    """Of engineer and training for a month."""

    def machines(self, requests: int) -> int:
        """Returns how many machines a monthly volume takes, at least one."""
        return max(1, -(-requests // self.capacity))

    def usd(self, requests: int) -> float:
        """Returns what a monthly volume costs."""
        return self.machines(requests) * self.machine_usd + self.fixed_usd


@dataclass(frozen=True)
class BreakEven:
    """Requests a month at which owning becomes cheaper; both None where it never does, or where nobody can tell."""

    first_requests: int | None = None
    for_good_requests: int | None = None
    never: bool = False
    why: str | None = None
    """Why never, or why it is withheld."""

    def json(self, tokens_per_request: float) -> dict[str, Any]:
        """Returns the same with tokens beside requests."""
        first_requests, permanent_requests = self.first_requests, self.for_good_requests
        return {
            "first_requests": first_requests,
            "first_tokens": None if first_requests is None else round(first_requests * tokens_per_request),
            "for_good_requests": permanent_requests,
            "for_good_tokens": None if permanent_requests is None else round(permanent_requests * tokens_per_request),
            "never": self.never,
            "why": self.why,
        }


def break_even_points(
    machine_usd: float, capacity: int, fixed_usd: float, usd_per_request: float
) -> tuple[int, int] | None:
    """Returns the first number of requests a month at which owning is cheaper, and that from which it stays cheaper
    whatever comes on top; None: never.

    With M = machine_usd, C = capacity, F = fixed_usd, p = usd_per_request: v requests take k = max(1, ceil(v / C))
    machines, and owning is cheaper where k M + F < v p. The report's page repeats these lines:

        gain = p C - M                            what a full machine saves
        never, if gain * 1e9 <= M + F             it saves nothing, or too little for a billion machines to pay for F
        k = floor(F / gain) + 1                   the fewest machines that pay when they are full
        while floor((k M + F) / p) + 1 > k C: k = k + 1       (where rounding made k too small by one)
        first = floor((k M + F) / p) + 1
        k = floor((F + (C - 1) p) / gain) + 1     the fewest machines of which the last pays with its first request
        for_good = max(first, min(floor(((k - 1) M + F) / p), (k - 1) C) + 1)

    The first: v = k C, all machines full, is the best that k machines can do, and k gain > F says that it pays.
    The last: v = (k - 1) C + 1 is the worst, and k gain > F + (C - 1) p says that it pays too. With k - 1 machines it
    does not, so the last volume that does not pay is theirs: the whole part of ((k - 1) M + F) / p.
    """
    gain = usd_per_request * capacity - machine_usd
    if gain * MAX_MACHINES <= machine_usd + fixed_usd:
        return None
    machines = floor(fixed_usd / gain) + 1
    while floor((machines * machine_usd + fixed_usd) / usd_per_request) + 1 > machines * capacity:
        machines += 1
    first_requests = floor((machines * machine_usd + fixed_usd) / usd_per_request) + 1
    full_machines = floor((fixed_usd + (capacity - 1) * usd_per_request) / gain)
    permanent_requests = (
        min(floor((full_machines * machine_usd + fixed_usd) / usd_per_request), full_machines * capacity) + 1
    )
    return first_requests, max(first_requests, permanent_requests)


def break_even(step_cost: StepCost, usd_per_request: float) -> BreakEven:
    """Returns from which monthly volume owning is cheaper than closed calls at that price, or why it never is."""
    points = break_even_points(step_cost.machine_usd, step_cost.capacity, step_cost.fixed_usd, usd_per_request)
    if points is not None:
        return BreakEven(*points)
    replaced = step_cost.capacity * usd_per_request
    reason = (
        f"a full machine costs ${step_cost.machine_usd:,.2f} a month, and the {step_cost.capacity:,} closed calls "
        "that it "
        f"replaces cost ${replaced:,.2f}"
    )
    if replaced > step_cost.machine_usd:
        reason += f": too little is left to pay for engineer and training (${step_cost.fixed_usd:,.2f})"
    return BreakEven(never=True, why=reason)
