"""report.html as a reader opens it, in Chromium: nothing hostile runs, what can be moved moves, and it fits a phone.

Skipped where there is no Chromium, or no playwright to drive it.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from compare.report import charts, cost_section, html_page
from insource.system import number_format
from tests.helpers import example_scores
from tests.helpers.example_scores import API_MODEL, SCRIPT_TAG

TITLE = "support_tickets: comparison"
WIDE = {"width": 1100, "height": 900}

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"there is no {', '.join(names)} on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a report as a reader does; what the browser complains about or asks for is kept beside it."""
    contexts = []

    def open_(scores: dict[str, Any], viewport: dict[str, int] = WIDE, **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(html_page.render_html(scores, example_scores.make_disagreements()), encoding="utf-8")
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        shown = context.new_page()
        shown.complaints, shown.requests = [], []
        shown.on("console", lambda message: shown.complaints.append(message.text))
        shown.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.on("request", lambda request: shown.requests.append(request.url))
        shown.goto(path.as_uri())
        return shown

    yield open_
    for one in contexts:
        one.close()


def slide(shown: Any, name: str, value: float) -> None:
    set_and_tell = "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', {bubbles: true})); }"
    shown.locator(f"#slide-{name}").evaluate(set_and_tell, value)


def visible_rows(shown: Any, rows: str) -> list[str]:
    return [one.inner_text() for one in shown.locator(rows).all() if one.is_visible()]


def test_no_hostile_text_runs_and_nothing_is_asked_of_the_network(opened: Open) -> None:
    shown = opened(example_scores.make_scores())
    assert shown.title() == TITLE
    assert shown.complaints == []
    assert [url for url in shown.requests if not url.startswith("file:")] == []
    assert len(shown.requests) == 1
    assert shown.get_by_text(SCRIPT_TAG).count() > 3
    assert shown.locator("img, iframe").count() == 0


def test_a_script_that_got_in_would_not_run(opened: Open) -> None:
    shown = opened(example_scores.make_scores())
    shown.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = \"document.title = 'hacked'\";"
        " document.body.append(one); const two = document.createElement('img'); two.src = 'x';"
        " two.setAttribute('onerror', \"document.title = 'hacked'\"); document.body.append(two); }"
    )
    shown.wait_for_timeout(200)
    assert shown.title() == TITLE
    assert any("Content Security Policy" in one for one in shown.complaints)


def test_sliders_move_the_break_even_to_what_python_computes(opened: Open) -> None:
    scores = example_scores.make_scores()
    shown, inputs = opened(scores), deepcopy(scores["cost"]["inputs"])
    first = cost_section.break_even_text(inputs, API_MODEL, 0.0004)
    assert shown.locator("#pays-figure").inner_text() == first["figure"]
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
    figures = {first["figure"]}
    for name, slider, value in moves:
        slide(shown, name, slider)
        inputs[name] = value
        expected = cost_section.break_even_text(inputs, API_MODEL, 0.0004)
        figures.add(expected["figure"])
        for part, text in expected.items():
            assert shown.locator(f"#pays-{part}").inner_text() == text, (name, value)
    assert len(figures) > 5
    assert shown.locator("#shown-utilization").inner_text() == "1%"
    shown.locator("#pays-reset").click()
    assert shown.locator("#pays-figure").inner_text() == first["figure"]
    assert shown.complaints == []


def test_sliders_move_the_curve_that_python_draws(opened: Open) -> None:
    scores = example_scores.make_scores()
    shown, inputs = opened(scores), deepcopy(scores["cost"]["inputs"])
    axes = cost_section.build_cost_section(scores)["picture"]["for_script"]["axes"]
    across, upwards = (charts.Axis(*axes[one], log=True) for one in ("x", "y"))
    before = shown.locator("#pays-own").get_attribute("points")
    slide(shown, "utilization", 0.05)
    inputs["utilization"] = 0.05
    expected = cost_section.cost_polylines(inputs, 0.0004, across, upwards)
    for name, line in expected.items():
        drawn = shown.locator(f"#pays-{name}").get_attribute("points")
        numbers = [[float(one) for one in re.split("[ ,]", text)] for text in (drawn, line)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.02)
    assert shown.locator("#pays-own").get_attribute("points") != before


def test_the_break_even_can_be_seen_against_another_closed_model(opened: Open) -> None:
    shown = opened(example_scores.make_scores())
    shown.locator("#pays-against").select_option(label="what we pay for today")
    assert shown.locator("#pays-figure").inner_text() == "Owning never pays."
    assert "it can answer cost $275 there" in shown.locator("#pays-more").inner_text()


