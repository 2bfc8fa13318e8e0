"""A learning curve: its sizes, what it concludes, and what it reads and writes without any training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compare.curve import page, results, wording
from compare.curve.conclusion import classify_doubling, estimate_doubling, fit_curve, is_clear
from compare.curve.points import CurvePoint, LearningCurve, plan_sizes
from compare.curve.results import CurveSettings
from insource.config.errors import RecipeError
from insource.stats import paired
from insource.stats.metric_stats import mean_metric
from insource.system import atomic_files
from tests.helpers import commands
from tests.helpers.example_scores import API_MODEL, make_json

SIZES = (500, 1000, 2000, 4000)


def make_curve(errors: list[float], rows: int = 2000, seed: int = 1, title: str = "adapter") -> LearningCurve:
    """Return a curve whose larger sizes are right wherever smaller ones are, except in a few rows."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(rows)
    points = [
        CurvePoint(size, mean_metric((difficulty + rng.normal(0, 0.01, rows) >= error).astype(float)))
        for size, error in zip(SIZES[-len(errors) :], errors, strict=True)
    ]
    return LearningCurve(title, points, [{"id": str(index), "group": None} for index in range(rows)])


def make_payload(errors: list[float], rows: int = 2000, target_gain: float = 0.01, **levels: Any) -> dict[str, Any]:
    settings = CurveSettings("small", Path("runs/small/.data/abc"), "accuracy", target_gain, 0.05, 4000, rows, SIZES)
    curve = make_curve(errors, rows)
    evaluated = {"tuned": results.evaluate_curve(curve, settings), "linear": results.evaluate_curve(curve, settings)}
    return results.build_json(settings, evaluated, levels.get("levels", []), len(errors) < len(SIZES))


def test_the_sizes_are_all_rows_and_halves_of_them() -> None:
    assert plan_sizes(5184, 5) == [324, 648, 1296, 2592, 5184]
    assert plan_sizes(5185, 3) == [1296, 2592, 5185]
    # Too small subsets are left out.
    assert plan_sizes(100, 5) == [25, 50, 100]
    with pytest.raises(RecipeError, match="at least 40 train rows, and there are 39"):
        plan_sizes(39, 5)


@pytest.mark.parametrize(
    ("errors", "conclusion", "words"),
    [
        (
            [0.46, 0.36, 0.28, 0.22],
            "helps",
            "More labels would help. Doubling the train rows from 4,000 to 8,000 would",
        ),
        ([0.101, 0.1, 0.1, 0.1], "enough", "More labels would bring little."),
        ([0.13, 0.12, 0.11, 0.10], "undecided", "Whether more labels would help is unknown."),
    ],
)
def test_the_conclusion_is_that_of_the_interval(errors: list[float], conclusion: str, words: str) -> None:
    rows = 5000 if conclusion != "undecided" else 300
    curve = make_curve(errors, rows)
    doubling = estimate_doubling(curve, fit_curve(curve), 0.05)
    assert doubling.low <= doubling.gain <= doubling.high and doubling.doubled_rows == 8000
    assert classify_doubling(doubling, 0.01) == conclusion
    payload = make_payload(errors, rows)
    text = wording.describe_conclusion(payload, "tuned")
    assert text.startswith(words) and "1.0 points (curve.target_gain)" in text and "95% interval" in text


def test_two_sizes_decide_and_smaller_ones_only_give_the_law() -> None:
    curve = make_curve([0.40, 0.35, 0.30, 0.20], 4000)
    two = replace(curve, points=curve.points[-2:])
    fit = fit_curve(curve)
    assert fit_curve(two) is None and fit is not None and fit.sizes == [1000, 2000, 4000]
    by_two, by_all = estimate_doubling(two, None, 0.05), estimate_doubling(curve, fit, 0.05)
    last = paired.compute_paired_difference(curve.points[-1].stats, curve.points[-2].stats)
    assert (by_two.low, by_two.high) == pytest.approx((last.low / 4, last.high))
    assert (by_all.low, by_all.high) == (by_two.low, by_two.high)
    assert by_two.gain == pytest.approx(last.delta * 2**-0.5)


