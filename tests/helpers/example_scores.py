"""A complete scores.json and rows with different answers of two systems, as input of the report.

The figures are plausible. Labels, answers and model ids contain markup that the report must escape.

make_scores(labels=9).systems["tuned"].metrics["accuracy"] -> MetricValue(value=0.912, ci_low=0.9, ci_high=0.924, ...)
make_json(labels=9)["systems"]["tuned"]["metrics"]["accuracy"] -> {"value": 0.912, "ci_low": 0.9, "ci_high": 0.924, ...}
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from compare import assemble
from compare.cost import ownership
from compare.decision import criteria, routing_policy, verdict
from insource.config.schema import serving_and_cost
from insource.stats.paired import Conclusion
from insource.tracking.scores.comparison import (
    BaseSummary,
    ConfusionMatrix,
    Disagreement,
    Integrity,
    NotRun,
    Opening,
    PairedResult,
    Plan,
    Reason,
    Scores,
    TaskSummary,
    Verdict,
)
from insource.tracking.scores.cost_result import CostResult
from insource.tracking.scores.routing_result import (
    CurvePoint,
    Estimate,
    ExpectedValue,
    RoutingResult,
    RoutingTest,
    StrategyResult,
)
from insource.tracking.scores.system_result import (
    Latency,
    MetricValue,
    PartResult,
    Price,
    Reliability,
    ReliabilityBin,
    Repeats,
    SliceResult,
    SystemKind,
    SystemResult,
    Throughput,
    TokenCounts,
    Validity,
)

Json = dict[str, Any]
Systems = Mapping[str, SystemResult]

SCRIPT_TAG = "</script><script>document.title='hacked'</script>"
IMAGE_TAG = "<img src=x onerror=\"document.title='hacked'\">"
MARKDOWN_LINES = (
    "first | second\n# `code` <b>bold</b> [link](javascript:alert) @team \u2028 https://example.org \ud800 \0"
)
MARKUP_MODEL_NAME = f"local:model {IMAGE_TAG}"
TUNED_MODEL, API_MODEL, SECOND_MODEL, LINEAR_MODEL = "tuned", "openai:example-large", MARKUP_MODEL_NAME, "tfidf"
N_ROWS = 3080


def make_scores(labels: int = 9, measured: bool = True, planned: bool = True, linear: float = 0.905) -> Scores:
    """Return the records of a scores.json. The last label contains markup; `linear` is the linear model's accuracy."""
    names = _labels(labels)
    accuracies = {"tuned": 0.912, "int8": 0.909, "base": 0.412, "base:3-shot": 0.683, "tfidf": linear}
    accuracies |= {API_MODEL: 0.921, SECOND_MODEL: 0.874, "what we pay for today": 0.902}
    systems = {name: _system(name, accuracy, names) for name, accuracy in accuracies.items()}
    systems[SECOND_MODEL] = systems[SECOND_MODEL].model_copy(
        update={
            "stand_in": True,
            "complete": False,
            "answered": 2100,
            "outcomes": _outcomes(2100),
            "incomplete_reason": "the budget was spent",
        }
    )
    return Scores(
        schema_version=assemble.SCHEMA_VERSION,
        run_id="20261121T140000Z-ab12",
        recipe="support_tickets",
        created="2026-11-21T14:00:00+00:00",
        task=TaskSummary(
            kind="classification",
            instruction="Route the customer's message to exactly one queue.",
            parts="labels",
            metrics=["accuracy", "macro_f1"],
            n_train=7842,
            n_test=N_ROWS,
            clusters=None,
        ),
        base=BaseSummary(name="Qwen/Qwen3-4B-Instruct-2507", pocket=False, quantization="nf4", served_as="published"),
        hardware="1x NVIDIA L4",
        training_seconds=1800.0,
        plan=_plan() if planned else None,
        systems=systems,
        not_run=[
            NotRun(
                name="late",
                title=f"anthropic:late {SCRIPT_TAG}",
                reason="no key: ANTHROPIC_API_KEY is not set",
                incomplete=False,
            )
        ],
        comparisons=_comparisons(systems, planned),
        agreement={f"{TUNED_MODEL} | {API_MODEL}": 0.884, f"{TUNED_MODEL} | {LINEAR_MODEL}": 0.871},
        confusion={name: _confusion(systems[name], names) for name in (TUNED_MODEL, API_MODEL, LINEAR_MODEL)},
        cost=_costs(measured),
        integrity=_integrity(),
        routing=_routing(accuracies["tuned"], accuracies[API_MODEL]),
        verdict=_verdict(),
    )


