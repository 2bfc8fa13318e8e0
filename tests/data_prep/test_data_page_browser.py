"""data.html as a reader opens it, in Chromium: it fits a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import prepare
from insource.config.load import load
from tests.helpers.browser import launch_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launch_browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def data_page(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of 400 synthetic tickets, some with personal data, duplicates and likely label errors."""
    recipe = load(str(small_recipe), ["privacy.redact=[email]"], "cpu").recipe
    folder, _ = prepare.main(recipe, tmp_path_factory.mktemp("page") / "runs")
    return folder / "data.html"


@pytest.mark.parametrize("width", [360, 390, 768, 1100])
def test_nothing_scrolls_sideways(browser: Any, data_page: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    page.goto(data_page.as_uri())
    page.evaluate("() => document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
