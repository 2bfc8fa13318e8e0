"""The bench of a tuned model's learning curve: what it predicts and judges, in small, with real trainings."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.tuned_curve import predict_gain
from compare.curve.points import CurvePoint, LearningCurve
from insource.stats.metric_stats import mean_metric
from insource.tasks.data_row import Rows
from tests.helpers import commands

SETTINGS = ("train.max_steps=2", "train.save_steps=2", "accelerate.mixed_precision=no")


def test_the_gain_is_predicted_without_the_largest_size_and_judged_on_the_other_rows() -> None:
    def make_curve(accuracies: dict[int, float], first: int) -> LearningCurve:
        rows: Rows = [
            {"id": str(number), "input": {"text": f"text {number}"}, "target": "a"}
            for number in range(first, first + 200)
        ]
        points = [
            CurvePoint(size, mean_metric((np.arange(200) < 200 * accuracy).astype(float)))
            for size, accuracy in accuracies.items()
        ]
        return LearningCurve("small", points, rows)

    predicting = make_curve({100: 0.5, 200: 0.7, 400: 0.8, 800: 0.1}, 0)
    judging = make_curve({100: 0.1, 200: 0.2, 400: 0.75, 800: 0.8}, 200)
    prediction = predict_gain("small", 3, predicting, judging)
    assert prediction.train_rows == 400 and prediction.real == pytest.approx(0.05)
    assert 0 < prediction.low < prediction.gain < 0.1, "less than the last doubling"
    assert prediction.conclusion == "helps" and prediction.stops_after == 2 and prediction.holds_real


@pytest.mark.slow(minutes=3)
@pytest.mark.nightly
def test_a_seed_is_trained_and_the_same_command_trains_nothing_again(small_recipe: Path, tmp_path: Path) -> None:
    runs, results = tmp_path / "runs", tmp_path / "tuned_curve.json"
    args = ("--rows", "60", "--seeds", "1", "--sizes", "2", "--results", results, "--runs", runs)
    completed = commands.run_command(runs, "bench.tuned_curve", small_recipe, *SETTINGS, *args)
    assert completed.returncode == 0, completed.stderr
    payload = json.loads(results.read_text(encoding="utf-8"))
    assert [prediction["seed"] for prediction in payload["predictions"]] == [0]
    assert str(tmp_path) not in results.read_text(encoding="utf-8")
    assert "| small | 60 → 120 |" in completed.stdout
    repeated = commands.run_command(runs, "bench.tuned_curve", small_recipe, *SETTINGS, *args)
    assert repeated.returncode == 0 and repeated.stderr.count("train     unchanged") == 3
    assert json.loads(results.read_text(encoding="utf-8")) == payload
