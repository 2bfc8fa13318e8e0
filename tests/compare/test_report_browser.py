"""report.html as a reader opens it, in Chromium: nothing hostile runs, what can be moved moves, and it fits a phone.

Skipped where there is no Chromium, or no playwright to drive it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compare.report import charts, cost_section, html_page
from insource.system import number_format
from insource.tracking.scores.comparison import Scores
from tests.helpers import example_scores
from tests.helpers.browser import launch_browser
from tests.helpers.example_scores import API_MODEL, SCRIPT_TAG

TITLE = "support_tickets: comparison"
WIDE = {"width": 1100, "height": 900}

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launch_browser() as launched:
        yield launched


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a report as a reader does; what the browser complains about or asks for is kept beside it."""
    contexts = []

    def render(scores: dict[str, Any], viewport: dict[str, int] = WIDE, **options: Any) -> Any:
        path = tmp_path / "report.html"
        page = html_page.render_html(Scores.model_validate(scores), example_scores.make_disagreements())
        path.write_text(page, encoding="utf-8")
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield render
    for context in contexts:
        context.close()


def slide(page: Any, name: str, value: float) -> None:
    set_and_tell = "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', {bubbles: true})); }"
    page.locator(f"#slide-{name}").evaluate(set_and_tell, value)


def visible_rows(page: Any, rows: str) -> list[str]:
    return [element.inner_text() for element in page.locator(rows).all() if element.is_visible()]


def test_no_hostile_text_runs_and_nothing_is_asked_of_the_network(open_report: Open) -> None:
    page = open_report(example_scores.make_json())
    assert page.title() == TITLE
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("file:")] == []
    assert len(page.requests) == 1
    assert page.get_by_text(SCRIPT_TAG).count() > 3
    assert page.locator("img, iframe").count() == 0


def test_a_script_that_got_in_would_not_run(open_report: Open) -> None:
    page = open_report(example_scores.make_json())
    page.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = \"document.title = 'hacked'\";"
        " document.body.append(one); const two = document.createElement('img'); two.src = 'x';"
        " two.setAttribute('onerror', \"document.title = 'hacked'\"); document.body.append(two); }"
    )
    page.wait_for_timeout(200)
    assert page.title() == TITLE
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_sliders_move_the_break_even_to_what_python_computes(open_report: Open) -> None:
    scores = example_scores.make_scores()
    page, inputs = open_report(scores.to_json()), scores.cost.inputs
    initial = cost_section.break_even_text(inputs, API_MODEL, 0.0004)
    assert page.locator("#pays-figure").inner_text() == initial["figure"]
    moves = [
        ("utilization", 0.8, 0.8),
        ("gpu_usd_per_hour", 2.5, 2.5),
        ("engineer_share", 0.0, 0.0),
        ("monthly_requests", 8.0, 100_000_000),
        ("engineer_share", 0.73, 0.73),
        ("gpu_usd_per_hour", 9.99, 9.99),
        ("utilization", 0.01, 0.01),
        ("gpu_usd_per_hour", 0.0, 0.0),
        ("monthly_requests", 3.2, 1580),
    ]
    figures = {initial["figure"]}
    for name, slider, value in moves:
        slide(page, name, slider)
        inputs = inputs.model_copy(update={name: value})
        expected = cost_section.break_even_text(inputs, API_MODEL, 0.0004)
        figures.add(expected["figure"])
        for part, text in expected.items():
            assert page.locator(f"#pays-{part}").inner_text() == text, (name, value)
    assert len(figures) > 5
    assert page.locator("#shown-utilization").inner_text() == "1%"
    page.locator("#pays-reset").click()
    assert page.locator("#pays-figure").inner_text() == initial["figure"]
    assert page.complaints == []


def test_sliders_move_the_curve_that_python_draws(open_report: Open) -> None:
    scores = example_scores.make_scores()
    page = open_report(scores.to_json())
    axes = cost_section.build_cost_section(scores)["picture"]["for_script"]["axes"]
    across, upwards = (charts.Axis(*axes[direction], log=True) for direction in ("x", "y"))
    original = page.locator("#pays-own").get_attribute("points")
    slide(page, "utilization", 0.05)
    inputs = scores.cost.inputs.model_copy(update={"utilization": 0.05})
    expected = cost_section.cost_polylines(inputs, 0.0004, across, upwards)
    for name, line in expected.items():
        points = page.locator(f"#pays-{name}").get_attribute("points")
        numbers = [[float(number) for number in re.split("[ ,]", text)] for text in (points, line)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.02)
    assert page.locator("#pays-own").get_attribute("points") != original


