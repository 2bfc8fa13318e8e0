"""The linear model that a comparison has to beat, on data that nobody here wrote."""

from pathlib import Path
from typing import Any

import pytest

from compare.systems import linear_baseline
from data_prep import prepare
from insource.config.load import load
from insource.stats import intervals, metric_stats
from insource.system import atomic_files


def row(number: int, text: str, target: str = "") -> dict[str, Any]:
    return {"id": str(number), "input": {"text": text}, "target": target}


@pytest.mark.slow
def test_on_banking77_it_reaches_what_others_have_measured(banking77: Path, tmp_path: Path) -> None:
    """About 91% of the 3,080 test rows, interval and all, on the train rows that this project's split leaves."""
    sources = [f"data.source.{name}={banking77 / name}.csv" for name in ("train", "test")]
    folder, _ = prepare.main(load("banking77", sources, "cpu").recipe, tmp_path)
    train, test = (list(atomic_files.read_jsonl(folder / f"{name}.jsonl")) for name in ("train", "test"))
    assert len(test) == 3080
    predictions = linear_baseline.predict_answers(train, test, [example["target"] for example in train], labelled=True)
    correct = [
        float(prediction.output == example["target"]) for prediction, example in zip(predictions, test, strict=True)
    ]
    value = intervals.compute_interval(metric_stats.mean_metric(correct))
    assert 0.90 <= value.value <= 0.92
    assert value.method == "Wilson" and value.high - value.low == pytest.approx(0.0202, abs=0.002)
    assert all(prediction.log_probability is not None and prediction.log_probability <= 0 for prediction in predictions)


def test_other_kinds_get_the_answer_of_the_most_similar_row() -> None:
    train = [row(0, "invoice 17 of Acme"), row(1, "order 4 of Umbrella")]
    (prediction,) = linear_baseline.predict_answers(
        train, [row(9, "invoice 18 of Acme")], ["first", "second"], labelled=False
    )
    assert prediction.output == "first" and prediction.log_probability is None


def test_one_label_is_no_classification_and_still_an_answer() -> None:
    train = [row(0, "one thing"), row(1, "another thing")]
    (prediction,) = linear_baseline.predict_answers(train, [row(9, "a third")], ["same", "same"], labelled=True)
    assert prediction.output == "same"
