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
from tests.helpers.gateway.stand_in_engine import StandInEngine, run_stand_in
from tests.helpers.prediction_rows import TEXTS, linear_predictions, make_rows
from tests.helpers.prediction_run import PredictionRun, make_run, read_output, write_csv


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are small, and waits short."""
    monkeypatch.setattr(inputs, "SEGMENT_ROWS", 50)
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def place(tmp_path: Path) -> PredictionRun:
    return make_run(tmp_path)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine(lambda text: linear_predictions().get(text, ("late", 0.6)))


@pytest.fixture
def address(engine: StandInEngine) -> Iterator[str]:
    with run_stand_in(engine) as address:
        yield address


def test_below_the_threshold_of_the_comparison_a_prediction_abstains(
    place: PredictionRun, engine: StandInEngine, address: str
) -> None:
    place.compared(threshold=0.8)
    engine.root = f"/srv/runs/router/{place.here.id}/merged"
    sure = {"sure": 0.95, "at it": 0.8, "unsure": 0.7}
    engine.answer = lambda text: ("late", sure.get(text, 0.99)) if text != "wrong" else ("pear", 0.99)
    rows = write_csv(place.folder / "in.csv", make_rows(["sure", "at it", "unsure", "wrong", " "]))
    path = place.predicted(rows, "out.jsonl", address)
    found = read_output(path)
    # 0.8 on the way through logarithms and back may be a hair less: the row is no test of that.
    assert [row["abstain"] for row in found[:1] + found[2:]] == [False, True, None, None]
    assert atomic_files.read_json(path.with_name("out.jsonl.about.json"))["threshold"] == 0.8


@pytest.mark.parametrize(
    ("form", "threshold", "why"),
    [(None, None, "was not compared"), ("quantized/int8", 0.8, "of quantized/int8"), ("merged", None, "no threshold")],
)
def test_without_a_threshold_of_these_weights_abstain_is_empty_and_it_is_said_why(
    place: PredictionRun,
    engine: StandInEngine,
    address: str,
    capsys: pytest.CaptureFixture[str],
    form: str | None,
    threshold: float | None,
    why: str,
) -> None:
    engine.root = f"/srv/runs/router/{place.here.id}/merged"
    if form is not None:
        place.compared(threshold, form)
    path = place.predicted(write_csv(place.folder / "in.csv", make_rows(TEXTS[:3])), "out.parquet", address)
    assert [row["abstain"] for row in read_output(path)] == [None] * 3
    assert why in capsys.readouterr().err
    assert why in atomic_files.read_json(path.with_name("out.parquet.about.json"))["why_no_threshold"]


def test_a_threshold_of_another_base_does_not_hold(place: PredictionRun, engine: StandInEngine, address: str) -> None:
    prompt = place.here.folder / "adapter" / "prompt.json"
    trained = {"name": "pocket", "trained": {"digest": "3f2a90c1", "quantization": "nf4", "sha256": {}}}
    atomic_files.write_json(prompt, {**atomic_files.read_json(prompt), "base": trained})
    atomic_files.write_checksums(prompt.parent)
    place.compared(0.8)
    engine.root = f"/srv/runs/router/{place.here.id}/adapter"
    rows = write_csv(place.folder / "in.csv", make_rows(TEXTS[:3]))
    told = {}
    for base in ("trained", "published"):
        path = place.predicted(rows, f"{base}.jsonl", address, f"serve.base={base}")
        told[base] = atomic_files.read_json(path.with_name(f"{base}.jsonl.about.json"))
    assert told["trained"]["threshold"] == 0.8 and told["published"]["threshold"] is None
    assert "was on the base trained, and serve.base is published" in told["published"]["why_no_threshold"]


@pytest.mark.parametrize("change", [{"max_model_len": 8192}, {"base": "published"}])
def test_what_answers_is_another_with_more_room_or_on_another_base(
    place: PredictionRun, change: dict[str, Any]
) -> None:
    prompt = place.here.folder / "adapter" / "prompt.json"
    told = {"base": {"name": "pocket", "trained": {"digest": "3f2a90c1"}}, "chat_template_sha256": "5c1d"}
    atomic_files.write_json(prompt, {**atomic_files.read_json(prompt), **told})
    atomic_files.write_checksums(prompt.parent)
    recipe = place.here.recipe()
    served = ServedModel("router", place.here, recipe, "adapter")

    def identity(serve: Serve) -> list[Any]:
        return local_vllm.identify_engine(served, LaunchPlan("pocket", "router", serve, use_cpu=True))

    assert identity(recipe.serve) != identity(recipe.serve.model_copy(update=change))
    assert identity(recipe.serve) == identity(recipe.serve.model_copy(update={"port": 9000}))


@pytest.mark.parametrize("again", [[], ["--fresh"]])
def test_asking_anew_goes_on_where_it_broke_off(
    place: PredictionRun, engine: StandInEngine, address: str, again: list[str]
) -> None:
    rows = write_csv(place.folder / "in.csv", make_rows(TEXTS[:60]))
    path = place.predicted(rows, "out.csv", address)
    engine.answered.clear()
    engine.answer = lambda text: ("broken", 0.9)
    engine.fall_ill_after(30)
    with pytest.raises(StageError, match="nothing answers any more"):
        place.predicted(rows, "out.csv", address, "--fresh")
    engine.recover()
    place.predicted(rows, "out.csv", address, *again)
    assert {row["answer"] for row in read_output(path)} == {"broken"}
    assert engine.answered == dict.fromkeys(TEXTS[:60], 1)
    place.predicted(rows, "out.csv", address)
    assert engine.answered.total() == 60, "it is unchanged again"


def test_a_row_that_fails_is_asked_again_and_a_server_that_is_gone_ends_it_with_what_was_answered_kept(
    place: PredictionRun, engine: StandInEngine
) -> None:
    engine.refuse = lambda text, before: 503 if before < 2 and text in TEXTS[:20:5] else 0
    rows = write_csv(place.folder / "in.csv", make_rows(TEXTS[:100]))
    with run_stand_in(engine) as address:
        found = read_output(place.predicted(rows, "out.csv", address))
    assert [row["answer"] for row in found] == [linear_predictions()[text][0] for text in TEXTS[:100]]
    assert set(engine.answered.values()) == {1} and engine.seen[TEXTS[5]] == 3
    more = write_csv(place.folder / "more.csv", make_rows(TEXTS[100:200]))
    engine.fall_ill_after(30)
    with run_stand_in(engine) as address, pytest.raises(StageError, match="nothing answers any more"):
        place.predicted(more, "more.csv", address)
    assert not place.output("more.csv").exists() and place.rows_on_disk() == 30
    engine.recover()
    with run_stand_in(engine) as address:
        assert len(read_output(place.predicted(more, "more.csv", address))) == 100
    assert set(engine.answered.values()) == {1}
    with pytest.raises(StageError, match="does not answer"):
        place.predicted(more, "again.csv", address)


@pytest.mark.parametrize("status", [429, 408, 404, 401, 403, 418])
def test_only_what_is_said_of_the_row_refuses_it(
    place: PredictionRun, engine: StandInEngine, address: str, status: int
) -> None:
    engine.refuse = lambda text, before: status if text == TEXTS[7] and before == 0 else 0
    rows = write_csv(place.folder / "in.csv", make_rows(TEXTS[:20]))
    if status not in (408, 429):
        with pytest.raises(StageError, match=f"answers {status}.*refused with {status}"):
            place.predicted(rows, "out.csv", address)
        assert not place.output("out.csv").exists()
    found = read_output(place.predicted(rows, "out.csv", address))
    assert [row["answer"] for row in found] == [linear_predictions()[text][0] for text in TEXTS[:20]]


@pytest.mark.parametrize(("rows", "said"), [(60, "16 rows in succession"), (5, "5 rows got no answer")])
def test_an_outage_of_a_server_that_says_it_is_well_makes_no_output_of_refusals(
    place: PredictionRun, engine: StandInEngine, address: str, rows: int, said: str
) -> None:
    engine.refuse = lambda text, before: 500
    path = write_csv(place.folder / "in.csv", make_rows(TEXTS[:rows]))
    for _ in range(2):
        with pytest.raises(StageError, match=said):
            place.predicted(path, "out.csv", address)
    assert not place.output("out.csv").exists()
    engine.refuse = lambda text, before: 0
    found = read_output(place.predicted(path, "out.csv", address))
    assert [row["answer"] for row in found] == [linear_predictions()[text][0] for text in TEXTS[:rows]]


def test_rows_without_an_answer_are_asked_again_by_the_next_call_and_they_alone(
    place: PredictionRun, engine: StandInEngine, address: str
) -> None:
    silent = {TEXTS[3], TEXTS[70]}
    engine.refuse = lambda text, before: 503 if text in silent else 0
    path = write_csv(place.folder / "in.csv", make_rows(TEXTS[:120]))
    with pytest.raises(StageError, match="2 rows got no answer"):
        place.predicted(path, "out.csv", address)
    engine.refuse = lambda text, before: 0
    found = read_output(place.predicted(path, "out.csv", address))
    assert [row["answer"] for row in found] == [linear_predictions()[text][0] for text in TEXTS[:120]]
    assert set(engine.answered.values()) == {1}


def test_a_file_of_another_origin_is_kept_also_after_a_call_that_broke_off(
    place: PredictionRun, engine: StandInEngine, address: str
) -> None:
    rows = write_csv(place.folder / "in.csv", make_rows(TEXTS[:20]))
    engine.ill = True
    with pytest.raises(StageError, match="nothing answers any more"):
        place.predicted(rows, "first.csv", address)
    engine.ill = False
    foreign = place.output("second.csv")
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("of a person", encoding="utf-8")
    with pytest.raises(RecipeError, match="FORCE=1"):
        place.predicted(rows, "second.csv", address)
    assert foreign.read_text(encoding="utf-8") == "of a person"
    assert len(read_output(place.predicted(rows, "second.csv", address, "--force"))) == 20


@pytest.mark.parametrize("differs", ["answers", "prompt"])
def test_a_server_of_another_run_is_refused_before_a_row_is_asked_and_when_it_goes_on(
    place: PredictionRun, engine: StandInEngine, address: str, differs: str
) -> None:
    rows = write_csv(place.folder / "in.csv", make_rows(TEXTS[:5]))
    engine.ill = True
    with pytest.raises(StageError, match="nothing answers any more"):
        place.predicted(rows, "out.csv", address)
    asked, engine.ill = engine.seen.total(), False
    engine.reference, engine.prompt_ids = ("other", [1, 2, 3]) if differs == "answers" else ("b", [1, 2, 4])
    with pytest.raises(RecipeError, match=f"is not what run {place.here.id} trained.*RUN=<id>"):
        place.predicted(rows, "out.csv", address)
    assert engine.seen.total() == asked and not place.output("out.csv").exists()


def test_answers_of_two_forms_are_not_mixed_and_one_that_is_not_named_has_no_threshold(
    place: PredictionRun, engine: StandInEngine, address: str
) -> None:
    place.compared(threshold=0.8)
    rows = write_csv(place.folder / "in.csv", make_rows(TEXTS[:60]))
    engine.fall_ill_after(30)
    engine.root = f"/srv/runs/router/{place.here.id}/adapter"
    with pytest.raises(StageError, match="nothing answers any more"):
        place.predicted(rows, "out.jsonl", address)
    before = engine.answered.total()
    engine.recover()
    engine.root = "/models/router"
    path = place.predicted(rows, "out.jsonl", address)
    assert engine.answered.total() == before + 60, "all are asked of the form that answers now"
    assert {row["abstain"] for row in read_output(path)} == {None}
    about = atomic_files.read_json(path.with_name("out.jsonl.about.json"))
    assert "does not say which form" in about["why_no_threshold"] and about["engine"][2] is None
    engine.root = f"/srv/runs/router/{place.here.id}/adapter"
    found = read_output(place.predicted(rows, "out.jsonl", address))
    assert None not in {row["abstain"] for row in found} and engine.answered.total() == 120


def test_a_server_without_the_model_is_refused_before_a_row_is_asked(
    place: PredictionRun, address: str, engine: StandInEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.recipe.rename(place.folder / "other.yaml")
    (place.folder / "runs" / "router").rename(place.folder / "runs" / "other")
    other = PredictionRun(place.folder, place.folder / "other.yaml", place.here)
    with pytest.raises(RecipeError, match="no model other; there are router"):
        other.predicted(write_csv(place.folder / "in.csv", make_rows(TEXTS[:3])), "out.csv", address)
    assert engine.seen == Counter()