def test_the_break_even_can_be_seen_against_another_closed_model(open_report: Open) -> None:
    page = open_report(example_scores.make_json())
    page.locator("#pays-against").select_option(label="what we pay for today")
    assert page.locator("#pays-figure").inner_text() == "Self-hosting is never cheaper."
    assert "it can answer cost $275 there" in page.locator("#pays-more").inner_text()


def test_sliders_work_by_keyboard_and_tell_their_unit(open_report: Open) -> None:
    page = open_report(example_scores.make_json())
    original = page.locator("#pays-figure").inner_text()
    page.locator("#slide-engineer_share").focus()
    page.keyboard.press("End")
    assert page.locator("#pays-figure").inner_text() != original
    value_text = page.locator("#slide-engineer_share").get_attribute("aria-valuetext")
    assert value_text == "100% share of an engineer"


def test_a_table_sorts_by_a_column_and_says_so(open_report: Open) -> None:
    page = open_report(example_scores.make_json())
    column = "#parts-table tbody tr td:nth-of-type(4)"

    def values() -> list[float]:
        return [float(text.rstrip("%")) for text in page.locator(column).all_inner_texts()]

    original_order = values()
    head = page.locator("#parts-table thead th", has_text="F1").first
    head.locator("button").click()
    assert values() == sorted(original_order, reverse=True) != original_order
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    assert values() == sorted(original_order)
    assert head.get_attribute("aria-sort") == "ascending"
    page.locator("#parts-table thead th button", has_text="Label").click()
    names = page.locator("#parts-table tbody th").all_inner_texts()
    assert names == sorted(names, key=str.lower)
    assert page.locator("#parts-table [aria-sort]").count() == 1


def test_labels_are_found_by_their_name_and_shown_for_the_system_chosen(open_report: Open) -> None:
    scores = example_scores.make_json()
    page = open_report(scores)
    page.locator("#parts-filter").fill("CARD")
    assert len(visible_rows(page, "#parts-table tbody tr")) == 2
    assert page.locator("#parts-count").inner_text() == "2 shown"
    page.locator("#parts-first").select_option(label="base")
    row = page.locator("#parts-table tbody tr", has_text="card_arrival").locator("td").all_inner_texts()
    base_metrics, api_metrics = (scores["systems"][name]["per_part"]["card_arrival"] for name in ("base", API_MODEL))
    figures = [
        number_format.format_percent(value)
        for value in (base_metrics["precision"], base_metrics["recall"], base_metrics["f1"], api_metrics["f1"])
    ]
    assert row[1:] == [*figures, number_format.format_delta(base_metrics["f1"] - api_metrics["f1"])]
    assert page.locator("#parts-caption bdi").first.inner_text() == "base"


def test_disagreements_are_filtered_by_who_is_right_and_by_text_and_paged(open_report: Open) -> None:
    page = open_report(example_scores.make_json())
    rows = "#rows-list > li"
    assert len(visible_rows(page, rows)) == 10
    assert page.locator("#rows-count").inner_text() == "1 to 10 of 57"
    page.locator("#rows-who").select_option("first")
    assert page.locator("#rows-count").inner_text() == "1 to 10 of 19"
    page.locator("#rows-on").click()
    assert page.locator("#rows-count").inner_text() == "11 to 19 of 19"
    assert page.locator("#rows-on").is_disabled()
    assert all("Message" in text for text in visible_rows(page, rows))
    page.locator("#rows-filter").fill("message 27:")
    assert page.locator("#rows-count").inner_text() == "1 to 1 of 1"
    page.locator("#rows-filter").fill("no text has this")
    assert page.locator("#rows-count").inner_text() == "none"
    assert visible_rows(page, rows) == []


@pytest.mark.parametrize("labels", [9, 77])
@pytest.mark.parametrize("width", [360, 390, 768, 1100])
def test_nothing_scrolls_sideways(open_report: Open, labels: int, width: int) -> None:
    page = open_report(example_scores.make_json(labels=labels), {"width": width, "height": 844})
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.innerWidth") == width


def test_without_scripts_all_tables_are_there_and_no_control_that_would_do_nothing(open_report: Open) -> None:
    page = open_report(example_scores.make_json(), java_script_enabled=False)
    assert visible_rows(page, "input, select, button") == []
    assert len(visible_rows(page, "#parts-table tbody tr")) == 9
    assert len(visible_rows(page, "#rows-list > li")) == 57
    assert page.locator("#pays-figure").inner_text() == "Self-hosting is cheaper from 8,961,001 requests a month."


def test_the_page_is_dark_where_the_reader_wants_that_and_is_printed_on_white(open_report: Open) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page = open_report(example_scores.make_json(), color_scheme="dark")
    assert page.evaluate(paper) == "rgb(18, 22, 27)"
    page.emulate_media(media="print")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert visible_rows(page, "nav, .tools, input") == []
    assert page.locator("#pays-figure").is_visible()
