"""Chromium for tests of pages, as a fixture of a module starts it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def launch_browser() -> Iterator[Any]:
    """Yield a Playwright browser. Skip the test where there is no Chromium, or no Playwright to drive it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"there is no {', '.join(names)} on this machine")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()
