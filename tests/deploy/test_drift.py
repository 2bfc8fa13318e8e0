"""Feedback, and whether the guarantee still has ground: answers of a door held against calibration rows."""

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, chi2_contingency, ks_2samp

from compare.decision import answer_profile as profiles
from compare.decision.answer_profile import AnswerProfile, profile_from_json
from compare.records import Scale, SystemAnswer, SystemResponses
from deploy import drift as drifting
from deploy.answers.outcome import Deployment
from deploy.answers.task import LOCAL_SYSTEM
from deploy.monitoring import traffic_profiles
from deploy.monitoring.monitor import Monitor
from insource.config.errors import StageError
from insource.stats import drift
from tests.conftest import ROOT
from tests.helpers.errors import raises_error
from tests.helpers.gateway.drift_traffic import (
    PATH,
    draw_answers,
    load_routing,
    make_deployment,
    make_registry_dir,
    profile,
    run,
    send_inputs,
)
from tests.helpers.gateway.task_gateway import (
    TASK_NAME,
    TASK_VERSION,
    baseline_yaml,
    gateway_client,
    make_deployed_task,
    make_recipe,
)
from tests.helpers.provider.faulty_provider import Provider


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")


def served(folder: Path, deployment: Deployment, rows: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """What a gateway with a registry answers, which ends then."""
    answers: list[dict[str, Any]] = []

    async def scenario() -> None:
        monitor = Monitor(folder / "registry")
        async with gateway_client(deployment, monitor=monitor) as (client, _, _state):
            answers.extend(await send_inputs(client, rows))
            await monitor.close()

    run(scenario)
    return answers


def test_traffic_like_the_calibration_rows_leaves_the_guarantee_its_ground(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)))
    for seed in (2, 3):  # two processes
        served(tmp_path, make_deployment(tmp_path, registry_dir), draw_answers(200, seed))
    assert drifting.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "400 answers of the last 7 days, beside 400 calibration rows" in stdout
    assert "holds     confidence" in stdout and "holds     labels" in stdout and "nothing speaks against it" in stdout
    assert "exchangeable" in stdout


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (draw_answers(300, 4, mix=(0.2, 0.3, 0.5)), ["labels"]),
        (draw_answers(300, 5, sharpness=4.0), ["confidence"]),
        (draw_answers(300, 6, mix=(0.1, 0.1, 0.8), sharpness=2.0), ["confidence", "labels"]),
    ],
)
def test_traffic_that_changed_takes_it_away(
    tmp_path: Path, rows: list[tuple[str, float]], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)))
    served(tmp_path, make_deployment(tmp_path, registry_dir), rows)
    assert drifting.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 3
    stdout = capsys.readouterr().out
    assert [line.split()[1].rstrip(":") for line in stdout.splitlines() if line.startswith("LOST")] == expected
    assert f"has lost its ground: {', '.join(expected)}" in stdout


def test_without_a_threshold_there_is_no_guarantee_to_lose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)), threshold=None)
    served(tmp_path, make_deployment(tmp_path, registry_dir), draw_answers(300, 4, mix=(0.2, 0.3, 0.5)))
    assert drifting.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "changed   labels" in stdout and "LOST" not in stdout and "lost its ground" not in stdout
    assert "no guarantee to lose: too few rows; traffic is not like the calibration rows: labels" in stdout