def test_training_stops_where_the_answer_is_clear_and_not_before() -> None:
    assert is_clear(make_curve([0.45, 0.20], 4000), 0.01, 0.05)  # a quarter of what was gained is enough
    assert is_clear(make_curve([0.1, 0.1], 4000), 0.01, 0.05)  # nothing was gained
    assert not is_clear(make_curve([0.12, 0.10], 4000), 0.01, 0.05)
    assert not is_clear(make_curve([0.1]), 0.01, 0.05)
    # So few rows leave room for a gain of a point, though none of them differs.
    assert not is_clear(make_curve([0.0, 0.0], 100), 0.01, 0.05)


def test_the_page_has_every_point_and_escapes_what_others_wrote() -> None:
    level = results.ApiLevel(
        "openai:x", "openai:<script>alert(1)</script>", 0.93, 0.92, 0.94, 3080, "test", "20261130T000000Z-0000"
    )
    payload = make_payload([0.46, 0.36, 0.28, 0.22], levels=[level])
    html = page.render_page(payload)
    assert html.count('class="dot"') == 2 * len(SIZES) + 2 and html.count('class="predicted dot"') == 2
    assert "<script>alert" not in html and "&lt;script&gt;" in html and "3,080 test rows" in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    for point in payload["curves"]["tuned"]["points"]:
        assert f"{point['train_rows']:,}" in html and f"{100 * point['value']:.1f}%" in html
    assert "Stopped early" not in html
    stopped = make_payload([0.45, 0.20])
    assert "Stopped early" in page.render_page(stopped) and "Not trained: 500, 1,000 rows" in wording.describe_stop(
        stopped
    )  # type: ignore[operator]
    assert "not trained" in "\n".join(wording.table_lines(stopped))


def test_the_level_of_an_api_model_is_its_test_figure_on_the_same_data(tmp_path: Path) -> None:
    data = tmp_path / ".data" / "digest"
    data.mkdir(parents=True)
    other = tmp_path / ".data" / "other"
    other.mkdir()
    for name, folder in (("20261129T000000Z-aaaa", data), ("20261130T000000Z-bbbb", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(folder)
        atomic_files.write_json(tmp_path / name / "scores.json", make_json())
    levels = results.find_api_levels(tmp_path, data, "accuracy")
    # Neither the newer comparison on other data, nor an incomplete system.
    assert [(level.name, level.value, level.run) for level in levels] == [(API_MODEL, 0.921, "20261129T000000Z-aaaa")]
    assert "test rows" in wording.describe_api_level(make_payload([0.2, 0.1], levels=levels)["api"][0])
    assert results.find_api_levels(tmp_path / "nothing", data, "accuracy") == []


def test_the_linear_curve_needs_no_training_and_never_reads_the_test_set(small_recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    completed = commands.run_command(runs, "compare.curve", small_recipe, "--model", "linear")
    assert completed.returncode == 0, completed.stderr
    payload = atomic_files.read_json(runs / "small" / "curve-linear.json")
    points = payload["curves"]["linear"]["points"]
    assert [point["train_rows"] for point in points] == payload["planned_sizes"]
    assert points[-1]["train_rows"] == payload["train_rows"] and points[-1]["missing_labels"] == 0
    assert all(point["low"] <= point["value"] <= point["high"] for point in points)
    assert points[0]["value"] < points[-1]["value"]
    assert wording.describe_conclusion(payload, "linear") in completed.stdout
    assert (runs / "small" / "curve-linear.html").is_file() and not list(runs.glob("small/2*"))
    (data,) = (runs / "small" / ".data").glob("*/test.jsonl")
    data.unlink()
    repeated = commands.run_command(runs, "compare.curve", small_recipe, MODEL="linear")
    assert repeated.returncode == 0, repeated.stderr
    again = atomic_files.read_json(runs / "small" / "curve-linear.json")
    assert again["curves"] == payload["curves"]


def test_a_recipe_without_a_curve_is_refused_before_anything_is_done(small_recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    completed = commands.run_command(runs, "compare.curve", "preference")
    assert completed.returncode == 2 and "needs answers that are decoded" in completed.stderr
    dry = commands.run_command(runs, "compare.curve", small_recipe, "--dry-run")
    assert dry.returncode == 0 and "would train at most 5 times" in dry.stdout
    assert not (runs / "small").exists() or not list(runs.glob("small/2*"))
