"""The note on the untuned base: it is above everything else of the report where training is not shown to help."""

from typing import Any

import pytest

from compare.report import console, html_page, markdown_page, untuned_note
from insource.tracking.run import Run
from insource.tracking.scores.comparison import PairedResult, Scores
from tests.helpers import example_scores

EXAMPLES, ZERO_SHOT = "base:3-shot", "base"


def scores_with(*differences: tuple[str, str, dict[str, Any]]) -> Scores:
    """Return scores whose differences of the tuned model minus the base in a metric have these values."""
    scores = example_scores.make_scores()
    changes = {(base, metric): values for base, metric, values in differences}

    def change(pair: PairedResult) -> PairedResult:
        return pair.model_copy(update=changes.get((pair.b, pair.metric), {}))

    return scores.model_copy(update={"comparisons": [change(pair) for pair in scores.comparisons]})


def difference(delta: float, low: float, high: float, p: float = 0.0001) -> dict[str, Any]:
    return {"delta": delta, "ci_low": low, "ci_high": high, "p_adjusted": p, "n": 60}


def test_a_base_that_training_makes_better_needs_no_note() -> None:
    assert untuned_note.describe_untuned_base(example_scores.make_scores()) is None
    page = html_page.render_html(example_scores.make_scores(), [])
    assert 'id="untuned"' not in page


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            difference(-0.031, -0.052, -0.010),
            "The untuned base with 3 similar examples is better: accuracy, 3.1 points (1.0 to 5.2) on 60 rows. It "
            "needs no training: take it first.",
        ),
        (
            difference(0.008, -0.059, 0.100, p=1.0),
            "The tuned model is not shown to be better than the untuned base with 3 similar examples: accuracy, "
            "difference +0.8 points (−5.9 to +10.0) on 60 rows.",
        ),
        (
            difference(0.0, 0.0, 0.0, p=1.0),
            "The tuned model is not shown to be better than the untuned base with 3 similar examples: accuracy, "
            "difference 0.0 points (0.0 to 0.0) on 60 rows.",
        ),
    ],
)
def test_a_base_with_examples_that_does_as_well_is_named_with_the_difference_on_the_same_rows(
    values: dict[str, Any], expected: str
) -> None:
    text = untuned_note.describe_untuned_base(scores_with((EXAMPLES, "accuracy", values)))
    assert text == f"{expected} SET=train.shots=3 trains with such examples."


def test_a_base_without_examples_that_does_as_well_is_named_too() -> None:
    text = untuned_note.describe_untuned_base(scores_with((ZERO_SHOT, "accuracy", difference(-0.02, -0.03, -0.01))))
    assert text is not None and text.startswith("The untuned base is better: accuracy, 2.0 points (1.0 to 3.0)")
    assert "train.shots" not in text


def test_training_with_examples_is_not_proposed_to_a_model_that_was_trained_with_them() -> None:
    scores = scores_with((EXAMPLES, "accuracy", difference(0.0, -0.01, 0.01)))
    tuned = scores.systems["tuned"].model_copy(update={"shots": 3})
    scores = scores.model_copy(update={"systems": {**scores.systems, "tuned": tuned}})
    assert "train.shots" not in (untuned_note.describe_untuned_base(scores) or "")


def test_a_metric_in_which_the_base_is_better_is_named_although_another_one_decides() -> None:
    better = difference(-0.333, -0.473, -0.181)
    text = untuned_note.describe_untuned_base(scores_with((EXAMPLES, "macro_f1", better)))
    assert text is not None and text.startswith(
        "The tuned model is better than the untuned base with 3 similar examples"
    )
    assert "In macro-F1 the base is better by 33.3 points (18.1 to 47.3)." in text


def test_a_metric_that_is_not_significant_after_the_adjustment_is_not_named() -> None:
    scores = scores_with((EXAMPLES, "macro_f1", difference(-0.02, -0.04, -0.001, p=0.3)))
    assert untuned_note.describe_untuned_base(scores) is None


def test_every_form_of_the_report_has_the_note_above_the_reasons(tmp_path: Any) -> None:
    scores = scores_with((EXAMPLES, "accuracy", difference(0.008, -0.059, 0.1, p=1.0)))
    text = "The tuned model is not shown to be better than the untuned base with 3 similar examples"
    page, markdown = html_page.render_html(scores, []), markdown_page.render_markdown(scores)
    assert page.index(text) < page.index('id="reasons"')
    assert markdown.index(f"**Note:** {text}") < markdown.index(markdown_page.escape_markdown(scores.run_id))
    lines = console.summary_lines(Run(tmp_path), scores)
    assert len(lines) <= console.MAX_LINES and lines[1].startswith(f"base      {text}")
