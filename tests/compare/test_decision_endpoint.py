"""A decision endpoint as a baseline, end to end: a stand-in that answers by the probabilities of a linear model.

The stand-in is called one everywhere: what it scores tells nothing of OpenAI's endpoint.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from compare import assemble
from compare.analysis import system_scores
from compare.decision import preregistration, verdict
from compare.decision.verdict_inputs import VerdictInputs
from compare.records import System, SystemResponses
from compare.report import write
from compare.scoring import confidence
from compare.systems import api_models, catalog, collect
from compare.systems.responses import ComparisonContext
from demo_data.support_tickets import generate_tickets
from insource.backends import failures
from insource.config.load import load
from insource.config.schema.compare import Baseline
from insource.system import atomic_files
from insource.text.text_keys import duplicate_key
from insource.tracking.scores.comparison import build_scores
from tests.helpers.api_comparison import make_comparison
from tests.helpers.provider.faulty_provider import Provider, run_provider
from tests.helpers.provider.provider_answers import Json, make_decision, make_systemone
from tests.helpers.recipe_errors import load_error

SPLITS = {"train": 500, "validation": 250, "calibration": 250, "test": 300}
PRICE = {"input_usd_per_million": 0.1, "output_usd_per_million": 0, "date": "2026-10-10"}


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    """Tickets of the demo set by split."""
    tickets = iter(generate_tickets(sum(SPLITS.values()) + 200, seed=11))
    seen: set[str] = set()
    by_split: dict[str, list[dict[str, Any]]] = {}
    for split, count in SPLITS.items():
        split_rows = by_split.setdefault(split, [])
        while len(split_rows) < count:
            ticket = next(tickets)
            if (key := duplicate_key(ticket.message)) not in seen:
                seen.add(key)
                split_rows.append(
                    {"id": f"{split}{len(split_rows)}", "input": {"text": ticket.message}, "target": ticket.queue}
                )
    return by_split


@pytest.fixture(scope="module")
def linear(rows: dict[str, list[dict[str, Any]]]) -> Any:
    """A model that is too sure of itself: its scale has something to mend."""
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=300.0, max_iter=2000))
    train_rows = rows["train"][:150]
    return model.fit([row["input"]["text"] for row in train_rows], [row["target"] for row in train_rows])


class StandIn(Provider):
    """A provider whose decisions are those of a linear model."""

    def __init__(self, model: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.model = model
        self.answer = lambda text: str(model.predict([text])[0])
        self.response_makers = {"decisions": self.decided, "systemone": self.judged}

    def chances(self, text: str) -> dict[str, float]:
        return dict(zip(self.model.classes_, map(float, self.model.predict_proba([text])[0]), strict=True))

    def decided(self, body: Json, label: str) -> Json:
        decision = make_decision(body, label)
        probabilities = self.chances(body["input"])
        for entry in decision["answers"][0]["probabilities"]:
            entry["probability"] = probabilities.get(entry["value"], 0.0)
        return decision

    def judged(self, body: Json, label: str) -> Json:
        response = make_systemone(body, label)
        response["answers"]["label"]["probabilities"].update(self.chances(body["state"]))
        return response


@pytest.fixture(scope="module")
def stand_in(linear: Any) -> Iterator[tuple[StandIn, str]]:
    provider = StandIn(linear, fault_rate=0.1)
    with run_provider(provider) as address:
        yield provider, address


def comparison(folder: Path, tokenizer: Any, rows: Any, address: str, api: str = "decisions") -> ComparisonContext:
    model = {"decisions": "gpt-6-luna", "systemone": "jev-1.14.0"}[api]
    baseline = {
        "provider": "openai",
        "api": api,
        "model": model,
        "base_url": f"{address}/v1",
        "timeout_seconds": 1.0,
        "name": "decides",
        "price": PRICE,
    }
    primary = {"system": "tuned", "baseline": "decides", "metric": "accuracy"}
    recipe = load("classifier", (), "gpu").recipe
    return make_comparison(
        folder, recipe, tokenizer, rows, baselines=[baseline], primary=primary, repeat_rows=20, calibrate_rows=200
    )


@pytest.mark.parametrize("api", ["decisions", "systemone"])
def test_its_probabilities_are_kept_calibrated_routed_priced_and_reported_as_a_stand_ins(
    api: str, tmp_path: Path, tokenizer: Any, rows: Any, stand_in: tuple[StandIn, str]
) -> None:
    provider, address = stand_in
    context = comparison(tmp_path, tokenizer, rows, address, api)
    system = catalog.api_systems(context.recipe)[0]
    assert system.is_stand_in and "stand-in on this machine" in system.title
    provider.charged_tokens.clear()
    responses = api_models.collect_from_apis(context, [system])["decides"]
    assert (
        responses.complete
        and len(responses.test_answers) == 300
        and len(responses.calibration_answers) == 250
        and len(responses.repeat_answers) == 20
    )
    for row, answer in zip(context.dataset.test, responses.test_answers, strict=True):
        assert answer.probabilities is not None and sum(answer.probabilities.values()) == pytest.approx(1)
        assert answer.output == max(answer.probabilities, key=lambda label: answer.probabilities[label])  # type: ignore[index]
        assert answer.probabilities == pytest.approx(provider.chances(row["input"]["text"]))
    # On a scale that was fitted on other rows, it knows better how sure it may be.
    assert responses.scale is not None
    scored = system_scores.score_system(responses, context.dataset, None)
    reported = [float(np.exp(answer.log_probability or 0.0)) for answer in responses.test_answers]
    uncalibrated, calibrated = (
        confidence.reliability(values, scored.correct, True) for values in (reported, scored.confidences)
    )
    assert uncalibrated is not None and calibrated is not None and calibrated.ece < uncalibrated.ece

    tuned = tuned_by_a_linear_model(context)
    scored_systems = [
        system_scores.score_system(system_responses, context.dataset, None) for system_responses in (tuned, responses)
    ]
    registration = preregistration.register_and_open(context.run, context.recipe.compare.primary, "0" * 64)
    policy = assemble.fit_tuned_policy(scored_systems, context.dataset, None, context.recipe)
    measurements = assemble.assemble_scores(
        context.run, context.recipe, context.dataset, scored_systems, [], registration, "0" * 64, False
    )
    result = measurements.systems["decides"]
    assert result.stand_in and result.outcomes is not None and result.outcomes["answered"] == 300
    assert result.calibration is not None and result.calibration.fitted_on == "validation"
    assert result.routing is not None and result.routing.calibration_rows == 250 and result.tokens.output in (0, None)
    usd = 1000 * sum((answer.input_tokens or 0) * 1e-7 for answer in responses.test_answers) / 300
    assert result.cost_usd_per_1k == pytest.approx(usd) and result.price and result.price.date == "2026-10-10"
    decision = verdict.decide(VerdictInputs(context.recipe, measurements, policy))
    assert decision.choice == "inconclusive", "a stand-in never decides"
    scores = build_scores(measurements, policy.summarize().model_copy(update={"test": None}), decision)
    write.write_comparison(context.run, context.dataset, scored_systems, scores, context.recipe)
    assert "stand-in" in (context.run.folder / "report.md").read_text(encoding="utf-8")
    predicted = list(atomic_files.read_jsonl(context.run.folder / "predictions" / "decides.jsonl"))
    assert (
        predicted[0]["probabilities"] == responses.test_answers[0].probabilities
        and 0 <= predicted[0]["confidence"] <= 1
    )


def tuned_by_a_linear_model(context: ComparisonContext) -> SystemResponses:
    """Answers for the system that a comparison must have first: no test here serves a model."""
    fitted = collect.fit_baseline(context, System("tfidf", "linear", "TF-IDF"))
    return SystemResponses(System("tuned", "tuned", "tuned (here a linear model)"), fitted.test_answers)


def test_all_rows_are_asked_once_whatever_goes_wrong_and_calibration_is_within_the_budget(
    tmp_path: Path, tokenizer: Any, rows: Any, linear: Any
) -> None:
    provider = StandIn(linear, fault_rate=0.2)
    with run_provider(provider) as address:
        context = comparison(tmp_path, tokenizer, rows, address)
        system = catalog.api_systems(context.recipe)[0]
        responses = api_models.collect_from_apis(context, [system])["decides"]
        repeated = api_models.collect_from_apis(context, [system])["decides"]
    # 300 test rows, 20 of them twice, 200 for the scale, 250 for routing.
    assert sum(provider.delivered.values()) == 300 + 20 + 200 + 250
    assert responses.spent_usd == pytest.approx(repeated.spent_usd) and repeated.reused == 300 + 20 + 200 + 250
    min_usd = sum(input_tokens for input_tokens, _ in provider.charged_tokens) * 1e-7
    assert responses.spent_usd is not None and min_usd <= responses.spent_usd <= context.recipe.compare.budget_usd


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("{provider: openai, api: decisions, model: gpt-6-luna, shots: 3}", "takes no examples"),
        ("{provider: openai, api: decisions, model: gpt-6-luna, mode: batch}", "has no batches"),
        ("{provider: openai, api: decisions, model: gpt-6-luna, temperature: 0}", "takes no temperature"),
        ("{provider: anthropic, api: decisions, model: claude-haiku-5-5}", "takes provider: openai"),
        ("{provider: openai, api: systemone, model: jev-1.14.0}", "needs base_url"),
        ("{provider: openai, api: decision, model: gpt-6-luna}", "did you mean decisions"),
    ],
)
def test_what_an_endpoint_that_decides_has_no_place_for_is_told(baseline: str, message: str) -> None:
    assert message in load_error("classifier", f"compare.baselines=[{baseline}]", "compare.primary=null")


def test_other_kinds_than_classification_are_told() -> None:
    override = "compare.baselines=[{provider: openai, api: decisions, model: gpt-6-luna}]"
    assert "chooses one of the labels, and this is kind extraction" in load_error(
        "extractor", override, "compare.primary=null"
    )


def test_the_key_of_one_provider_is_not_sent_to_another() -> None:
    jev = Baseline(provider="openai", api="systemone", model="jev-1.14.0", base_url="https://api.typesafe.ai/v1")
    assert jev.key_env == "TYPESAFE_API_KEY" and jev.display_name == "openai:jev-1.14.0:systemone"
    luna = Baseline(provider="openai", api="decisions", model="gpt-6-luna")
    assert luna.key_env == "OPENAI_API_KEY" and luna.display_name == "openai:gpt-6-luna:decisions"


def test_a_label_without_a_probability_is_no_answer(tmp_path: Path, tokenizer: Any, rows: Any, linear: Any) -> None:
    provider = StandIn(linear)
    provider.response_makers = {"decisions": lambda body, label: {**make_decision(body, label), "answers": []}}
    with run_provider(provider) as address:
        context = comparison(tmp_path, tokenizer, {**rows, "test": rows["test"][:3]}, address)
        baseline = context.recipe.compare.baselines[0].model_copy(update={"retries": 0})
        responses = api_models.collect_from_apis(context, [catalog._api_system(baseline)])["decides"]
    assert all("0 answers to one question" in (answer.error or "") for answer in responses.test_answers)
    assert responses.scale is None
