"""Feedback, and whether the guarantee still has ground: answers of a door held against calibration rows."""

import asyncio
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, chi2_contingency, ks_2samp

from compare.decision import answer_profile as profiles
from compare.decision.answer_profile import AnswerProfile, profile_from_json
from compare.decision.routing_policy import RoutingPolicy
from compare.records import Scale, SystemAnswer, SystemResponses
from deploy import drift as drifting
from deploy import registry, routing
from deploy.answers.answer_ids import AnswerIds, AnswerRecord
from deploy.answers.outcome import Deployment
from deploy.answers.task import LOCAL_SYSTEM
from deploy.gateway.paths import feedback
from deploy.monitoring import feedback_record, traffic_profiles
from deploy.monitoring.monitor import Monitor
from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.stats import drift
from insource.system import atomic_files
from tests.conftest import ROOT
from tests.helpers.errors import raises_error
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    LABELS,
    TASK_NAME,
    TASK_VERSION,
    baseline_yaml,
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.provider.faulty_provider import Provider

PATH = f"/v1/tasks/{TASK_NAME}"
MIX = (0.5, 0.3, 0.2)


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def drawn(n: int, seed: int, mix: Sequence[float] = MIX, sharpness: float = 8.0) -> list[tuple[str, float]]:
    """Labels and confidences: the larger `sharpness`, the surer."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(LABELS, size=n, p=mix)
    return [
        (str(label), round(float(confidence), 3))
        for label, confidence in zip(labels, rng.beta(sharpness, 1, n), strict=True)
    ]


def profile(rows: Sequence[tuple[str, float]]) -> AnswerProfile:
    built = AnswerProfile()
    for label, confidence in rows:
        built.add(confidence, label)
    return built


def place_of(
    folder: Path,
    calibration_profile: AnswerProfile | None,
    threshold: float | None = 0.9,
    target: float = 0.95,
    **kwargs: Any,
) -> Path:
    """A registry folder whose current version was deployed with a routing.json."""
    registry_dir = folder / "registry" / TASK_NAME
    (registry_dir / "versions" / TASK_VERSION).mkdir(parents=True)
    (registry_dir / "current").symlink_to(Path("versions") / TASK_VERSION)
    reason = None if threshold else "too few rows"
    settings = {"target_accuracy": target} | kwargs
    payload = RoutingPolicy(
        threshold=threshold, confidence=0.95, calibration_rows=400, no_threshold_reason=reason, **settings
    ).json()
    atomic_files.write_json(
        folder / "routing.json", payload | ({"calibration": calibration_profile.json()} if calibration_profile else {})
    )
    name = f"{atomic_files.sha256(folder / 'routing.json')[:16]}.json"
    (registry_dir / routing.FOLDER).mkdir()
    (folder / "routing.json").rename(registry_dir / routing.FOLDER / name)
    line = {"action": "deploy", "to": TASK_VERSION, "routing": {"file": name, "scale": None, "why_none": reason}}
    (registry_dir / "history.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return registry_dir


def routed(registry_dir: Path) -> routing.Routing:
    return routing.load_routing(registry_dir, registry.read_history(registry_dir), TASK_VERSION)


def at(folder: Path, registry_dir: Path, recipe: Recipe | None = None) -> Deployment:
    return make_deployed_task(folder, recipe or make_recipe(folder), routed(registry_dir))


async def ask(client: Any, rows: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Answers to as many inputs, which have these labels and confidences."""
    answers: list[dict[str, Any]] = []
    for start in range(0, len(rows), 256):
        inputs = [f"says {label} p={confidence:.3f}" for label, confidence in rows[start : start + 256]]
        response = await client.post(PATH, json={"inputs": inputs})
        answers += (await response.json())["answers"]
    return answers


