"""scores.json as records: what is read and written again keeps its bytes, and a file that is none is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insource.config.errors import StageError
from insource.system import atomic_files
from insource.tracking.record import Number, Record
from insource.tracking.scores.comparison import Opening, read_scores, write_scores
from tests.helpers import example_scores
from tests.helpers.errors import raises_error
from tests.helpers.example_scores import API_MODEL


def written_again(payload: Any, folder: Path) -> str:
    atomic_files.write_json(folder / "scores.json", payload)
    write_scores(folder / "again.json", read_scores(folder / "scores.json"))
    return (folder / "again.json").read_text(encoding="utf-8")


def test_a_file_of_an_older_version_lacks_keys_and_keeps_its_bytes(tmp_path: Path) -> None:
    payload = example_scores.make_json()
    del payload["training_seconds"], payload["base"]["served_as"], payload["routing"]["test"]
    for reason in payload["verdict"]["reasons"]:
        del reason["question"]
    for system in payload["systems"].values():
        del system["form"], system["rows"], system["shutdown_date"]
    assert written_again(payload, tmp_path) == (tmp_path / "scores.json").read_text(encoding="utf-8")
    scores = read_scores(tmp_path / "scores.json")
    assert scores.to_json() == payload
    assert scores.training_seconds == 0 and scores.systems["tuned"].variant is None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"plan": {}}, "plan.system"),
        ({"systems": {"tuned": {}}}, "systems.tuned.kind"),
        ({"verdict": None}, "verdict"),
        ({"unknown": 1}, "unknown"),
        ({"hardware": 4}, "hardware"),
        ({"agreement": {"tuned | base": True}}, "agreement.tuned | base"),
    ],
)
def test_a_file_that_is_no_comparison_is_refused_with_the_place_and_the_command(
    change: dict[str, Any], place: str, tmp_path: Path
) -> None:
    path = tmp_path / "scores.json"
    atomic_files.write_json(path, example_scores.make_json() | change)
    with raises_error(StageError, "INS-C003") as error:
        read_scores(path)
    assert str(error.value).startswith(f"{path}: {place}: ") and "FRESH=1" in str(error.value)


class Value(Record):
    value: Number


@given(st.integers() | st.floats(allow_nan=False))
def test_a_number_stays_as_it_was_written(value: float) -> None:
    kept = Value.model_validate({"value": value}).to_json()["value"]
    assert repr(kept) == repr(value)


def test_a_record_cannot_be_changed() -> None:
    opening = Opening(opened="2026-11-21", run="1", plan_sha256=None)
    with pytest.raises(ValueError, match="frozen"):
        opening.run = "2"  # type: ignore[misc]


def test_the_two_systems_of_the_plan_and_its_metric_decide() -> None:
    for planned in (True, False):
        scores = example_scores.make_scores(planned=planned)
        assert scores.primary_pair == ("tuned", API_MODEL) and scores.deciding_metric == "accuracy"
        assert (scores.primary_comparison is not None) is planned


@pytest.mark.parametrize("kwargs", [{}, {"measured": False}, {"planned": False}, {"labels": 77}])
def test_what_is_written_is_read_as_it_was(kwargs: dict[str, Any], tmp_path: Path) -> None:
    scores = example_scores.make_scores(**kwargs)
    write_scores(tmp_path / "scores.json", scores)
    assert read_scores(tmp_path / "scores.json") == scores
    assert written_again(scores.to_json(), tmp_path) == (tmp_path / "scores.json").read_text(encoding="utf-8")