def make_json(labels: int = 9, measured: bool = True, planned: bool = True, linear: float = 0.905) -> Json:
    """Return the content of the file, for tests that change it."""
    return make_scores(labels, measured, planned, linear).to_json()


def make_disagreements(count: int = 57) -> list[Disagreement]:
    """Return rows with different answers of the tuned and the API model; in every third only the tuned one is right."""
    names = _labels(9)
    rows = []
    for number in range(count):
        target, wrong = names[number % 9], names[(number + 4) % 9]
        case = number % 3
        text = f"Message {number}: my card has not come.\n{SCRIPT_TAG if number % 5 == 0 else ''}"
        api_answer = target if case == 1 else SCRIPT_TAG
        rows.append(
            Disagreement(
                id=f"test-{number:04d}",
                input=text if number else MARKDOWN_LINES + "x" * 3000,
                target=target,
                answers={
                    TUNED_MODEL: target if case == 0 else wrong,
                    API_MODEL: "" if number == 1 else api_answer,
                },
                correct={TUNED_MODEL: case == 0, API_MODEL: case == 1},
                confidence=None if number == 2 else 0.5 + number / 200,
            )
        )
    return rows


def _labels(count: int) -> list[str]:
    examples = ("card_arrival", "refund_not_showing_up", "lost_or_stolen_card", "exchange_rate", "top_up_failed", "pin")
    names = [*examples, "a & b", *(f"another_rather_long_label_{number}" for number in range(max(count - 8, 0)))][
        :count
    ]
    return [*names[: count - 1], f"label {SCRIPT_TAG} | `x`"]


def _system(name: str, accuracy: float, labels: list[str]) -> SystemResult:
    kinds: dict[str, SystemKind] = {"tuned": "tuned", "int8": "tuned", "base": "base", "base:3-shot": "base"}
    kinds |= {"tfidf": "linear", "what we pay for today": "file"}
    kind = kinds.get(name, "closed")
    calibrated = kind in ("tuned", "linear")
    price = {API_MODEL: 0.4, "what we pay for today": 0.0131}.get(name)
    return SystemResult(
        kind=kind,
        title={"tuned": "tuned (adapter)", "tfidf": "TF-IDF + logistic regression"}.get(name, name),
        variant={"tuned": "adapter", "int8": "quantized/int8"}.get(name),
        stand_in=False,
        model_ids=[f"example-large-2026-08-01 {SCRIPT_TAG}"] if kind == "closed" else ["Qwen/Qwen3-4B-Instruct-2507"],
        shots=3 if name == "base:3-shot" else 0,
        role={TUNED_MODEL: "primary system", API_MODEL: "primary baseline"}.get(name, "exploratory"),
        n=N_ROWS,
        answered=N_ROWS,
        outcomes=_outcomes(N_ROWS),
        complete=True,
        incomplete_reason=None,
        n_train=7842 if kind in ("tuned", "linear") else None,
        metrics={"accuracy": _figure(accuracy, N_ROWS), "macro_f1": _figure(accuracy - 0.012, N_ROWS)},
        slices={"channel": {value: _slice(accuracy + offset, n) for value, (offset, n) in _channels().items()}},
        per_part={label: _part(accuracy, index) for index, label in enumerate(labels)},
        validity=Validity(
            parse=min(accuracy + 0.08, 1), in_schema=accuracy + 0.06, label=accuracy + 0.05, correct=accuracy
        ),
        invalid={"not_json": 31, f"odd {SCRIPT_TAG}": 2} if kind == "closed" else {},
        errors={"timeout": 3} if kind == "closed" else {},
        calibration=_calibration(accuracy) if calibrated else None,
        latency=_latency(kind),
        throughput=_throughput() if kind in ("tuned", "base") else None,
        parity=None,
        tokens=TokenCounts(input=612_000, output=24_000, reasoning=None, cached=0 if kind == "closed" else None),
        retries=12 if kind == "closed" else 0,
        reused=40 if kind == "closed" else 0,
        price=_price() if name == API_MODEL else None,
        cost_usd=None if price is None else price * N_ROWS / 1000,
        cost_usd_per_1k=3.584 if kind == "tuned" else price,
        cost_usd_per_1k_correct=3.93 if kind == "tuned" else price and price / accuracy,
        cost_usd_per_1k_batch=price and price / 2,
        repeats=Repeats(rows=50, agreement=0.94) if kind == "closed" else None,
        shutdown_date="2027-01-31" if name == API_MODEL else None,
    )


