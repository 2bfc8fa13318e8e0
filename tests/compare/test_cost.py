"""What owning costs against closed calls, and from which volume on it is cheaper: by formula, and counted out."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.cost import ownership
from compare.cost.break_even import BreakEven, StepCost, break_even, break_even_points
from compare.cost.ownership import ApiCost, CostComparison, SelfHostedMeasurement
from insource.backends import pricing
from insource.backends.pricing import TokenPrice
from insource.backends.types import Usage
from insource.config.schema import serving_and_cost
from insource.config.schema.compare import Baseline

GIVEN = serving_and_cost.Cost(gpu_usd_per_hour=0.8)
L4 = SelfHostedMeasurement(
    requests_per_second=20.0,
    hardware="1x NVIDIA L4",
    on_gpu=True,
    training_seconds=1800,
    tokens_per_request=240,
    correct_fraction=0.8,
)
ON_CPU = replace(L4, on_gpu=False, hardware="2 CPU cores")
NOT_MEASURED = replace(L4, requests_per_second=None, missing_reason="there is no GPU here")
DEAR = ApiCost("dear", 0.00045, 0.000225, 0.0003)
PRICE = TokenPrice(1.0, 4.0, 0.25, 0.5, 2.0, "recipe", "2026-11-01")

# Eighths: what floating point computes of them is exact, so that a formula and a count must agree to the request.
eighths = st.integers(0, 800).map(lambda eighth: eighth / 8)
capacities = st.integers(1, 40)
stairs = st.builds(StepCost, eighths, capacities, eighths)


def counted(step_cost: StepCost, usd: float, max_requests: int) -> tuple[int | None, int]:
    """Returns the first volume at which owning is cheaper, and the one after the last at which it is not."""
    cheaper = [step_cost.usd(requests) < requests * usd for requests in range(1, max_requests + 1)]
    first = cheaper.index(True) + 1 if True in cheaper else None
    last = next((requests for requests in range(max_requests, 0, -1) if not cheaper[requests - 1]), 0)
    return first, last + 1


@given(stairs, eighths)
def test_the_break_even_is_what_counting_finds(step_cost: StepCost, usd: float) -> None:
    points = break_even_points(step_cost.machine_usd, step_cost.capacity, step_cost.fixed_usd, usd)
    if points is None:
        assert counted(step_cost, usd, 50 * step_cost.capacity)[0] is None
    else:
        # To count as far as the farthest would take too long; its own surroundings are looked at all the same.
        assert points[1] > 10_000 or points == counted(step_cost, usd, points[1] + 3 * step_cost.capacity)
        assert step_cost.usd(points[0]) < points[0] * usd and step_cost.usd(points[1]) < points[1] * usd
        assert points[1] == 1 or step_cost.usd(points[1] - 1) >= (points[1] - 1) * usd


@given(
    st.floats(10, 1e5),
    st.integers(1, 10**9),
    st.floats(0, 1e5),
    st.floats(1e-7, 1),
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
)
def test_below_the_first_volume_owning_never_pays_and_from_there_it_does(
    machine_usd: float, capacity: int, fixed_usd: float, usd: float, fractions: list[float]
) -> None:
    step_cost, points = (
        StepCost(machine_usd, capacity, fixed_usd),
        break_even_points(machine_usd, capacity, fixed_usd, usd),
    )
    max_requests = 10**12 if points is None else points[0] - 1
    for fraction in fractions:
        requests = 1 + int(fraction * (max_requests - 1))
        if max_requests >= 1:
            assert step_cost.usd(requests) >= requests * usd * (1 - 1e-9)
        if points is not None:
            larger = points[1] + int(fraction * 3 * capacity)
            assert step_cost.usd(larger) < larger * usd * (1 + 1e-9)
    if points is not None:
        assert step_cost.usd(points[0]) < points[0] * usd * (1 + 1e-9)


@given(stairs, eighths, st.sampled_from(["machine_usd", "fixed_usd", "capacity", "usd"]), st.integers(1, 80))
def test_what_is_dearer_pays_later_and_what_replaces_more_pays_sooner(
    step_cost: StepCost, usd: float, field: str, eighth: int
) -> None:
    def compute_points(step_cost: StepCost, usd: float) -> tuple[float, float]:
        points = break_even_points(step_cost.machine_usd, step_cost.capacity, step_cost.fixed_usd, usd)
        return points or (float("inf"), float("inf"))

    earlier = compute_points(step_cost, usd)
    if field == "usd":
        later, earlier = earlier, compute_points(step_cost, usd + eighth / 8)
    elif field == "capacity":
        later, earlier = earlier, compute_points(replace(step_cost, capacity=step_cost.capacity + eighth), usd)
    else:
        later = compute_points(replace(step_cost, **{field: getattr(step_cost, field) + eighth / 8}), usd)
    assert earlier[0] <= later[0]
    # A larger machine moves the steps, so that only the first volume is sure to come no later.
    assert earlier[1] <= later[1] or field == "capacity"


def test_the_example_of_the_docstrings() -> None:
    step_cost = CostComparison(GIVEN, L4, []).step_cost
    assert step_cost is not None
    assert (step_cost.machine_usd, step_cost.capacity, step_cost.fixed_usd) == (
        pytest.approx(584),
        21_024_000,
        pytest.approx(3000.4),
    )
    assert break_even(step_cost, 0.00045) == BreakEven(7_965_334, 7_965_334)
    assert step_cost.usd(1_000_000) == pytest.approx(3584.40) and step_cost.usd(21_024_001) == pytest.approx(4168.40)


def test_a_second_machine_may_cross_back() -> None:
    step_cost = StepCost(machine_usd=1000, capacity=1000, fixed_usd=0)
    assert break_even_points(1000, 1000, 0, 1.5) == (667, 1334)
    assert step_cost.usd(1000) < 1000 * 1.5 and step_cost.usd(1001) > 1001 * 1.5


def test_one_a100_at_a_thousand_tokens_a_second_never_pays_against_the_cheapest_tier() -> None:
    cost = serving_and_cost.Cost(gpu_usd_per_hour=2.0, utilization=1.0, engineer_share=0.0, retrainings_per_month=0)
    a100 = SelfHostedMeasurement(
        requests_per_second=1.0, hardware="1x NVIDIA A100", on_gpu=True, training_seconds=0, tokens_per_request=1000
    )
    prices = [
        pricing.lookup_price(Baseline(provider="openai", model="gpt-6-luna")),
        pricing.lookup_price(Baseline(provider="anthropic", model="claude-haiku-5-5")),
    ]
    owned = CostComparison(cost, a100, []).summarize().to_json()["owned"]
    assert owned["usd_per_million_tokens_at_full_use"] == pytest.approx(0.56, abs=0.005)
    assert owned["capacity_tokens"] == pytest.approx(2.6e9, rel=0.02)
    for price in prices:
        # However the thousand tokens divide into input and output, though nobody runs it and it is never idle.
        for output_tokens in range(0, 1001, 50):
            api_cost = ownership.compute_api_cost("cheapest", price, [Usage(1000 - output_tokens, output_tokens)])
            result = CostComparison(cost, a100, [api_cost]).break_even(api_cost)
            assert result.never and result.first_requests is None
            assert result.reason is not None and "a full machine costs $1,460.00 a month" in result.reason
            assert "the 2,628,000 API calls that it replaces cost $" in result.reason


def test_little_that_is_left_does_not_pay_an_engineer() -> None:
    result = break_even(StepCost(machine_usd=0, capacity=1, fixed_usd=1e9), usd_per_request=0.5)
    assert result.never and result.reason is not None and "too little is left to pay for engineer" in result.reason


def test_nothing_is_said_of_what_was_not_measured() -> None:
    payload = CostComparison(GIVEN, NOT_MEASURED, [DEAR]).summarize().to_json()
    assert payload["owned"]["measured"] is False and payload["owned"]["why_not"] == "there is no GPU here"
    assert "usd_per_1k" not in payload["owned"]
    system = payload["systems"]["dear"]
    assert system["break_even"] == {
        "first_requests": None, "first_tokens": None, "for_good_requests": None, "for_good_tokens": None,
        "never": False, "why": "withheld: there is no GPU here",
    }  # fmt: skip
    assert system["sensitivity"] == []
    assert all(row["owned_usd"] is None and row["machines"] is None for row in system["monthly"])
    assert all(row["closed_usd"] == pytest.approx(row["requests"] * 0.00045) for row in system["monthly"])


def test_a_cpu_has_a_cost_only_if_the_recipe_gives_one() -> None:
    withheld = CostComparison(GIVEN, ON_CPU, [DEAR])
    assert "cost.cpu_usd_per_hour" in withheld.summarize().to_json()["owned"]["why_not"]
    assert withheld.break_even(DEAR).first_requests is None and not withheld.break_even(DEAR).never
    priced = CostComparison(GIVEN.model_copy(update={"cpu_usd_per_hour": 0.1}), ON_CPU, [DEAR]).summarize().to_json()
    assert priced["owned"]["measured"] and priced["owned"]["gpus"] == 0
    assert priced["inputs"]["machine"] == "CPU machine" and priced["inputs"]["gpu_usd_per_hour"] == 0.1
    values = [row["value"] for row in priced["systems"]["dear"]["sensitivity"] if row["what"].startswith("machine")]
    assert values == [0.05, 0.2]


def test_a_machine_that_is_too_slow_to_count_has_no_cost() -> None:
    slow = replace(L4, requests_per_second=1e-9)
    assert "less than one a month" in CostComparison(GIVEN, slow, []).summarize().to_json()["owned"]["why_not"]


def test_what_owning_costs_at_the_recipes_volume() -> None:
    owned = (
        CostComparison(GIVEN.model_copy(update={"monthly_requests": 50_000_000}), L4, []).summarize().to_json()["owned"]
    )
    assert owned["machines"] == 3 and owned["machines_usd"] == pytest.approx(3 * 584)
    assert (owned["engineer_usd"], owned["training_usd"]) == (pytest.approx(3000), pytest.approx(0.4))
    assert owned["usd_per_month"] == pytest.approx(3 * 584 + 3000.4)
    assert owned["usd_per_1k"] == pytest.approx(owned["usd_per_month"] / 50_000)
    assert owned["usd_per_1k_right"] == pytest.approx(owned["usd_per_1k"] / 0.8)


def test_nobody_divides_by_no_right_answer() -> None:
    assert (
        CostComparison(GIVEN, replace(L4, correct_fraction=0.0), []).summarize().to_json()["owned"]["usd_per_1k_right"]
        is None
    )


def test_closed_calls_cost_what_their_usage_says() -> None:
    usages = [Usage(1000, 10), Usage(3000, 30, reasoning_tokens=20, cached_tokens=2000), Usage(), Usage(500, None)]
    api_cost = ownership.compute_api_cost("openai:x", PRICE, usages)
    assert api_cost.usd_per_request == pytest.approx((1000 + 1000 + 2000 * 0.25 + 40 * 4) / 2 / 1e6)
    assert api_cost.usd_per_request_batch == pytest.approx((4000 * 0.5 + 40 * 2) / 2 / 1e6)
    assert api_cost.usd_per_request_cached == pytest.approx((4000 * 0.25 + 40 * 4) / 2 / 1e6)


@pytest.mark.parametrize(
    ("price", "usages", "reason"), [(None, [Usage(1, 1)], "its price"), (PRICE, [Usage()], "a token count")]
)
def test_a_closed_model_whose_cost_is_not_known(price: TokenPrice | None, usages: list[Usage], reason: str) -> None:
    api_cost = ownership.compute_api_cost("openai:x", price, usages)
    payload = CostComparison(GIVEN, L4, [api_cost]).summarize().to_json()["systems"]["openai:x"]
    assert payload["usd_per_request"] is None and payload["sensitivity"] == [] and not payload["break_even"]["never"]
    assert payload["break_even"]["why"].startswith("withheld: ") and reason in payload["break_even"]["why"]
    assert all(row["closed_usd"] is None and row["owned_usd"] > 0 for row in payload["monthly"])


def test_the_monthly_table_has_the_volumes_and_the_recipes_own() -> None:
    rows = CostComparison(GIVEN, L4, [DEAR]).summarize().to_json()["systems"]["dear"]["monthly"]
    assert [row["tokens"] for row in rows] == [10**6, 10**7, 10**8, 240_000_000, 10**9, 10**10]
    assert [row["requests"] for row in rows if row["of_recipe"]] == [1_000_000]
    assert [row["machines"] for row in rows] == [1, 1, 1, 1, 1, 2]
    assert rows[-1]["closed_usd"] == pytest.approx(41_666_667 * 0.00045)
    assert rows[-1]["closed_batch_usd"] == pytest.approx(rows[-1]["closed_usd"] / 2)
    assert rows[-1]["owned_usd"] == pytest.approx(2 * 584 + 3000.4)


def test_sensitivity_changes_one_thing_at_a_time() -> None:
    rows = CostComparison(GIVEN, L4, [DEAR]).summarize().to_json()["systems"]["dear"]["sensitivity"]
    by_parameter: dict[str, list[tuple[float, int | None]]] = {}
    for row in rows:
        by_parameter.setdefault(row["what"], []).append((row["value"], row["first_requests"]))
    assert [value for value, _ in by_parameter["GPU, USD an hour"]] == [0.4, 1.6]
    assert [value for value, _ in by_parameter["utilization"]] == [0.1, 0.2, 0.4, 0.8]
    assert [value for value, _ in by_parameter["engineer share"]] == [0.0, 0.1, 0.25, 0.5]
    base = 7_965_334
    assert dict(by_parameter["utilization"])[0.4] == dict(by_parameter["engineer share"])[0.25] == base
    halved, doubled = (first or 0 for _, first in by_parameter["GPU, USD an hour"])
    assert halved < base < doubled
    requests = [first or 0 for _, first in by_parameter["engineer share"]]
    assert requests == sorted(requests) and requests[0] < base < requests[-1]
    assert by_parameter["closed price halved, USD a request"] == by_parameter["closed batch price, USD a request"]
    assert all(row["first_tokens"] == row["first_requests"] * 240 for row in rows if row["first_requests"])


def test_cost_is_plain_json_with_what_the_sliders_need() -> None:
    payload: dict[str, Any] = CostComparison(GIVEN, L4, [DEAR, ApiCost("unknown", None)]).summarize().to_json()
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
    assert payload["inputs"] == {
        "machine": "GPU",
        "gpu_usd_per_hour": 0.8,
        "utilization": 0.4,
        "engineer_usd_per_month": 12000,
        "engineer_share": 0.25,
        "training_hours_per_month": 0.5,
        "requests_per_second": 20.0,
        "tokens_per_request": 240,
        "monthly_requests": 1_000_000,
        "hours_per_month": 730,
    }
    assert set(payload["systems"]["dear"]) == {
        "usd_per_request", "usd_per_request_batch", "usd_per_request_cached", "monthly", "break_even", "sensitivity",
    }  # fmt: skip


@given(st.floats(0.01, 100), st.floats(0.01, 1), st.integers(0, 100), st.floats(0, 1), st.floats(1e-7, 1e-2))
def test_the_sliders_figures_give_the_same_break_even(
    gpu_usd_per_hour: float, utilization: float, retrainings: int, engineer_share: float, usd: float
) -> None:
    """The page computes from `inputs` alone what was computed here from recipe and measurement."""
    cost = serving_and_cost.Cost(
        gpu_usd_per_hour=gpu_usd_per_hour,
        utilization=utilization,
        engineer_share=engineer_share,
        retrainings_per_month=retrainings,
    )
    api_cost = ApiCost("closed", usd)
    payload = CostComparison(cost, L4, [api_cost]).summarize().to_json()
    inputs = payload["inputs"]
    capacity = int(inputs["requests_per_second"] * 3600 * inputs["hours_per_month"] * inputs["utilization"])
    fixed_usd = inputs["engineer_usd_per_month"] * inputs["engineer_share"]
    fixed_usd += inputs["training_hours_per_month"] * inputs["gpu_usd_per_hour"]
    expected = break_even_points(inputs["gpu_usd_per_hour"] * inputs["hours_per_month"], capacity, fixed_usd, usd) or (
        None,
        None,
    )
    system = payload["systems"]["closed"]["break_even"]
    assert (system["first_requests"], system["for_good_requests"]) == expected
    assert system["never"] == (expected[0] is None)
