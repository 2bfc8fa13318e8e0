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


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]


def drawn(n: int, seed: int, mix: Sequence[float] = MIX, sure: float = 8.0) -> list[tuple[str, float]]:
    """Labels and confidences: the larger `sure`, the surer."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(LABELS, size=n, p=mix)
    return [(str(label), round(float(p), 3)) for label, p in zip(labels, rng.beta(sure, 1, n), strict=True)]


def profile(rows: Sequence[tuple[str, float]]) -> AnswerProfile:
    found = AnswerProfile()
    for label, sure in rows:
        found.add(sure, label)
    return found


def place_of(
    folder: Path, before: AnswerProfile | None, threshold: float | None = 0.9, target: float = 0.95, **more: Any
) -> Path:
    """A registry folder whose current version was deployed with a routing.json."""
    place = folder / "registry" / TASK_NAME
    (place / "versions" / TASK_VERSION).mkdir(parents=True)
    (place / "current").symlink_to(Path("versions") / TASK_VERSION)
    why = None if threshold else "too few rows"
    asked = {"target_accuracy": target} | more
    told = RoutingPolicy(threshold=threshold, confidence=0.95, calibration_rows=400, why_none=why, **asked).json()
    atomic_files.write_json(folder / "routing.json", told | ({"calibration": before.json()} if before else {}))
    name = f"{atomic_files.sha256(folder / 'routing.json')[:16]}.json"
    (place / routing.FOLDER).mkdir()
    (folder / "routing.json").rename(place / routing.FOLDER / name)
    line = {"action": "deploy", "to": TASK_VERSION, "routing": {"file": name, "scale": None, "why_none": why}}
    (place / "history.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return place


def routed(place: Path) -> routing.Routing:
    return routing.load_routing(place, registry.read_history(place), TASK_VERSION)


def at(folder: Path, place: Path, asked: Recipe | None = None) -> Deployment:
    return make_deployed_task(folder, asked or make_recipe(folder), routed(place))


async def ask(client: Any, rows: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Answers to as many inputs, which have these labels and confidences."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), 256):
        inputs = [f"says {label} p={sure:.3f}" for label, sure in rows[start : start + 256]]
        said = await client.post(PATH, json={"inputs": inputs})
        found += (await said.json())["answers"]
    return found


def served(folder: Path, one: Deployment, rows: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """What a gateway with a registry answers, which ends then."""
    found: list[dict[str, Any]] = []

    async def all_of_it() -> None:
        watch = Monitor(folder / "registry")
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            found.extend(await ask(client, rows))
            await watch.close()

    run(all_of_it)
    return found


def test_traffic_like_the_calibration_rows_leaves_the_guarantee_its_ground(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_of(tmp_path, profile(drawn(400, 1)))
    for seed in (2, 3):  # two processes
        served(tmp_path, at(tmp_path, place), drawn(200, seed))
    assert drifting.report_drift(place, TASK_VERSION, routed(place), 7) == 0
    told = capsys.readouterr().out
    assert "400 answers of the last 7 days, beside 400 calibration rows" in told
    assert "holds     confidence" in told and "holds     labels" in told and "nothing speaks against it" in told
    assert "exchangeable" in told


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        (drawn(300, 4, mix=(0.2, 0.3, 0.5)), ["labels"]),
        (drawn(300, 5, sure=4.0), ["confidence"]),
        (drawn(300, 6, mix=(0.1, 0.1, 0.8), sure=2.0), ["confidence", "labels"]),
    ],
)
def test_traffic_that_changed_takes_it_away(
    tmp_path: Path, rows: list[tuple[str, float]], lost: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_of(tmp_path, profile(drawn(400, 1)))
    served(tmp_path, at(tmp_path, place), rows)
    assert drifting.report_drift(place, TASK_VERSION, routed(place), 7) == 3
    told = capsys.readouterr().out
    assert [line.split()[1].rstrip(":") for line in told.splitlines() if line.startswith("LOST")] == lost
    assert f"has lost its ground: {', '.join(lost)}" in told


def test_without_a_threshold_there_is_no_guarantee_to_lose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = place_of(tmp_path, profile(drawn(400, 1)), threshold=None)
    served(tmp_path, at(tmp_path, place), drawn(300, 4, mix=(0.2, 0.3, 0.5)))
    assert drifting.report_drift(place, TASK_VERSION, routed(place), 7) == 0
    told = capsys.readouterr().out
    assert "changed   labels" in told and "LOST" not in told and "lost its ground" not in told
    assert "no guarantee to lose: too few rows; traffic is not like the calibration rows: labels" in told


@pytest.mark.parametrize("mirror", [0, 1])
def test_traffic_of_which_a_part_is_not_looked_at_is_not_tested(
    tmp_path: Path, address: str, provider: Provider, capsys: pytest.CaptureFixture[str], mirror: int
) -> None:
    """Half of the calibration rows and of the inputs hold an address, and those have other labels than the rest."""
    provider.answer = lambda prompt: "broken"
    place = place_of(tmp_path, profile([("lost", 0.99)] * 200 + [("late", 0.99)] * 200))
    one = at(tmp_path, place, make_recipe(tmp_path, baselines=baseline_yaml(address), route=f"{{mirror: {mirror}}}"))
    inputs = [f"{at} mail ann@example.org says lost p=0.99" if at % 2 else f"{at} says late p=0.99" for at in range(60)]

    async def say() -> None:
        watch = Monitor(place.parent)
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            for _ in range(2):
                if mirror:
                    assert (await client.post(PATH, json={"inputs": inputs})).status == 200
                    await watch.mirror.settled()
                    continue
                for text in inputs:
                    body = {"model": TASK_NAME, "messages": [{"role": "user", "content": text}]}
                    assert (await client.post("/v1/chat/completions", json=body)).status == 200
            await watch.close()

    run(say)
    assert drifting.report_drift(place, TASK_VERSION, routed(place), 7) == 0
    told = capsys.readouterr().out
    assert "untested  traffic: 50.0% of the inputs stay here and their answers are not looked at" in told
    assert "too little is known" in told


def test_the_command_says_it_with_its_exit_code(tmp_path: Path) -> None:
    place = place_of(tmp_path, profile(drawn(400, 1)))
    one = at(tmp_path, place)
    words = [str(tmp_path / f"{TASK_NAME}.yaml"), "--hardware", "cpu", "--registry", str(place.parent)]

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        asked = [sys.executable, "-m", "deploy.drift", *words, *more]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    none = command()
    assert none.returncode == 0 and "too little is known" in none.stdout
    served(tmp_path, one, drawn(300, 4, mix=(0.2, 0.3, 0.5)))
    changed = command("--days", "1")
    assert changed.returncode == 3 and "LOST      labels" in changed.stdout, changed.stderr
    for days in ("0", "²", "٣"):  # digits of other scripts too
        wrong = command("--days", days)
        assert wrong.returncode == 2 and "allowed: 1 to 3660" in wrong.stderr, wrong.stderr


def test_a_deployment_without_a_profile_says_what_to_do(tmp_path: Path) -> None:
    place = place_of(tmp_path, None)
    assert routed(place).profile is None and routed(place).threshold == 0.9
    make_recipe(tmp_path)
    words = [str(tmp_path / f"{TASK_NAME}.yaml"), "--hardware", "cpu", "--registry", str(place.parent)]
    asked = [sys.executable, "-m", "deploy.drift", *words]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 1 and "make compare" in said.stderr and "make deploy" in said.stderr


def test_what_was_observed_is_aggregates_and_of_other_deployments_nothing_counts(tmp_path: Path) -> None:
    place = place_of(tmp_path, profile(drawn(400, 1)))
    one = at(tmp_path, place)
    served(tmp_path, one, [("lost", 0.95)] * 60)
    (path,) = (place / traffic_profiles.FOLDER).glob("*.json")
    text = path.read_text(encoding="utf-8")
    assert "says" not in text and len(text) < 500
    seen = traffic_profiles.read_profile(place, one.task.deployment, "2000-01-01")
    assert seen.profile == AnswerProfile(60, Counter({950: 60}), Counter({"lost": 60}))
    assert seen.reasons == {"local/no_api_model": 60}
    assert traffic_profiles.read_profile(place, "0" * 16, "2000-01-01").profile.rows == 0
    assert traffic_profiles.read_profile(place, one.task.deployment, "2999-01-01").profile.rows == 0


def test_second_answers_are_no_part_of_the_sample_as_calibration_rows_have_none(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path))

    async def say() -> None:
        watch = Monitor()
        async with gateway_client(one, monitor=watch) as (client, engine, _made):
            for text in ("says lost", "late cut"):
                said = await client.post(PATH, json={"input": text})
                assert said.status == 200
            assert len(engine.asked) == 3
            seen = watch.observed.today(one.task)
            assert seen.profile.answers == {"lost": 1} and seen.reasons.total() == 2

    run(say)


def test_feedback_on_answers_that_were_kept_is_tested_against_what_was_promised(
    tmp_path: Path,
    address: str,
    provider: Provider,
    capsys: pytest.CaptureFixture[str],
) -> None:
    provider.answer = lambda prompt: "broken"
    place = place_of(tmp_path, profile(drawn(400, 1)))
    one = at(tmp_path, place, make_recipe(tmp_path, baselines=baseline_yaml(address)))
    answers: list[dict[str, Any]] = []

    async def say() -> None:
        watch = Monitor(tmp_path / "registry")
        async with gateway_client(one, monitor=watch) as (client, _, _made):
            answers.extend(await ask(client, [("lost", 0.95)] * 40 + [("lost", 0.5)] * 5))
            told = [{"id": answer["id"], "answer": "lost" if at < 30 else "late"} for at, answer in enumerate(answers)]
            said = await client.post(feedback.PATH, json={"feedback": told})
            assert said.status == 200
            results = (await said.json())["results"]
            assert [result["right"] for result in results] == [True] * 30 + [False] * 15
            text = await (await client.get("/metrics")).text()
            assert f'insource_feedback_total{{by="local",model="{TASK_NAME}",right="false"}} 10.0' in text
            assert f'insource_feedback_total{{by="api",model="{TASK_NAME}",right="false"}} 5.0' in text

    run(say)
    assert drifting.report_drift(place, TASK_VERSION, routed(place), 7) == 3
    told = capsys.readouterr().out
    assert "LOST      feedback: 30 of 40 kept answers right, 75.0%" in told
    assert "0 of 5 answers of the API model right" in told

    async def correct() -> None:
        async with gateway_client(one) as (client, _, _made):  # after a restart
            for answer in answers[:40]:
                said = await client.post(feedback.PATH, json={"id": answer["id"], "answer": " Lost "})
                assert await said.json() == {"recorded": 1, "right": True}

    run(correct)
    assert drifting.report_drift(place, TASK_VERSION, routed(place), 7) == 0
    assert "holds     feedback: 40 of 40" in capsys.readouterr().out
    written = next((place / feedback_record.FOLDER).glob("*.jsonl")).read_text(encoding="utf-8")
    assert "lost" not in written and "late" not in written


def test_feedback_on_a_record_counts_it_as_the_comparison_does_and_by_header_on_a_chat(
    tmp_path: Path, address: str
) -> None:
    asked = make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}", baselines=baseline_yaml(address))
    one = make_deployed_task(tmp_path, asked)

    async def say() -> None:
        async with gateway_client(one) as (client, _, _made):
            body = {
                "model": TASK_NAME,
                "messages": [{"role": "user", "content": 'says {"number":"17","day":null} p=0.95'}],
            }
            said = await client.post("/v1/chat/completions", json=body)
            name = said.headers["X-Insource-Answer-Id"]
            assert (await said.json())["insource"]["id"] == name
            for given, right in (
                ({"day": None, "number": "17"}, True),
                ({"number": "17"}, True),
                ('{"number": "17", "day": null}', True),
                ({"number": "18"}, False),
            ):
                said = await client.post(feedback.PATH, json={"id": name, "answer": given})
                assert (await said.json())["right"] is right, given
            said = await client.post(feedback.PATH, json={"id": name, "answer": {"price": 3}})
            assert said.status == 400

    run(say)


def test_wrong_feedback_is_told_and_one_that_is_wrong_fails_alone(tmp_path: Path) -> None:
    one = make_deployed_task(tmp_path, make_recipe(tmp_path))
    key = {"Authorization": "Bearer secret"}

    async def say() -> None:
        async with gateway_client(one, "secret") as (client, _, made):
            answered = await (await client.post(PATH, json={"input": "says lost"}, headers=key)).json()
            name = answered["id"]
            assert (await client.post(feedback.PATH, json={"id": name, "answer": "lost"})).status == 401
            forged = AnswerIds().seal(AnswerRecord(one.task.deployment, "0" * 16, local=True))[0]
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
                said = await client.post(feedback.PATH, json=body, headers=key)
                assert said.status == status, body
                assert (await said.json())["error"]["message"]
            session, made.engine = made.engine, None  # feedback needs no model
            two = {"feedback": [{"id": name, "answer": "lost"}, {"id": forged, "answer": "lost"}]}
            told = await (await client.post(feedback.PATH, json=two, headers=key)).json()
            assert told["recorded"] == 1 and told["results"][0] == {"right": True}
            assert told["results"][1]["error"]["code"] == 404
            made.engine = session

    run(say)


def test_the_target_against_a_baseline_is_not_tested_by_feedback_and_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_of(tmp_path, profile(drawn(400, 1)), target_accuracy=None, not_worse_than="api", margin=0.02)
    line = {"answer": "a", "kept": True, "local": True, "right": False}
    found = drifting.compare_feedback(
        drifting.routing_policy.read(place / routing.FOLDER / str(routed(place).file)), [line] * 30, {}
    )
    assert found.p_value is None and "0 of 30 kept answers right" in found.told and "api" in found.told


def test_drift_is_in_the_metrics(tmp_path: Path) -> None:
    place = place_of(tmp_path, profile([("late", 0.99)] * 50 + [("lost", 0.99)] * 50))

    def shown(text: str) -> set[str]:
        return {line for line in text.splitlines() if line.startswith("insource_drift{")}

    async def say() -> None:
        watch = Monitor()
        async with gateway_client(at(tmp_path, place), monitor=watch) as (client, _, made):
            await ask(client, [("lost", 0.5)] * 49)
            assert shown(await (await client.get("/metrics")).text()) == set(), "of so few nothing is said"
            await ask(client, [("lost", 0.5)])
            assert shown(await (await client.get("/metrics")).text()) == {
                f'insource_drift{{model="{TASK_NAME}",of="confidence",version="{TASK_VERSION}"}} 1.0',
                f'insource_drift{{model="{TASK_NAME}",of="labels",version="{TASK_VERSION}"}} 0.5',
            }
            (today,) = watch.observed._days
            watch.observed._days[TASK_NAME, "2026-01-05"] = watch.observed._days.pop(today)
            assert shown(await (await client.get("/metrics")).text()) == set(), "that was before"
            await ask(client, [("lost", 0.5)] * 50)
            assert len(shown(await (await client.get("/metrics")).text())) == 2
            made.tasks = {}
            assert shown(await (await client.get("/metrics")).text()) == set(), "the model is not deployed any more"

    run(say)


def test_the_tests_are_scipys_and_seldom_wrong_where_nothing_changed() -> None:
    rng, wrong, draws = np.random.default_rng(7), Counter[str](), 200
    for seed in range(draws):
        before, now = profile(drawn(400, seed)), profile(drawn(int(rng.integers(60, 3000)), 1000 + seed))
        values = [list(one.confidences.elements()) for one in (before, now)]
        test = drift.ks_test(before.confidences, now.confidences)
        assert test.distance == pytest.approx(ks_2samp(*values, method="asymp").statistic)
        assert test.distance == pytest.approx(drift.ks_statistic(before.confidences, now.confidences))
        wrong["confidence"] += test.p_value < 0.05
        wrong["labels"] += drift.chi_square_test(before.answers, now.answers).p_value < 0.05
    # 5% and three standard errors of the simulation.
    assert max(wrong.values()) <= draws * (0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)), wrong
    assert drift.binomial_p_value(180, 200, 0.95) == pytest.approx(binomtest(180, 200, 0.95, alternative="less").pvalue)
    assert drift.binomial_p_value(0, 0, 0.95) == 1.0


def test_rare_labels_are_tested_together() -> None:
    before, now = {"a": 300, "b": 90, "c": 6, "d": 4}, {"a": 80, "b": 18, "e": 2}
    found = drift.chi_square_test(before, now)
    assert found.p_value == pytest.approx(chi2_contingency([[310, 90], [82, 18]], correction=False).pvalue)
    assert drift.chi_square_test({"a": 3}, {"b": 2}).p_value == 1.0, "too few to tell"
    assert drift.chi_square_test({"a": 400}, {"b": 200}).p_value < 1e-9
    with pytest.raises(ValueError, match="empty"):
        drift.chi_square_test({"a": 1}, {})


def test_the_profile_is_of_valid_answers_to_one_calibration_row_of_each_group(tmp_path: Path) -> None:
    made = make_deployed_task(tmp_path, make_recipe(tmp_path)).task.material
    answers = [("lost", 0.9), ("late", 0.8), ("late", 0.8), ("nonsense", 0.7), ("broken", None)]
    groups = ["g1", "g2", "g2", "g3", None]
    told = [
        SystemAnswer(f"r{at}", said, log_probability=None if sure is None else math.log(sure))
        for at, (said, sure) in enumerate(answers)
    ]
    rows = [{"id": one.id, "group": group, "target": "lost"} for one, group in zip(told, groups, strict=True)]
    material = replace(made, calibration=rows)
    found = profiles.build_profile(SystemResponses(LOCAL_SYSTEM, [], told), material, Scale(None, "answer"))
    assert found == AnswerProfile(3, Counter({900: 1, 800: 1}), Counter({"lost": 1, "late": 1, "broken": 1}))
    assert profiles.build_profile(SystemResponses(LOCAL_SYSTEM, []), material, None) == AnswerProfile()


def test_a_profile_comes_back_from_its_json() -> None:
    one = profile(drawn(50, 1))
    assert profile_from_json(json.loads(json.dumps(one.json()))) == one


def test_a_registry_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    from deploy.answers import answer_ids

    (tmp_path / "registry").write_text("a file", encoding="utf-8")
    with pytest.raises(StageError, match="cannot be written"):
        answer_ids.load_answer_ids(tmp_path / "registry" / TASK_NAME)
