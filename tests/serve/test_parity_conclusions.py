"""What parity concludes from what it found: which floors hold, and what a person is told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from insource.backends.types import Completion, Usage
from insource.config.load import load
from insource.config.schema.serving_and_cost import Parity
from insource.stats import metric_stats, paired
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.reference_row import ReferenceRow
from insource.tracking.run import Run
from serve.parity import check, report_text
from serve.parity.check import Mismatch, ParityProbe, ParityResult, SameWeightsAgreement, ScoreDifference
from serve.vllm import launch_plan, server_process
from tests.helpers.errors import raises_error

PARITY = Parity()


def make_difference(value: float, trained: float, low: float, high: float) -> ScoreDifference:
    """A difference of accuracy on 500 rows, with an interval that is given."""
    difference = paired.compute_paired_difference(
        metric_stats.mean_metric([1.0] * 500), metric_stats.mean_metric([1.0] * 500)
    )
    return ScoreDifference("accuracy", value, trained, replace(difference, delta=value - trained, low=low, high=high))


def make_result(**overrides: Any) -> ParityResult:
    flip = Mismatch("T000017", "refund_status", "billing_dispute", 0.02)
    fields: dict[str, Any] = {
        "variant": "adapter",
        "n": 500,
        "prompt_ids_equal": 1.0,
        "first_prompt_mismatch": None,
        "same_weights": SameWeightsAgreement(500, 0.998, [flip]),
        "score_difference": make_difference(0.862, 0.864, -0.008, 0.004),
        "validity": {"grammar": (1.0, 500), "none": (0.97, 100)},
    }
    return ParityResult(**(fields | overrides))


def test_all_floors_hold() -> None:
    assert make_result().failures(PARITY) == []
    assert make_result(same_weights=None, variant="quantized/int8").failures(PARITY) == []


def test_one_prompt_that_is_read_otherwise_is_too_many() -> None:
    (failure,) = make_result(prompt_ids_equal=0.998, first_prompt_mismatch="T000003").failures(PARITY)
    assert "0.2% of 500 prompts, first in row T000003" in failure and "chat template" in failure


def test_the_same_weights_must_agree() -> None:
    flips = [Mismatch(f"T{n}", "a", "b", 3.0) for n in range(6)]
    (failure,) = make_result(same_weights=SameWeightsAgreement(500, 0.988, flips)).failures(PARITY)
    assert (
        "98.8% of 500" in failure
        and "99.0%" in failure
        and "first row T0: 'b' where transformers answers 'a'" in failure
    )
    assert make_result(same_weights=SameWeightsAgreement(500, 0.988, flips)).failures(Parity(same_weights=0.98)) == []


def test_rows_within_rounding_are_told_apart_and_not_held_against_what_is_served() -> None:
    close = [Mismatch(f"T{n}", "a", "b", 0.1) for n in range(40)]
    assert make_result(same_weights=SameWeightsAgreement(500, 1.0, [], close)).failures(PARITY) == []
    (failure,) = make_result(
        same_weights=SameWeightsAgreement(500, 0.98, [Mismatch("T99", "a", "b", 2.0)] * 10, close)
    ).failures(PARITY)
    assert "98.0% of 500" in failure and "(40 more differ within rounding)" in failure and "first row T99" in failure
    report = {"start_seconds": {"adapter": 31.4}, "repeated": []}
    assert "| 100.0% of 500, and 40 within rounding |" in report_text.parity_markdown(
        "classifier", report, [make_result(same_weights=SameWeightsAgreement(500, 1.0, [], close))], PARITY
    )


def test_what_counts_as_rounding_follows_the_type_that_is_computed_in(tmp_path: Path) -> None:
    def tolerance(hardware: str, dtype: str = "auto") -> float:
        recipe = load("classifier", [f"serve.dtype={dtype}"], hardware).recipe
        return launch_plan.rounding_tolerance(
            launch_plan.ServedModel("classifier", Run(tmp_path), recipe, "adapter"), recipe.serve
        )

    assert tolerance("cpu") == 0.0
    assert tolerance("cpu", "bfloat16") == tolerance("gpu") == tolerance("gpu", "float32") == 0.25
    assert 0 < tolerance("cpu", "float16") < 0.05
    received = [Completion(text, "classifier", Usage(1, 1), "stop") for text in ("a", "b", "b", "b", *"a" * 16)]
    margins = [3.0, 3.0, 0.1, None, *[3.0] * 16]
    trained = [
        ReferenceRow(id=f"T{index}", prompt_ids=[], answer="a", margin=margin) for index, margin in enumerate(margins)
    ]
    for rounding, flips, close in ((0.25, ["T1", "T3"], ["T2"]), (0.0, ["T1", "T2", "T3"], [])):
        probed = ParityProbe(None, PromptSpec(max_answer_tokens=16), [], trained, True, rounding)  # type: ignore[arg-type]
        same_weights = check._compare_answers(probed, received)
        assert ([mismatch.id for mismatch in same_weights.flips], [mismatch.id for mismatch in same_weights.close]) == (
            flips,
            close,
        )
        assert same_weights.agreement == 1 - len(flips) / 20


def test_rounding_does_not_excuse_a_model_that_answers_otherwise_everywhere() -> None:
    # Every long answer has a token with a small margin.
    received = [Completion("", "classifier", Usage(1, 1), "stop") for _ in range(500)]
    trained = [ReferenceRow(id=f"T{index}", prompt_ids=[], answer="a", margin=0.1) for index in range(500)]
    probe = ParityProbe(None, PromptSpec(max_answer_tokens=16), [], trained, True, 0.25)  # type: ignore[arg-type]
    same_weights = check._compare_answers(probe, received)
    assert same_weights.agreement == 0 and len(same_weights.flips) == 500 and not same_weights.close


@pytest.mark.parametrize(
    ("low", "high", "judged"), [(-0.06, -0.02, "worse"), (-0.03, 0.01, "undecided"), (-0.009, 0.01, "non-inferior")]
)
def test_other_weights_are_refused_only_where_they_are_surely_worse(low: float, high: float, judged: str) -> None:
    difference = make_difference(0.82, 0.86, low, high)
    assert difference.judge(PARITY.score_drop) == judged
    result = make_result(score_difference=difference, same_weights=None, variant="quantized/int8")
    failures = result.failures(PARITY)
    assert bool(failures) == (judged == "worse")
    # A lower score is a result to compare, and other answers of the same weights are none; they are told by agreement.
    assert result.mismatches(PARITY) == [] and make_result(score_difference=difference).failures(PARITY) == []
    assert not failures or "82.0% against 86.0% of 500 rows" in failures[0]


def test_the_table_names_what_differs_and_how_close_it_was() -> None:
    report = {
        "start_seconds": {"adapter": 31.4, "quantized/int8": 28.0},
        "repeated": [{"which": "adapter", "concurrency": 64, "n": 500, "differ": 2}],
    }
    text = report_text.parity_markdown(
        "classifier", report, [make_result(), make_result(variant="quantized/int8", same_weights=None)], PARITY
    )
    assert "| adapter | 100.0% | 99.8% of 500 | 86.2% | -0.2% (-0.8% to +0.4%) | non-inferior | 31 s |" in text
    assert "row T000017: 'billing_dispute', in transformers 'refund_status'" in text and "1.02 times" in text
    assert "64 at a time: 2 of 500 answers differ" in text


LOG = """\
INFO 11-21 10:00:00 [api_server.py:12] vLLM API server version 0.32.0
\x1b[1;36m(EngineCore pid=123)\x1b[0;0m ERROR 11-21 10:00:01 [core.py:77] EngineCore failed to start.
(EngineCore pid=123) ERROR 11-21 10:00:01 [core.py:77] Traceback (most recent call last):
(EngineCore pid=123) ERROR 11-21 10:00:01 [core.py:77]   File "core.py", line 1, in run
(EngineCore pid=123) ERROR 11-21 10:00:01 [core.py:77] ValueError: No available memory for the cache blocks.
(APIServer pid=12) Traceback (most recent call last):
(APIServer pid=12) RuntimeError: Engine core initialization failed.
"""


def test_the_servers_own_words_are_its_errors_without_tracebacks() -> None:
    errors = server_process.extract_errors(LOG)
    assert errors == [
        "ValueError: No available memory for the cache blocks.",
        "RuntimeError: Engine core initialization failed.",
    ]
    assert (
        "up to 0.95" in server_process.known_error_hint("\n".join(errors))
        and server_process.known_error_hint("ok") == ""
    )
    memory_error = (
        "ValueError: Free memory on device cuda:0 (20.9/23.6 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 21.24 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    assert "a lower serve.gpu_memory_utilization" in server_process.known_error_hint(
        memory_error
    ) and "0.95" not in server_process.known_error_hint(memory_error)
    allocation_error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "a lower serve.gpu_memory_utilization" in server_process.known_error_hint(allocation_error)
    validation_error = (
        "pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, too long [type=v]\n"
    )
    assert server_process.extract_errors(validation_error)[0].endswith("for ModelConfig Value error, too long [type=v]")
    assert server_process.extract_errors("one\n\ntwo\n") == ["one", "two"]


def test_a_port_that_is_taken_is_told_with_one_that_is_free() -> None:
    import socket

    from insource.config.errors import RecipeError

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with raises_error(RecipeError, "INS-X009", match=rf"cannot use 127\.0\.0\.1:{port}: .* SET=serve\.port=\d+"):
            server_process.check_port_free("127.0.0.1", port)
    server_process.check_port_free("127.0.0.1", port)
    with raises_error(RecipeError, "INS-X009", match="cannot use 192"):
        server_process.check_port_free("192.0.2.1", 8000)