def served(folder: Path, deployment: Deployment, rows: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """What a gateway with a registry answers, which ends then."""
    answers: list[dict[str, Any]] = []

    async def scenario() -> None:
        monitor = Monitor(folder / "registry")
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            answers.extend(await ask(client, rows))
            await monitor.close()

    run(scenario)
    return answers


def test_traffic_like_the_calibration_rows_leaves_the_guarantee_its_ground(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry_dir = place_of(tmp_path, profile(drawn(400, 1)))
    for seed in (2, 3):  # two processes
        served(tmp_path, at(tmp_path, registry_dir), drawn(200, seed))
    assert drifting.report_drift(registry_dir, TASK_VERSION, routed(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "400 answers of the last 7 days, beside 400 calibration rows" in stdout
    assert "holds     confidence" in stdout and "holds     labels" in stdout and "nothing speaks against it" in stdout
    assert "exchangeable" in stdout


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (drawn(300, 4, mix=(0.2, 0.3, 0.5)), ["labels"]),
        (drawn(300, 5, sharpness=4.0), ["confidence"]),
        (drawn(300, 6, mix=(0.1, 0.1, 0.8), sharpness=2.0), ["confidence", "labels"]),
    ],
)
def test_traffic_that_changed_takes_it_away(
    tmp_path: Path, rows: list[tuple[str, float]], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    registry_dir = place_of(tmp_path, profile(drawn(400, 1)))
    served(tmp_path, at(tmp_path, registry_dir), rows)
    assert drifting.report_drift(registry_dir, TASK_VERSION, routed(registry_dir), 7) == 3
    stdout = capsys.readouterr().out
    assert [line.split()[1].rstrip(":") for line in stdout.splitlines() if line.startswith("LOST")] == expected
    assert f"has lost its ground: {', '.join(expected)}" in stdout


def test_without_a_threshold_there_is_no_guarantee_to_lose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry_dir = place_of(tmp_path, profile(drawn(400, 1)), threshold=None)
    served(tmp_path, at(tmp_path, registry_dir), drawn(300, 4, mix=(0.2, 0.3, 0.5)))
    assert drifting.report_drift(registry_dir, TASK_VERSION, routed(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "changed   labels" in stdout and "LOST" not in stdout and "lost its ground" not in stdout
    assert "no guarantee to lose: too few rows; traffic is not like the calibration rows: labels" in stdout


@pytest.mark.parametrize("mirror", [0, 1])
def test_traffic_of_which_a_part_is_not_looked_at_is_not_tested(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str], mirror: int
) -> None:
    """Half of the calibration rows and of the inputs hold an address, and those have other labels than the rest."""
    provider.answer = lambda prompt: "broken"
    registry_dir = place_of(tmp_path, profile([("lost", 0.99)] * 200 + [("late", 0.99)] * 200))
    deployment = at(
        tmp_path, registry_dir, make_recipe(tmp_path, baselines=baseline_yaml(address), route=f"{{mirror: {mirror}}}")
    )
    inputs = [
        f"{index} mail ann@example.org says lost p=0.99" if index % 2 else f"{index} says late p=0.99"
        for index in range(60)
    ]

    async def scenario() -> None:
        monitor = Monitor(registry_dir.parent)
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            for _ in range(2):
                if mirror:
                    assert (await client.post(PATH, json={"inputs": inputs})).status == 200
                    await monitor.mirror.wait_idle()
                    continue
                for text in inputs:
                    body = {"model": TASK_NAME, "messages": [{"role": "user", "content": text}]}
                    assert (await client.post("/v1/chat/completions", json=body)).status == 200
            await monitor.close()

    run(scenario)
    assert drifting.report_drift(registry_dir, TASK_VERSION, routed(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "untested  traffic: 50.0% of the inputs stay here and their answers are not looked at" in stdout
    assert "too little is known" in stdout


def test_the_command_says_it_with_its_exit_code(tmp_path: Path) -> None:
    registry_dir = place_of(tmp_path, profile(drawn(400, 1)))
    deployment = at(tmp_path, registry_dir)
    args = [str(tmp_path / f"{TASK_NAME}.yaml"), "--hardware", "cpu", "--registry", str(registry_dir.parent)]

    def command(*extra: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "deploy.drift", *args, *extra]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    initial = command()
    assert initial.returncode == 0 and "too little is known" in initial.stdout
    served(tmp_path, deployment, drawn(300, 4, mix=(0.2, 0.3, 0.5)))
    changed = command("--days", "1")
    assert changed.returncode == 3 and "LOST      labels" in changed.stdout, changed.stderr
    for days in ("0", "²", "٣"):  # digits of other scripts too
        wrong = command("--days", days)
        assert wrong.returncode == 2 and "allowed: 1 to 3660" in wrong.stderr, wrong.stderr


def test_a_deployment_without_a_profile_says_what_to_do(tmp_path: Path) -> None:
    registry_dir = place_of(tmp_path, None)
    assert routed(registry_dir).profile is None and routed(registry_dir).threshold == 0.9
    make_recipe(tmp_path)
    args = [str(tmp_path / f"{TASK_NAME}.yaml"), "--hardware", "cpu", "--registry", str(registry_dir.parent)]
    argv = [sys.executable, "-m", "deploy.drift", *args]
    completed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 1 and "make compare" in completed.stderr and "make deploy" in completed.stderr


def test_what_was_observed_is_aggregates_and_of_other_deployments_nothing_counts(tmp_path: Path) -> None:
    registry_dir = place_of(tmp_path, profile(drawn(400, 1)))
    deployment = at(tmp_path, registry_dir)
    served(tmp_path, deployment, [("lost", 0.95)] * 60)
    (path,) = (registry_dir / traffic_profiles.FOLDER).glob("*.json")
    text = path.read_text(encoding="utf-8")
    assert "says" not in text and len(text) < 500
    observed = traffic_profiles.read_profile(registry_dir, deployment.task.deployment_id, "2000-01-01")
    assert observed.profile == AnswerProfile(60, Counter({950: 60}), Counter({"lost": 60}))
    assert observed.reasons == {"local/no_api_model": 60}
    assert traffic_profiles.read_profile(registry_dir, "0" * 16, "2000-01-01").profile.rows == 0
    assert traffic_profiles.read_profile(registry_dir, deployment.task.deployment_id, "2999-01-01").profile.rows == 0


def test_second_answers_are_no_part_of_the_sample_as_calibration_rows_have_none(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path))

    async def scenario() -> None:
        monitor = Monitor()
        async with gateway_client(deployment, monitor=monitor) as (client, engine, _state):
            for text in ("says lost", "late cut"):
                response = await client.post(PATH, json={"input": text})
                assert response.status == 200
            assert len(engine.requests) == 3
            observed = monitor.profiles.read_today(deployment.task)
            assert observed.profile.answers == {"lost": 1} and observed.reasons.total() == 2

    run(scenario)


def test_feedback_on_answers_that_were_kept_is_tested_against_what_was_promised(
    tmp_path: Path,
    address: str,
    provider: Provider,
    capsys: pytest.CaptureFixture[str],
) -> None:
    provider.answer = lambda prompt: "broken"
    registry_dir = place_of(tmp_path, profile(drawn(400, 1)))
    deployment = at(tmp_path, registry_dir, make_recipe(tmp_path, baselines=baseline_yaml(address)))
    answers: list[dict[str, Any]] = []

    async def scenario() -> None:
        monitor = Monitor(tmp_path / "registry")
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            answers.extend(await ask(client, [("lost", 0.95)] * 40 + [("lost", 0.5)] * 5))
            items = [
                {"id": answer["id"], "answer": "lost" if index < 30 else "late"} for index, answer in enumerate(answers)
            ]
            response = await client.post(feedback.PATH, json={"feedback": items})
            assert response.status == 200
            results = (await response.json())["results"]
            assert [result["right"] for result in results] == [True] * 30 + [False] * 15
            text = await (await client.get("/metrics")).text()
            assert f'insource_feedback_total{{by="local",model="{TASK_NAME}",right="false"}} 10.0' in text
            assert f'insource_feedback_total{{by="api",model="{TASK_NAME}",right="false"}} 5.0' in text

    run(scenario)
    assert drifting.report_drift(registry_dir, TASK_VERSION, routed(registry_dir), 7) == 3
    stdout = capsys.readouterr().out
    assert "LOST      feedback: 30 of 40 kept answers right, 75.0%" in stdout
    assert "0 of 5 answers of the API model right" in stdout

    async def correct() -> None:
        async with gateway_client(deployment) as (client, _, _state):  # after a restart
            for answer in answers[:40]:
                response = await client.post(feedback.PATH, json={"id": answer["id"], "answer": " Lost "})
                assert await response.json() == {"recorded": 1, "right": True}

    run(correct)
    assert drifting.report_drift(registry_dir, TASK_VERSION, routed(registry_dir), 7) == 0
    assert "holds     feedback: 40 of 40" in capsys.readouterr().out
    record_text = next((registry_dir / feedback_record.FOLDER).glob("*.jsonl")).read_text(encoding="utf-8")
    assert "lost" not in record_text and "late" not in record_text


def test_feedback_on_a_record_counts_it_as_the_comparison_does_and_by_header_on_a_chat(
    tmp_path: Path, address: str
) -> None:
    recipe = make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}", baselines=baseline_yaml(address))
    deployment = make_deployed_task(tmp_path, recipe)

    async def scenario() -> None:
        async with gateway_client(deployment) as (client, _, _state):
            body = {
                "model": TASK_NAME,
                "messages": [{"role": "user", "content": 'says {"number":"17","day":null} p=0.95'}],
            }
            response = await client.post("/v1/chat/completions", json=body)
            name = response.headers["X-Insource-Answer-Id"]
            assert (await response.json())["insource"]["id"] == name
            for answer, correct in (
                ({"day": None, "number": "17"}, True),
                ({"number": "17"}, True),
                ('{"number": "17", "day": null}', True),
                ({"number": "18"}, False),
            ):
                response = await client.post(feedback.PATH, json={"id": name, "answer": answer})
                assert (await response.json())["right"] is correct, answer
            response = await client.post(feedback.PATH, json={"id": name, "answer": {"price": 3}})
            assert response.status == 400

    run(scenario)


def test_wrong_feedback_is_told_and_one_that_is_wrong_fails_alone(tmp_path: Path) -> None:
    deployment = make_deployed_task(tmp_path, make_recipe(tmp_path))
    headers = {"Authorization": "Bearer secret"}

    async def scenario() -> None:
        async with gateway_client(deployment, "secret") as (client, _, state):
            answer = await (await client.post(PATH, json={"input": "says lost"}, headers=headers)).json()
            name = answer["id"]
            assert (await client.post(feedback.PATH, json={"id": name, "answer": "lost"})).status == 401
            forged = AnswerIds().seal(AnswerRecord(deployment.task.deployment_id, "0" * 16, local=True))[0]
            flipped = name[:20] + ("A" if name[20] != "A" else "B") + name[21:]
            for body, status in (
                ({"id": name, "answer": "nowhere"}, 400),
                ({"id": name}, 400),
                ({"id": 7, "answer": "lost"}, 400),
                ({"id": "é", "answer": "lost"}, 400),
                ({"id": name, "answer": ["lost"]}, 400),
                ({"id": forged, "answer": "lost"}, 404),
                ({"id": flipped, "answer": "lost"}, 404),
                ({"id": "", "answer": "lost"}, 404),
                ({"feedback": []}, 400),
                ({"feedback": [], "id": name}, 400),
                ({"feedback": [{"id": name, "answer": "lost"}] * 257}, 413),
            ):
                response = await client.post(feedback.PATH, json=body, headers=headers)
                assert response.status == status, body
                assert (await response.json())["error"]["message"]
            session, state.engine = state.engine, None  # feedback needs no model
            batch = {"feedback": [{"id": name, "answer": "lost"}, {"id": forged, "answer": "lost"}]}
            payload = await (await client.post(feedback.PATH, json=batch, headers=headers)).json()
            assert payload["recorded"] == 1 and payload["results"][0] == {"right": True}
            assert payload["results"][1]["error"]["code"] == 404
            state.engine = session

    run(scenario)


def test_the_target_against_a_baseline_is_not_tested_by_feedback_and_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry_dir = place_of(tmp_path, profile(drawn(400, 1)), target_accuracy=None, not_worse_than="api", margin=0.02)
    line = {"answer": "a", "kept": True, "local": True, "right": False}
    comparison = drifting.compare_feedback(
        drifting.routing_policy.read_policy(registry_dir / routing.FOLDER / str(routed(registry_dir).file)),
        [line] * 30,
        {},
    )
    assert (
        comparison.p_value is None
        and "0 of 30 kept answers right" in comparison.message
        and "api" in comparison.message
    )


def test_drift_is_in_the_metrics(tmp_path: Path) -> None:
    registry_dir = place_of(tmp_path, profile([("late", 0.99)] * 50 + [("lost", 0.99)] * 50))

    def drift_samples(text: str) -> set[str]:
        return {line for line in text.splitlines() if line.startswith("insource_drift{")}

    async def scenario() -> None:
        monitor = Monitor()
        async with gateway_client(at(tmp_path, registry_dir), monitor=monitor) as (client, _, state):
            await ask(client, [("lost", 0.5)] * 49)
            assert drift_samples(await (await client.get("/metrics")).text()) == set(), "of so few nothing is said"
            await ask(client, [("lost", 0.5)])
            assert drift_samples(await (await client.get("/metrics")).text()) == {
                f'insource_drift{{model="{TASK_NAME}",of="confidence",version="{TASK_VERSION}"}} 1.0',
                f'insource_drift{{model="{TASK_NAME}",of="labels",version="{TASK_VERSION}"}} 0.5',
            }
            (today,) = monitor.profiles._days
            monitor.profiles._days[TASK_NAME, "2026-01-05"] = monitor.profiles._days.pop(today)
            assert drift_samples(await (await client.get("/metrics")).text()) == set(), "that was before"
            await ask(client, [("lost", 0.5)] * 50)
            assert len(drift_samples(await (await client.get("/metrics")).text())) == 2
            state.tasks = {}
            assert drift_samples(await (await client.get("/metrics")).text()) == set(), (
                "the model is not deployed any more"
            )

    run(scenario)


def test_the_tests_are_scipys_and_seldom_wrong_where_nothing_changed() -> None:
    rng, rejections, n_draws = np.random.default_rng(7), Counter[str](), 200
    for seed in range(n_draws):
        calibration, traffic = profile(drawn(400, seed)), profile(drawn(int(rng.integers(60, 3000)), 1000 + seed))
        values = [list(side.confidences.elements()) for side in (calibration, traffic)]
        test = drift.ks_test(calibration.confidences, traffic.confidences)
        assert test.distance == pytest.approx(ks_2samp(*values, method="asymp").statistic)
        assert test.distance == pytest.approx(drift.ks_statistic(calibration.confidences, traffic.confidences))
        rejections["confidence"] += test.p_value < 0.05
        rejections["labels"] += drift.chi_square_test(calibration.answers, traffic.answers).p_value < 0.05
    # 5% and three standard errors of the simulation.
    assert max(rejections.values()) <= n_draws * (0.05 + 3 * math.sqrt(0.05 * 0.95 / n_draws)), rejections
    assert drift.binomial_p_value(180, 200, 0.95) == pytest.approx(binomtest(180, 200, 0.95, alternative="less").pvalue)
    assert drift.binomial_p_value(0, 0, 0.95) == 1.0


def test_rare_labels_are_tested_together() -> None:
    calibration_counts, traffic_counts = {"a": 300, "b": 90, "c": 6, "d": 4}, {"a": 80, "b": 18, "e": 2}
    result = drift.chi_square_test(calibration_counts, traffic_counts)
    assert result.p_value == pytest.approx(chi2_contingency([[310, 90], [82, 18]], correction=False).pvalue)
    assert drift.chi_square_test({"a": 3}, {"b": 2}).p_value == 1.0, "too few to tell"
    assert drift.chi_square_test({"a": 400}, {"b": 200}).p_value < 1e-9
    with pytest.raises(ValueError, match="empty"):
        drift.chi_square_test({"a": 1}, {})


def test_the_profile_is_of_valid_answers_to_one_calibration_row_of_each_group(tmp_path: Path) -> None:
    base_dataset = make_deployed_task(tmp_path, make_recipe(tmp_path)).task.dataset
    answers = [("lost", 0.9), ("late", 0.8), ("late", 0.8), ("nonsense", 0.7), ("broken", None)]
    groups = ["g1", "g2", "g2", "g3", None]
    system_answers = [
        SystemAnswer(f"r{index}", answer, log_probability=None if confidence is None else math.log(confidence))
        for index, (answer, confidence) in enumerate(answers)
    ]
    rows = [
        {"id": system_answer.id, "group": group, "target": "lost"}
        for system_answer, group in zip(system_answers, groups, strict=True)
    ]
    dataset = replace(base_dataset, calibration=rows)
    result = profiles.build_profile(SystemResponses(LOCAL_SYSTEM, [], system_answers), dataset, Scale(None, "answer"))
    assert result == AnswerProfile(3, Counter({900: 1, 800: 1}), Counter({"lost": 1, "late": 1, "broken": 1}))
    assert profiles.build_profile(SystemResponses(LOCAL_SYSTEM, []), dataset, None) == AnswerProfile()


def test_a_profile_comes_back_from_its_json() -> None:
    original = profile(drawn(50, 1))
    assert profile_from_json(json.loads(json.dumps(original.json()))) == original


def test_a_registry_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    from deploy.answers import answer_ids

    (tmp_path / "registry").write_text("a file", encoding="utf-8")
    with raises_error(StageError, "INS-X002", match="cannot be written"):
        answer_ids.load_answer_ids(tmp_path / "registry" / TASK_NAME)