def test_sliders_work_by_keyboard_and_tell_their_unit(opened: Open) -> None:
    shown = opened(example_scores.make_scores())
    before = shown.locator("#pays-figure").inner_text()
    shown.locator("#slide-engineer_share").focus()
    shown.keyboard.press("End")
    assert shown.locator("#pays-figure").inner_text() != before
    told = shown.locator("#slide-engineer_share").get_attribute("aria-valuetext")
    assert told == "100% share of an engineer"


def test_a_table_sorts_by_a_column_and_says_so(opened: Open) -> None:
    shown = opened(example_scores.make_scores())
    column = "#parts-table tbody tr td:nth-of-type(4)"

    def values() -> list[float]:
        return [float(text.rstrip("%")) for text in shown.locator(column).all_inner_texts()]

    given_order = values()
    head = shown.locator("#parts-table thead th", has_text="F1").first
    head.locator("button").click()
    assert values() == sorted(given_order, reverse=True) != given_order
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    assert values() == sorted(given_order)
    assert head.get_attribute("aria-sort") == "ascending"
    shown.locator("#parts-table thead th button", has_text="Label").click()
    names = shown.locator("#parts-table tbody th").all_inner_texts()
    assert names == sorted(names, key=str.lower)
    assert shown.locator("#parts-table [aria-sort]").count() == 1


def test_labels_are_found_by_their_name_and_shown_for_the_system_chosen(opened: Open) -> None:
    scores = example_scores.make_scores()
    shown = opened(scores)
    shown.locator("#parts-filter").fill("CARD")
    assert len(visible_rows(shown, "#parts-table tbody tr")) == 2
    assert shown.locator("#parts-count").inner_text() == "2 shown"
    shown.locator("#parts-first").select_option(label="base")
    row = shown.locator("#parts-table tbody tr", has_text="card_arrival").locator("td").all_inner_texts()
    own, other = (scores["systems"][name]["per_part"]["card_arrival"] for name in ("base", API_MODEL))
    figures = [number_format.format_percent(one) for one in (own["precision"], own["recall"], own["f1"], other["f1"])]
    assert row[1:] == [*figures, number_format.format_delta(own["f1"] - other["f1"])]
    assert shown.locator("#parts-caption bdi").first.inner_text() == "base"


def test_disagreements_are_filtered_by_who_is_right_and_by_text_and_paged(opened: Open) -> None:
    shown = opened(example_scores.make_scores())
    rows = "#rows-list > li"
    assert len(visible_rows(shown, rows)) == 10
    assert shown.locator("#rows-count").inner_text() == "1 to 10 of 57"
    shown.locator("#rows-who").select_option("first")
    assert shown.locator("#rows-count").inner_text() == "1 to 10 of 19"
    shown.locator("#rows-on").click()
    assert shown.locator("#rows-count").inner_text() == "11 to 19 of 19"
    assert shown.locator("#rows-on").is_disabled()
    assert all("Message" in text for text in visible_rows(shown, rows))
    shown.locator("#rows-filter").fill("message 27:")
    assert shown.locator("#rows-count").inner_text() == "1 to 1 of 1"
    shown.locator("#rows-filter").fill("no text has this")
    assert shown.locator("#rows-count").inner_text() == "none"
    assert visible_rows(shown, rows) == []


@pytest.mark.parametrize("labels", [9, 77])
@pytest.mark.parametrize("width", [360, 390, 768, 1100])
def test_nothing_scrolls_sideways(opened: Open, labels: int, width: int) -> None:
    shown = opened(example_scores.make_scores(labels=labels), {"width": width, "height": 844})
    shown.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate("window.innerWidth") == width


def test_without_scripts_all_tables_are_there_and_no_control_that_would_do_nothing(opened: Open) -> None:
    shown = opened(example_scores.make_scores(), java_script_enabled=False)
    assert visible_rows(shown, "input, select, button") == []
    assert len(visible_rows(shown, "#parts-table tbody tr")) == 9
    assert len(visible_rows(shown, "#rows-list > li")) == 57
    assert shown.locator("#pays-figure").inner_text() == "Owning pays from 8,961,001 requests a month."


def test_the_page_is_dark_where_the_reader_wants_that_and_is_printed_on_white(opened: Open) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    shown = opened(example_scores.make_scores(), color_scheme="dark")
    assert shown.evaluate(paper) == "rgb(18, 22, 27)"
    shown.emulate_media(media="print")
    assert shown.evaluate(paper) == "rgb(255, 255, 255)"
    assert visible_rows(shown, "nav, .tools, input") == []
    assert shown.locator("#pays-figure").is_visible()
