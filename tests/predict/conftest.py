"""Fixtures of the prediction tests: a small run, an engine that answers as a linear model, and its address."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from insource.backends import failures
from predict.rows import inputs
from tests.helpers.gateway.stand_in_engine import StandInEngine, serve_engine
from tests.helpers.prediction_rows import linear_predictions
from tests.helpers.prediction_run import PredictionRun, make_run


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are small, and waits short."""
    monkeypatch.setattr(inputs, "SEGMENT_ROWS", 50)
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def prediction_run(tmp_path: Path) -> PredictionRun:
    return make_run(tmp_path)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine(lambda text: linear_predictions().get(text, ("late", 0.6)))


@pytest.fixture
def address(engine: StandInEngine) -> Iterator[str]:
    with serve_engine(engine) as address:
        yield address