def _outcomes(answered: int) -> dict[str, int]:
    others = {"refused": 0, "cut": 0, "malformed": 0, "failed": 0}
    return {"answered": answered, **others, "not_asked": N_ROWS - answered}


def _latency(kind: SystemKind) -> Latency | None:
    if kind == "file":
        return None
    seconds = {"tuned": 0.08, "base": 0.09, "linear": 0.0004}.get(kind, 0.7)
    return Latency(
        n=N_ROWS,
        p50_seconds=seconds,
        p95_seconds=2.4 * seconds,
        p99_seconds=5.1 * seconds,
        concurrency=32 if kind in ("tuned", "base") else 8,
    )


def _throughput() -> Throughput:
    return Throughput(
        identity="0123456789abcdef",
        requests_per_second=20.0,
        tokens_per_second=4800.0,
        concurrency=32,
        n=N_ROWS,
        hardware="1x NVIDIA L4",
        measured="2026-11-21T14:00:00+00:00",
    )


def _interval(accuracy: float, n: int) -> dict[str, float]:
    margin = 1.96 * sqrt(max(accuracy * (1 - accuracy), 0.0001) / n)
    return {"value": accuracy, "ci_low": max(accuracy - margin, 0), "ci_high": min(accuracy + margin, 1)}


def _figure(accuracy: float, n: int) -> MetricValue:
    return MetricValue(**_interval(accuracy, n), method="Wilson")


def _channels() -> dict[str, tuple[float, int]]:
    return {"e-mail": (0.01, 2000), "chat": (-0.02, 1000), f"phone {SCRIPT_TAG}": (-0.06, 80)}


def _slice(accuracy: float, n: int) -> SliceResult:
    return SliceResult(n=n, metrics={"accuracy": _figure(accuracy, n), "macro_f1": _figure(accuracy - 0.01, n)})


def _part(accuracy: float, index: int) -> PartResult:
    value = min(max(accuracy + 0.02 * ((index * 7) % 5 - 2), 0), 1)
    return PartResult(precision=value, recall=max(value - 0.01, 0), f1=value - 0.005, n=30 + (index * 37) % 61)


def _calibration(mean_accuracy: float) -> Reliability:
    bins = []
    for index in range(10):
        confidence = 0.5 + 0.05 * index
        accuracy = min(max(confidence - 0.02 + 0.01 * (index % 3), 0), 1) * mean_accuracy / 0.912
        bins.append(
            ReliabilityBin(
                low=confidence - 0.02,
                high=confidence + 0.02,
                n=308,
                confidence=confidence,
                accuracy=accuracy,
                ci_low=max(accuracy - 0.05, 0),
                ci_high=min(accuracy + 0.05, 1),
            )
        )
    return Reliability(n=N_ROWS, ece=0.021, bins=bins, fitted_on="988 calibration rows")