@pytest.mark.parametrize("mirror", [0, 1])
def test_traffic_of_which_a_part_is_not_looked_at_is_not_tested(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str], mirror: int
) -> None:
    """Half of the calibration rows and of the inputs hold an address, and those have other labels than the rest."""
    provider.answer = lambda prompt: "broken"
    registry_dir = make_registry_dir(tmp_path, profile([("lost", 0.99)] * 200 + [("late", 0.99)] * 200))
    deployment = make_deployment(
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
                    body = {"model": TASK_NAME, "messages": [{"role": "user", "content": text}], "stream": True}
                    response = await client.post("/v1/chat/completions", json=body)
                    assert response.status == 200 and await response.read()
            await monitor.close()

    run(scenario)
    assert drifting.report_drift(registry_dir, TASK_VERSION, load_routing(registry_dir), 7) == 0
    stdout = capsys.readouterr().out
    assert "untested  traffic: 50.0% of the inputs stay here and their answers are not looked at" in stdout
    assert "too little is known" in stdout


def test_the_command_says_it_with_its_exit_code(tmp_path: Path) -> None:
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)))
    deployment = make_deployment(tmp_path, registry_dir)
    args = [str(tmp_path / f"{TASK_NAME}.yaml"), "--hardware", "cpu", "--registry", str(registry_dir.parent)]

    def command(*extra: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "deploy.drift", *args, *extra]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    initial = command()
    assert initial.returncode == 0 and "too little is known" in initial.stdout
    served(tmp_path, deployment, draw_answers(300, 4, mix=(0.2, 0.3, 0.5)))
    changed = command("--days", "1")
    assert changed.returncode == 3 and "LOST      labels" in changed.stdout, changed.stderr
    for days in ("0", "²", "٣"):  # digits of other scripts too
        wrong = command("--days", days)
        assert wrong.returncode == 2 and "allowed: 1 to 3660" in wrong.stderr, wrong.stderr


def test_a_deployment_without_a_profile_says_what_to_do(tmp_path: Path) -> None:
    registry_dir = make_registry_dir(tmp_path, None)
    assert load_routing(registry_dir).profile is None and load_routing(registry_dir).threshold == 0.9
    make_recipe(tmp_path)
    args = [str(tmp_path / f"{TASK_NAME}.yaml"), "--hardware", "cpu", "--registry", str(registry_dir.parent)]
    argv = [sys.executable, "-m", "deploy.drift", *args]
    completed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 1 and "make compare" in completed.stderr and "make deploy" in completed.stderr


def test_what_was_observed_is_aggregates_and_of_other_deployments_nothing_counts(tmp_path: Path) -> None:
    registry_dir = make_registry_dir(tmp_path, profile(draw_answers(400, 1)))
    deployment = make_deployment(tmp_path, registry_dir)
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


def test_drift_is_in_the_metrics(tmp_path: Path) -> None:
    registry_dir = make_registry_dir(tmp_path, profile([("late", 0.99)] * 50 + [("lost", 0.99)] * 50))

    def drift_samples(text: str) -> set[str]:
        return {line for line in text.splitlines() if line.startswith("insource_drift{")}

    async def scenario() -> None:
        monitor = Monitor()
        async with gateway_client(make_deployment(tmp_path, registry_dir), monitor=monitor) as (client, _, state):
            await send_inputs(client, [("lost", 0.5)] * 49)
            assert drift_samples(await (await client.get("/metrics")).text()) == set(), "of so few nothing is said"
            await send_inputs(client, [("lost", 0.5)])
            assert drift_samples(await (await client.get("/metrics")).text()) == {
                f'insource_drift{{model="{TASK_NAME}",of="confidence",version="{TASK_VERSION}"}} 1.0',
                f'insource_drift{{model="{TASK_NAME}",of="labels",version="{TASK_VERSION}"}} 0.5',
            }
            (today,) = monitor.profiles._days
            monitor.profiles._days[TASK_NAME, "2026-01-05"] = monitor.profiles._days.pop(today)
            assert drift_samples(await (await client.get("/metrics")).text()) == set(), "that was before"
            await send_inputs(client, [("lost", 0.5)] * 50)
            assert len(drift_samples(await (await client.get("/metrics")).text())) == 2
            state.tasks = {}
            assert drift_samples(await (await client.get("/metrics")).text()) == set(), (
                "the model is not deployed any more"
            )

    run(scenario)


def test_the_tests_are_scipys_and_seldom_wrong_where_nothing_changed() -> None:
    rng, rejections, n_draws = np.random.default_rng(7), Counter[str](), 200
    for seed in range(n_draws):
        calibration, traffic = (
            profile(draw_answers(400, seed)),
            profile(draw_answers(int(rng.integers(60, 3000)), 1000 + seed)),
        )
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
    original = profile(draw_answers(50, 1))
    assert profile_from_json(json.loads(json.dumps(original.json()))) == original


def test_a_registry_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    from deploy.answers import answer_ids

    (tmp_path / "registry").write_text("a file", encoding="utf-8")
    with raises_error(StageError, "INS-X002", match="cannot be written"):
        answer_ids.load_answer_ids(tmp_path / "registry" / TASK_NAME)
