"""The figures and pictures of the report: written exactly, and placed where they can be told apart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.report import charts, cost_section, section_data
from insource.system import number_format
from tests.helpers import example_scores
from tests.helpers.example_scores import API_MODEL


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "not measured"),
        (0, "$0"),
        (0.0004, "$0.0004"),
        (0.4, "$0.40"),
        (0.01234, "$0.0123"),
        (0.9996, "$1.00"),
        (12.345, "$12.35"),
        (584.5, "$585"),
        (1234567, "$1,234,567"),
    ],
)
def test_amounts_are_shown_to_three_digits_or_to_the_dollar(value: float | None, expected: str) -> None:
    assert number_format.format_usd(value) == expected


def test_figures_are_written_exactly() -> None:
    assert [number_format.format_percent(value) for value in (0, 0.0001, 0.912, 0.99999, 1)] == [
        "0.0%",
        "<0.1%",
        "91.2%",
        ">99.9%",
        "100.0%",
    ]
    assert [number_format.format_delta(value) for value in (0.0123, -0.0084, 0.0002, 0, -1e-9)] == [
        "+1.2",
        "−0.8",
        "+0.02",
        "0.0",
        "0.0",
    ]
    assert [number_format.format_seconds(value) for value in (0.0004, 0.085, 1.239)] == ["0.4 ms", "85 ms", "1.24 s"]
    assert [number_format.format_compact(value) for value in (950, 12345, 999_900, 2.15e9)] == [
        "950",
        "12.3k",
        "1M",
        "2.15B",
    ]
    assert [number_format.format_p_value(value) for value in (0.0001, 0.0131)] == ["<0.001", "0.013"]


@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=12))
def test_an_axis_of_amounts_holds_them_all_in_their_order_between_round_ends(amounts: list[float]) -> None:
    axis = charts.log_axis(amounts)
    assert axis.low <= min(amounts) * (1 + 1e-6) and axis.high >= max(amounts) * (1 - 1e-6)
    positions = [axis.position(amount) for amount in sorted(amounts)]
    assert positions == sorted(positions)
    ticks = [tick["x"] for tick in axis.ticks()]
    assert 1 <= len(ticks) <= 6 and ticks == sorted(ticks)


@given(st.lists(st.floats(min_value=0, max_value=1) | st.floats(min_value=-1, max_value=1), min_size=1, max_size=12))
def test_an_axis_of_shares_holds_them_all(shares: list[float]) -> None:
    axis = charts.fraction_axis(shares)
    assert axis.low <= min(shares) + 1e-6 and max(shares) - 1e-6 <= axis.high
    assert axis.low < axis.high and (axis.low >= 0 or min(shares) < 0)
    assert 2 <= len(axis.ticks()) <= 7


def test_a_difference_far_away_leaves_room_for_those_that_decide() -> None:
    group = section_data.differences(example_scores.make_scores())[0]
    figs = {row["b"]: row["fig"] for row in group["rows"]}
    assert {name for name, fig in figs.items() if fig["beyond"] == "right"} == {"base", "base:3-shot"}
    chief = group["rows"][0]
    assert chief["chief"] and chief["b"] == API_MODEL
    assert chief["fig"]["width"] > 10
    # Non-inferior: all of the interval is above the margin, and no difference is above all of it.
    assert chief["fig"]["margin"] < chief["fig"]["from"] < chief["fig"]["to"] <= chief["fig"]["zero"] + 0.01


points = st.lists(
    st.tuples(st.none() | st.just(0.0) | st.floats(0.001, 100), st.floats(0.1, 0.9), st.text(max_size=40)),
    min_size=1,
    max_size=14,
)


@given(points, st.booleans())
def test_no_label_of_the_cost_picture_covers_another_label_or_a_dot(entries: list[Any], named: bool) -> None:
    width, height = section_data.DESKTOP if named else section_data.PHONE
    rows = [
        {
            "key": index,
            "title": title,
            "class": "",
            "value": value,
            "low": value - 0.05,
            "high": value + 0.05,
            "cost": cost,
        }
        for index, (cost, value, title) in enumerate(entries)
    ]
    picture = charts.quality_cost_plot(rows, (width, height), named)
    if picture is None:
        assert not any(cost for cost, _, _ in entries)
        return
    assert {point["key"] for point in picture["points"]} == set(range(len(entries)))
    best = max(value for _, value, _ in entries)
    far = [point["below"] for point in picture["points"] if abs(point["value"] - best + 0.4) > 1e-6]
    assert far == [value < best - 0.4 for _, value, _ in entries if abs(value - best + 0.4) > 1e-6]
    lanes = [key for lane in picture["lanes"] for key in lane["keys"]]
    assert sorted(lanes) == [index for index, (cost, _, _) in enumerate(entries) if not cost]
    boxes = []
    for point in picture["points"]:
        x, y = point["x"] * width / 100 + point["dx"], point["y"] * height / 100 + point["dy"]
        length = charts.CHARACTER_PX * len(point["label"])
        remaining = x - length if point["anchor"] == "end" else x
        boxes.append((remaining, y - 12, remaining + length, y + 4, point["crowded"]))
    free = [box for box in boxes if not box[4]]
    dots = [(point["x"] * width / 100, point["y"] * height / 100) for point in picture["points"]]
    for remaining, top, correct, bottom, _ in free:
        assert not [1 for x, y in dots if remaining - 5 < x < correct + 5 and top - 5 < y < bottom + 5]
    for index, a in enumerate(free):
        for b in free[index + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_the_sentences_of_cost_are_those_of_the_break_even() -> None:
    scores = example_scores.make_scores()
    break_even = scores.cost.systems[API_MODEL].break_even
    texts = cost_section.break_even_text(scores.cost.inputs, "X", 0.0004)
    assert texts["figure"] == f"Self-hosting is cheaper from {break_even.first_requests:,} requests a month."
    assert texts["here"] == "At 1,000,000 requests a month: self-hosted $3,584 with 1 machine, X $400."
    assert (
        cost_section.break_even_text(scores.cost.inputs, "X", 0.0000131)["figure"] == "Self-hosting is never cheaper."
    )
