"""Bulk prediction where the server fails, or is another than the run, and where the threshold does not hold."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insource.backends import failures
from insource.config.errors import RecipeError, StageError
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files
from predict.engines import local_vllm
from predict.rows import inputs
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import LaunchPlan
from tests.helpers.errors import raises_error
from tests.helpers.gateway.stand_in_engine import StandInEngine, serve_engine
from tests.helpers.prediction_rows import TEXTS, linear_predictions, make_rows
from tests.helpers.prediction_run import PredictionRun, make_run, read_output, write_csv


@pytest.fixture(autouse=True)
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


def test_below_the_threshold_of_the_comparison_a_prediction_abstains(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    prediction_run.add_comparison(threshold=0.8)
    engine.loaded_folder = f"/srv/runs/router/{prediction_run.run.id}/merged"
    confidences = {"sure": 0.95, "at it": 0.8, "unsure": 0.7}
    engine.answer = lambda text: ("late", confidences.get(text, 0.99)) if text != "wrong" else ("pear", 0.99)
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(["sure", "at it", "unsure", "wrong", " "]))
    path = prediction_run.predict(rows, "out.jsonl", address)
    output_rows = read_output(path)
    # 0.8 on the way through logarithms and back may be a hair less: the row is no test of that.
    assert [row["abstain"] for row in output_rows[:1] + output_rows[2:]] == [False, True, None, None]
    assert atomic_files.read_json(path.with_name("out.jsonl.about.json"))["threshold"] == 0.8


@pytest.mark.parametrize(
    ("form", "threshold", "reason"),
    [(None, None, "was not compared"), ("quantized/int8", 0.8, "of quantized/int8"), ("merged", None, "no threshold")],
)
def test_without_a_threshold_of_these_weights_abstain_is_empty_and_it_is_said_why(
    prediction_run: PredictionRun,
    engine: StandInEngine,
    address: str,
    capsys: pytest.CaptureFixture[str],
    form: str | None,
    threshold: float | None,
    reason: str,
) -> None:
    engine.loaded_folder = f"/srv/runs/router/{prediction_run.run.id}/merged"
    if form is not None:
        prediction_run.add_comparison(threshold, form)
    path = prediction_run.predict(
        write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:3])), "out.parquet", address
    )
    assert [row["abstain"] for row in read_output(path)] == [None] * 3
    assert reason in capsys.readouterr().err
    assert reason in atomic_files.read_json(path.with_name("out.parquet.about.json"))["why_no_threshold"]


def test_a_threshold_of_another_base_does_not_hold(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    prompt = prediction_run.run.folder / "adapter" / "prompt.json"
    trained_base = {"name": "pocket", "trained": {"digest": "3f2a90c1", "quantization": "nf4", "sha256": {}}}
    atomic_files.write_json(prompt, {**atomic_files.read_json(prompt), "base": trained_base})
    atomic_files.write_checksums(prompt.parent)
    prediction_run.add_comparison(0.8)
    engine.loaded_folder = f"/srv/runs/router/{prediction_run.run.id}/adapter"
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:3]))
    metadata = {}
    for base in ("trained", "published"):
        path = prediction_run.predict(rows, f"{base}.jsonl", address, f"serve.base={base}")
        metadata[base] = atomic_files.read_json(path.with_name(f"{base}.jsonl.about.json"))
    assert metadata["trained"]["threshold"] == 0.8 and metadata["published"]["threshold"] is None
    assert "was on the base trained, and serve.base is published" in metadata["published"]["why_no_threshold"]


@pytest.mark.parametrize("change", [{"max_model_len": 8192}, {"base": "published"}])
def test_what_answers_is_another_with_more_room_or_on_another_base(
    prediction_run: PredictionRun, change: dict[str, Any]
) -> None:
    prompt = prediction_run.run.folder / "adapter" / "prompt.json"
    prompt_fields = {"base": {"name": "pocket", "trained": {"digest": "3f2a90c1"}}, "chat_template_sha256": "5c1d"}
    atomic_files.write_json(prompt, {**atomic_files.read_json(prompt), **prompt_fields})
    atomic_files.write_checksums(prompt.parent)
    recipe = prediction_run.run.recipe()
    served = ServedModel("router", prediction_run.run, recipe, "adapter")

    def identify(serve: Serve) -> list[Any]:
        return local_vllm.identify_engine(served, LaunchPlan("pocket", "router", serve, use_cpu=True))

    assert identify(recipe.serve) != identify(recipe.serve.model_copy(update=change))
    assert identify(recipe.serve) == identify(recipe.serve.model_copy(update={"port": 9000}))


@pytest.mark.parametrize("options", [[], ["--fresh"]])
def test_asking_anew_goes_on_where_it_broke_off(
    prediction_run: PredictionRun, engine: StandInEngine, address: str, options: list[str]
) -> None:
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:60]))
    path = prediction_run.predict(rows, "out.csv", address)
    engine.answer_counts.clear()
    engine.answer = lambda text: ("broken", 0.9)
    engine.fail_after(30)
    with raises_error(StageError, "INS-P009", match="no longer answers"):
        prediction_run.predict(rows, "out.csv", address, "--fresh")
    engine.recover()
    prediction_run.predict(rows, "out.csv", address, *options)
    assert {row["answer"] for row in read_output(path)} == {"broken"}
    assert engine.answer_counts == dict.fromkeys(TEXTS[:60], 1)
    prediction_run.predict(rows, "out.csv", address)
    assert engine.answer_counts.total() == 60, "it is unchanged again"


def test_a_row_that_fails_is_asked_again_and_a_server_that_is_gone_ends_it_with_what_was_answered_kept(
    prediction_run: PredictionRun, engine: StandInEngine
) -> None:
    engine.refusal_status = lambda text, attempts: 503 if attempts < 2 and text in TEXTS[:20:5] else 0
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:100]))
    with serve_engine(engine) as address:
        output_rows = read_output(prediction_run.predict(rows, "out.csv", address))
    assert [row["answer"] for row in output_rows] == [linear_predictions()[text][0] for text in TEXTS[:100]]
    assert set(engine.answer_counts.values()) == {1} and engine.request_counts[TEXTS[5]] == 3
    more_rows = write_csv(prediction_run.folder / "more.csv", make_rows(TEXTS[100:200]))
    engine.fail_after(30)
    with serve_engine(engine) as address, raises_error(StageError, "INS-P009", match="no longer answers"):
        prediction_run.predict(more_rows, "more.csv", address)
    assert not prediction_run.output_path("more.csv").exists() and prediction_run.rows_on_disk() == 30
    engine.recover()
    with serve_engine(engine) as address:
        assert len(read_output(prediction_run.predict(more_rows, "more.csv", address))) == 100
    assert set(engine.answer_counts.values()) == {1}
    with pytest.raises(StageError, match="does not answer"):
        prediction_run.predict(more_rows, "again.csv", address)


@pytest.mark.parametrize("status", [429, 408, 404, 401, 403, 418])
def test_only_what_is_said_of_the_row_refuses_it(
    prediction_run: PredictionRun, engine: StandInEngine, address: str, status: int
) -> None:
    engine.refusal_status = lambda text, attempts: status if text == TEXTS[7] and attempts == 0 else 0
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:20]))
    if status not in (408, 429):
        with raises_error(StageError, "INS-P009", match=f"answers {status}.*refused with {status}"):
            prediction_run.predict(rows, "out.csv", address)
        assert not prediction_run.output_path("out.csv").exists()
    output_rows = read_output(prediction_run.predict(rows, "out.csv", address))
    assert [row["answer"] for row in output_rows] == [linear_predictions()[text][0] for text in TEXTS[:20]]


@pytest.mark.parametrize(("rows", "message"), [(60, "16 consecutive rows"), (5, "5 rows got no answer")])
def test_an_outage_of_a_server_that_says_it_is_well_makes_no_output_of_refusals(
    prediction_run: PredictionRun, engine: StandInEngine, address: str, rows: int, message: str
) -> None:
    engine.refusal_status = lambda text, attempts: 500
    path = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:rows]))
    for _ in range(2):
        with raises_error(StageError, "INS-P006", match=message):
            prediction_run.predict(path, "out.csv", address)
    assert not prediction_run.output_path("out.csv").exists()
    engine.refusal_status = lambda text, attempts: 0
    output_rows = read_output(prediction_run.predict(path, "out.csv", address))
    assert [row["answer"] for row in output_rows] == [linear_predictions()[text][0] for text in TEXTS[:rows]]


def test_rows_without_an_answer_are_asked_again_by_the_next_call_and_they_alone(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    unanswered = {TEXTS[3], TEXTS[70]}
    engine.refusal_status = lambda text, attempts: 503 if text in unanswered else 0
    path = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:120]))
    with raises_error(StageError, "INS-P006", match="2 rows got no answer"):
        prediction_run.predict(path, "out.csv", address)
    engine.refusal_status = lambda text, attempts: 0
    output_rows = read_output(prediction_run.predict(path, "out.csv", address))
    assert [row["answer"] for row in output_rows] == [linear_predictions()[text][0] for text in TEXTS[:120]]
    assert set(engine.answer_counts.values()) == {1}


def test_a_file_of_another_origin_is_kept_also_after_a_call_that_broke_off(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:20]))
    engine.failing = True
    with raises_error(StageError, "INS-P009", match="no longer answers"):
        prediction_run.predict(rows, "first.csv", address)
    engine.failing = False
    foreign_path = prediction_run.output_path("second.csv")
    foreign_path.parent.mkdir(exist_ok=True)
    foreign_path.write_text("of a person", encoding="utf-8")
    with pytest.raises(RecipeError, match="FORCE=1"):
        prediction_run.predict(rows, "second.csv", address)
    assert foreign_path.read_text(encoding="utf-8") == "of a person"
    assert len(read_output(prediction_run.predict(rows, "second.csv", address, "--force"))) == 20


@pytest.mark.parametrize("difference", ["answers", "prompt"])
def test_a_server_of_another_run_is_refused_before_a_row_is_asked_and_when_it_goes_on(
    tmp_path: Path, tokenizer: Any, engine: StandInEngine, address: str, difference: str
) -> None:
    prediction_run = make_run(tmp_path, tokenizer)
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:5]))
    engine.failing = True
    with raises_error(StageError, "INS-P009", match="no longer answers"):
        prediction_run.predict(rows, "out.csv", address)
    n_queries, engine.failing = engine.request_counts.total(), False
    engine.reference_answer, engine.prompt_ids = ("other", [1, 2, 3]) if difference == "answers" else ("b", [1, 2, 4])
    with pytest.raises(RecipeError, match=f"is not what run {prediction_run.run.id} trained.*RUN=<id>") as error:
        prediction_run.predict(rows, "out.csv", address)
    if difference == "prompt":
        assert "from token 3 of 3 on: trained on ..." in str(error.value)
        assert "and the server reads ...'tokens [1, 2, 4]'" in str(error.value)
    assert engine.request_counts.total() == n_queries and not prediction_run.output_path("out.csv").exists()


def test_answers_of_two_forms_are_not_mixed_and_one_that_is_not_named_has_no_threshold(
    prediction_run: PredictionRun, engine: StandInEngine, address: str
) -> None:
    prediction_run.add_comparison(threshold=0.8)
    rows = write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:60]))
    engine.fail_after(30)
    engine.loaded_folder = f"/srv/runs/router/{prediction_run.run.id}/adapter"
    with raises_error(StageError, "INS-P009", match="no longer answers"):
        prediction_run.predict(rows, "out.jsonl", address)
    n_answered = engine.answer_counts.total()
    engine.recover()
    engine.loaded_folder = "/models/router"
    path = prediction_run.predict(rows, "out.jsonl", address)
    assert engine.answer_counts.total() == n_answered + 60, "all are asked of the form that answers now"
    assert {row["abstain"] for row in read_output(path)} == {None}
    metadata = atomic_files.read_json(path.with_name("out.jsonl.about.json"))
    assert "does not say which form" in metadata["why_no_threshold"] and metadata["engine"][2] is None
    engine.loaded_folder = f"/srv/runs/router/{prediction_run.run.id}/adapter"
    output_rows = read_output(prediction_run.predict(rows, "out.jsonl", address))
    assert None not in {row["abstain"] for row in output_rows} and engine.answer_counts.total() == 120


def test_a_server_without_the_model_is_refused_before_a_row_is_asked(
    prediction_run: PredictionRun, address: str, engine: StandInEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction_run.recipe_path.rename(prediction_run.folder / "other.yaml")
    (prediction_run.folder / "runs" / "router").rename(prediction_run.folder / "runs" / "other")
    other_run = PredictionRun(prediction_run.folder, prediction_run.folder / "other.yaml", prediction_run.run)
    with raises_error(RecipeError, "INS-P007", match="no model other; the server has router"):
        other_run.predict(write_csv(prediction_run.folder / "in.csv", make_rows(TEXTS[:3])), "out.csv", address)
    assert engine.request_counts == Counter()
