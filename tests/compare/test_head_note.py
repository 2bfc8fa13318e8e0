"""What a comparison says of a classification head, and which recipes can have one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from compare.report import console, head_note, html_page, markdown_page
from compare.systems import classification_head
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Scores
from insource.tracking.scores.system_result import Latency
from tests.helpers import example_scores


def scores_with_head(delta: float, low: float, high: float) -> Scores:
    """A comparison in which the tuned model minus the head is this difference."""
    scores = example_scores.make_scores()
    tuned, linear = scores.systems["tuned"], scores.systems["tfidf"]
    value = tuned.metrics["accuracy"].value - delta
    head = linear.model_copy(
        update={
            "kind": "head",
            "title": "classification head (LoRA)",
            "metrics": {
                **linear.metrics,
                "accuracy": linear.metrics["accuracy"].model_copy(update={"value": value}),
            },
            "latency": Latency(n=200, p50_seconds=0.012, p95_seconds=0.02, p99_seconds=0.03, concurrency=1),
            "throughput": tuned.throughput.model_copy(update={"requests_per_second": 110.0})
            if tuned.throughput
            else None,
        }
    )
    paired = next(entry for entry in scores.comparisons if (entry.b, entry.metric) == ("tfidf", "accuracy"))
    difference = paired.model_copy(update={"b": "head", "delta": delta, "ci_low": low, "ci_high": high})
    return scores.model_copy(
        update={"systems": {**scores.systems, "head": head}, "comparisons": [*scores.comparisons, difference]}
    )


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ((0.021, 0.008, 0.034), "the label tokens are better by 2.1 points (0.8 to 3.4)"),
        ((-0.012, -0.021, -0.003), "the head is better by 1.2 points (0.3 to 2.1)"),
        ((0.004, -0.005, 0.013), "neither is shown to be better"),
        ((0.0, 0.0, 0.0), "neither is shown to be better"),
    ],
)
def test_one_sentence_says_which_is_better_by_how_much_or_that_it_cannot_be_told(
    difference: tuple[float, float, float], expected: str
) -> None:
    text = head_note.describe_head(scores_with_head(*difference))
    assert text is not None and text.startswith(f"Head or tokens: {expected}")
    assert f"{0.912 - difference[0]:.1%} of the head and 91.2% of the label tokens on 3,080 rows" in text
    assert "The head answers a row in 12 ms (median, one row at a time, in transformers without a server" in text
    assert "the tuned model in 80 ms at 32 requests at a time to vLLM (20.0 requests/s)" in text


def test_the_difference_of_the_head_has_its_own_sign() -> None:
    text = head_note.describe_head(scores_with_head(0.004, -0.005, 0.013))
    assert text is not None and "the head's difference is −1.3 to +0.5 points" in text


def test_every_form_of_the_report_has_the_sentence_and_what_is_known_of_its_cost(tmp_path: Path) -> None:
    scores = scores_with_head(0.021, 0.008, 0.034)
    page, text = html_page.render_html(scores, []), markdown_page.render_markdown(scores)
    for content in (page, text):
        assert "the label tokens are better by 2.1 points" in content
        assert "no cost is computed for it" in content and "pooling model" in content
    assert "k-head" in page
    lines = console.summary_lines(Run(tmp_path), scores)
    assert len(lines) <= console.MAX_LINES + console.MAX_HEAD_LINES and any(
        line.startswith("head      Head or tokens") for line in lines
    )


def test_without_a_head_nothing_is_said_of_one() -> None:
    scores = example_scores.make_scores()
    assert head_note.describe_head(scores) is None
    assert "pooling model" not in markdown_page.render_markdown(scores) + html_page.render_html(scores, [])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("extractor", ["compare.head=true"], "compare.head: given true, and this is kind extraction"),
        ("summarizer", ["compare.head=true"], "takes kind classification with one label per row"),
        ("preference", ["compare.head=true"], "this is kind preference"),
        (
            "classifier",
            ["compare.head=true", "task.labels_per_row=many", "compare.primary=null", "compare.baselines=[]"],
            "this is kind classification with several labels a row",
        ),
        ("classifier", ["compare.head=true", "lora.init_lora_weights=pissa"], "set true, or leave compare.head out"),
        ("classifier", ["compare.head_learning_rate=1e-3"], "goes with compare.head: true"),
        ("classifier", ["compare.head=yes please"], "compare.head"),
        ("classifier", ["compare.baselines=[{provider: openai, model: m, name: head}]"], "choose another"),
    ],
)
def test_a_recipe_that_cannot_have_a_head_is_refused_when_it_is_read(
    name: str, settings: list[str], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        load(name, settings, "cpu")
    assert message in str(error.value)


def test_a_head_on_sharded_weights_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"accelerate\.distributed_type: FSDP shards the base"):
        load("classifier", ["compare.head=true"], "fsdp")


def test_probabilities_belong_to_the_labels_in_their_order() -> None:
    payload: dict[str, Any] = {
        "labels": ["late", "lost"],
        "answers": {"test/a": {"log_probabilities": [-2.3, -0.1], "tokens": 12, "seconds": 0.5}},
    }
    answer = classification_head.read_answer(payload, "test", "a", reused=False)
    assert (answer.output, answer.log_probability, answer.latency_seconds) == ("lost", -0.1, 0.5)
    assert answer.probabilities is not None
    assert dict(answer.probabilities) == pytest.approx({"late": 0.1003, "lost": 0.9048}, abs=1e-4)
    assert dataclasses.replace(answer, reused=True) == classification_head.read_answer(payload, "test", "a", True)