def _price() -> Price:
    return Price(
        input_usd_per_million=1.5,
        output_usd_per_million=6.0,
        cached_input_usd_per_million=0.15,
        batch_input_usd_per_million=0.75,
        batch_output_usd_per_million=3.0,
        source="recipe",
        date="2026-11-01",
        note=None,
    )


def _costs(measured: bool) -> CostResult:
    self_hosted = ownership.SelfHostedMeasurement(
        requests_per_second=20.0 if measured else None,
        hardware="1x NVIDIA L4",
        on_gpu=True,
        training_seconds=1800,
        tokens_per_request=240,
        missing_reason=None if measured else f"no server was started {SCRIPT_TAG}",
        correct_fraction=0.912,
    )
    api_costs = [
        ownership.ApiCost(API_MODEL, 0.0004, 0.0002, 0.00031),
        ownership.ApiCost(SECOND_MODEL, None, missing_reason="nobody here knows its price"),
        ownership.ApiCost("what we pay for today", 0.0000131),
    ]
    return ownership.CostComparison(serving_and_cost.Cost(gpu_usd_per_hour=0.8), self_hosted, api_costs).summarize()


def _plan() -> Plan:
    return Plan(
        system=TUNED_MODEL,
        baseline=API_MODEL,
        metric="accuracy",
        margin=0.02,
        alpha=0.05,
        sha256="b" * 64,
        registered_at="2026-11-21T13:55:00+00:00",
        confirmatory=True,
        exploratory_reason=None,
    )


def _comparisons(systems: Systems, planned: bool) -> list[PairedResult]:
    return [
        _comparison(systems, name, metric, planned and name == API_MODEL and metric == "accuracy")
        for metric in ("accuracy", "macro_f1")
        for name in systems
        if name != TUNED_MODEL
    ]


def _comparison(systems: Systems, name: str, metric: str, is_primary: bool) -> PairedResult:
    delta = systems[TUNED_MODEL].metrics[metric].value - systems[name].metrics[metric].value
    low, high = delta - 0.009, delta + 0.009
    conclusion: Conclusion = (
        "superior" if low > 0 else "worse" if high < -0.02 else "non-inferior" if low > -0.02 else "undecided"
    )
    return PairedResult(
        a=TUNED_MODEL,
        b=name,
        metric=metric,
        delta=delta,
        ci_low=low,
        ci_high=high,
        p_value=0.0412 if is_primary else 0.0001,
        p_adjusted=0.0824 if is_primary else 0.0007,
        test="exact McNemar" if metric == "accuracy" else "paired permutation",
        alpha=0.05,
        margin=0.02,
        n=N_ROWS,
        discordant=357 if metric == "accuracy" else None,
        mde=0.0171,
        family="primary" if is_primary else "exploratory",
        conclusion=conclusion,
        rows_to_decide=9120 if conclusion == "undecided" else None,
    )


def _confusion(system: SystemResult, labels: list[str]) -> ConfusionMatrix:
    size = len(labels)
    counts = [[0] * (size + 1) for _ in range(size)]
    for index, label in enumerate(labels):
        part = system.per_part[label]
        n_wrong = max(1, round(part.n * (1 - part.recall)))
        counts[index][index] = part.n - n_wrong
        counts[index][(index + 1) % size] = n_wrong - 1
        counts[index][size] += 1
    return ConfusionMatrix(labels=[*labels, "(no valid answer)"], counts=counts)


def _verdict() -> Verdict:
    reasons = [
        _reason(
            "quality",
            f"The owned model is as good, within 2 points {SCRIPT_TAG}.",
            "open",
            "−0.9 points (−1.8 to 0.0)",
        ),
        _reason("privacy", f"The data may leave the building {SCRIPT_TAG}.", "neutral", "yes"),
        _reason("cost", "The recipe's volume is below the break-even.", "closed", "1,000,000 of 8,961,001 requests"),
        _reason("structured output", "Both are held to a schema.", "neutral", "96.20% against 97.10%"),
        _reason("engineering", "Running it takes 25% of an engineer.", "neutral", "$3,000"),
        _reason("prompt changes", "The prompt never changes.", "open", "0 a month"),
    ]
    return Verdict(
        choice="hybrid",
        headline="The owned model is as good as openai:example-large, and pays from 8,961,001 requests a month.",
        reasons=reasons,
        votes=verdict.count_votes(reasons),
        open_questions=["anthropic:late was not asked: whether it is better is not known."],
    )


def _reason(criterion: str, text: str, favors: str, value: str) -> Reason:
    question = criteria.QUESTION_TEXTS.get(criterion)
    return Reason(topic=criterion, text=text, favors=favors, value=value, question=question)


def _routing(tuned_accuracy: float, api_accuracy: float) -> RoutingResult:
    policy = routing_policy.RoutingPolicy(
        threshold=0.8312,
        target_accuracy=0.95,
        confidence=0.95,
        calibration_rows=1180,
        left_out_rows=120,
        coverage=0.71,
        accuracy=0.968,
        p_value=0.031,
        sequence=routing_policy.TestedThresholds(500, 98, 0.9712, 41),
        score={"of": "answer", "slope": 1.4, "intercept": -0.3},
    )
    test = _routing_test(tuned_accuracy, api_accuracy)
    return policy.summarize().model_copy(update={"test": test})


def _routing_test(tuned_accuracy: float, api_accuracy: float) -> RoutingTest:
    curve = []
    for step in range(21):
        coverage = 0.1 + 0.9 * step / 20
        correct_kept = 0.995 - (0.995 - tuned_accuracy) * coverage**2
        correct = coverage * correct_kept + (1 - coverage) * (api_accuracy - 0.02)
        curve.append(
            CurvePoint(threshold=0.999 - 0.04 * step, kept=coverage, correct_of_kept=correct_kept, correct=correct)
        )
    coverage = 0.7
    random_value = coverage * tuned_accuracy + (1 - coverage) * api_accuracy
    random_routing = ExpectedValue(value=random_value, ci_low=None, ci_high=None)
    self_hosted, closed, routed = (_estimate(value, N_ROWS) for value in (tuned_accuracy, api_accuracy, 0.93))
    return RoutingTest(
        rows=N_ROWS,
        kept=_estimate(coverage, N_ROWS),
        correct_of_kept=_estimate(0.9646, 2156),
        difference_of_kept=None,
        baseline=API_MODEL,
        strategies={
            "owned": StrategyResult(local=1.0, correct=self_hosted, usd_per_1k=3.584),
            "closed": StrategyResult(local=0.0, correct=closed, usd_per_1k=0.4),
            "routed": StrategyResult(local=coverage, correct=routed, usd_per_1k=3.71),
            "random": StrategyResult(local=coverage, correct=random_routing, usd_per_1k=3.704),
        },
        curve=curve,
    )


def _estimate(accuracy: float, n: int) -> Estimate:
    return Estimate(**_interval(accuracy, n))


def _integrity() -> Integrity:
    opening = Opening(opened="2026-11-21T13:56:00+00:00", run="20261121T140000Z-ab12", plan_sha256="b" * 64)
    return Integrity(
        test_sha256="a" * 64,
        plan_sha256="b" * 64,
        openings=[opening],
        leaked_rows=0,
        cache_hits=80,
        retries=24,
        versions={"insource": "0.1.0", "openai": "3.52.0"},
        git_commit="c" * 40,
        fallbacks=[f"int8 was served on the CPU {SCRIPT_TAG}"],
        incomplete=[f"{MARKUP_MODEL_NAME}: 2,100 of 3,080 rows answered"],
    )
