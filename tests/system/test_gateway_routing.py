"""A version's routing comes with its deployment, and a new one with the next: no restart."""

import json
from pathlib import Path
from typing import Any

import pytest

from compare.decision.routing_policy import RoutingPolicy
from deploy import registry, routing
from insource.config.load import load
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tracking.manifest import StageRecord
from insource.tracking.run import Run, to_yaml
from tests.helpers.gateway.gateway_process import LOOPBACK_SETTING, NAME, GatewaySetup
from tests.helpers.provider.faulty_provider import Provider
from tests.helpers.run_manifest import write_manifest

LABELS = {"delivery_delay": "", "refund_status": ""}


def task() -> dict[str, Any]:
    recipe = load(NAME, [], "cpu").recipe
    module = TASKS["classification"]
    spec = module.make_spec(recipe.task, LABELS)
    payload = {"kind": "classification", **spec.__dict__}
    constraint = {"grammar": module.grammar(spec), "output_schema": module.output_schema(spec)}
    return {"task": payload, **constraint, "max_answer_tokens": 16}


def policy(threshold: float | None) -> dict[str, Any]:
    """A routing.json."""
    reason = None if threshold else "too few rows"
    return RoutingPolicy(
        threshold=threshold, target_accuracy=0.95, confidence=0.95, calibration_rows=500, no_threshold_reason=reason
    ).json()


def told(gateway_setup: GatewaySetup, threshold: float | None) -> dict[str, Any]:
    """What a deployment records."""
    folder = gateway_setup.registry / routing.FOLDER
    folder.mkdir(exist_ok=True)
    atomic_files.write_json(folder / "new", policy(threshold))
    name = f"{atomic_files.sha256(folder / 'new')[:16]}.json"
    (folder / "new").rename(folder / name)
    return {"file": name, "scale": {"of": "answer", "slope": 1.0, "intercept": 0.0}, "why_none": None}


def test_a_threshold_comes_with_a_deployment_of_the_same_version(
    tmp_path: Path, provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.answer = lambda prompt: "refund_status"
    gateway_setup = GatewaySetup(tmp_path)
    version = gateway_setup.deploy("delivery_delay", prompt_fields=task())
    run = Run(gateway_setup.folder / "runs" / NAME / "run-delivery_delay")
    baseline = f'[{{provider: openai, model: gpt-6-luna, base_url: "{address}/v1", name: api, api_key_env: API_KEY}}]'
    args = [LOOPBACK_SETTING, f"compare.baselines={baseline}", "compare.primary=null"]
    request_body = {"input": "a text of a customer"}
    with gateway_setup.gateway(*args, API_KEY="secret") as gateway:
        assert "deployed without a comparison" in gateway.wait_for_log("ready     ")
        status, payload, _ = gateway.request(request_body, f"/v1/tasks/{NAME}")
        assert status == 200 and (payload["answer"], payload["reason"]) == ("delivery_delay", "no_threshold")

        registry.promote(gateway_setup.registry, run, [], told(gateway_setup, 0.99))
        gateway.wait_for_log(f"routing   {NAME}: below a confidence of 0.9900 api answers")
        _, payload, headers = gateway.request(request_body, f"/v1/tasks/{NAME}")
        assert (payload["answer"], payload["answered_by"], payload["reason"]) == (
            "refund_status",
            "api",
            "below_threshold",
        )
        assert payload["local_confidence"] == pytest.approx(0.9048, abs=1e-3)
        assert headers["X-Insource-Version"] == version

        registry.promote(gateway_setup.registry, run, [], told(gateway_setup, None))
        gateway.wait_for_log(f"routing   {NAME}: every request stays local: too few rows")
        assert gateway.request(request_body, f"/v1/tasks/{NAME}")[1]["answered_by"] == "local"
        access = (gateway_setup.registry.parent / "access.jsonl").read_text(encoding="utf-8")
        assert "customer" not in access + gateway.read_log() and '"path": "/v1/tasks"' in access


def test_a_routing_file_that_was_changed_is_not_followed(tmp_path: Path) -> None:
    gateway_setup = GatewaySetup(tmp_path)
    version = gateway_setup.deploy("delivery_delay", prompt_fields=task())
    recorded = told(gateway_setup, 0.5)
    registry.promote(
        gateway_setup.registry, Run(gateway_setup.folder / "runs" / NAME / "run-delivery_delay"), [], recorded
    )
    history = registry.read_history(gateway_setup.registry)
    assert routing.load_routing(gateway_setup.registry, history, version).threshold == 0.5
    (gateway_setup.registry / routing.FOLDER / recorded["file"]).write_text('{"threshold": 0.0}', encoding="utf-8")
    with pytest.raises(Exception, match="was changed after the deployment"):
        routing.load_routing(gateway_setup.registry, history, version)


@pytest.fixture
def compared_run(tmp_path: Path) -> Run:
    """A run that was trained and compared, as far as a deployment's routing looks at it."""
    run = Run(tmp_path / "runs" / NAME / "one")
    rows = [{"id": f"r{index}", "input": {"text": f"text {index}"}, "target": "delivery_delay"} for index in range(40)]
    answers = ["refund_status" if index % 4 == 0 else "delivery_delay" for index in range(40)]
    lines = [
        {"id": row["id"], "prompt_ids": [1], "answer": answer, "log_probability": -0.1 * (index % 4)}
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    (run.folder / "adapter").mkdir(parents=True)
    (run.folder / "data").mkdir()
    atomic_files.write_json(run.folder / "adapter" / "prompt.json", task())
    for path, entries in (("reference.jsonl", lines), ("data/validation.jsonl", rows)):
        (run.folder / path).write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    atomic_files.write_checksums(run.folder / "adapter")
    atomic_files.write_json(run.folder / "routing.json", policy(0.9))
    atomic_files.write_json(run.folder / "scores.json", {"systems": {"tuned": {"form": "merged"}}})
    inputs = {f"adapter/{atomic_files.CHECKSUMS}": atomic_files.sha256(run.folder / "adapter" / atomic_files.CHECKSUMS)}
    write_manifest(run.folder, {"compare": StageRecord(state="done", inputs=inputs)})
    (run.folder / "recipe.yaml").write_text(to_yaml(load(NAME, [], "cpu").recipe), encoding="utf-8")
    return run


def test_a_deployment_records_scale_and_threshold_of_its_comparison(compared_run: Run, tmp_path: Path) -> None:
    registry_dir = tmp_path / "registry" / NAME
    recorded = routing.record_routing(registry_dir, compared_run)
    assert recorded["why_none"] is None and recorded["scale"]["of"] == "answer" and recorded["scale"]["slope"]
    loaded = routing.load_routing(registry_dir, [{"to": "v1", "routing": recorded}], "v1")
    assert loaded.threshold == 0.9 and loaded.scale is not None and loaded.scale.platt is not None
    assert loaded.scale.platt.slope == recorded["scale"]["slope"]
    assert routing.load_routing(registry_dir, [{"to": "v0"}], "v1") == routing.Routing()
    route = load(NAME, [], "cpu").recipe.route
    assert loaded.matches_target(route) and not loaded.matches_target(
        route.model_copy(update={"target_accuracy": 0.99})
    )


@pytest.mark.parametrize("case", ["none", "of another adapter", "of another form", "of before", "no threshold"])
def test_a_comparison_that_tells_nothing_of_the_adapter_keeps_everything_local(
    compared_run: Run, tmp_path: Path, case: str
) -> None:
    registry_dir, path = tmp_path / "registry" / NAME, compared_run.folder / "routing.json"
    if case == "none":
        path.unlink()
    elif case == "of another adapter":
        stage = StageRecord(state="done", inputs={f"adapter/{atomic_files.CHECKSUMS}": "0" * 64})
        write_manifest(compared_run.folder, {"compare": stage})
    elif case == "of another form":
        atomic_files.write_json(compared_run.folder / "scores.json", {"systems": {"tuned": {"form": "quantized/int8"}}})
    elif case == "of before":
        atomic_files.write_json(path, {"threshold": 0.5, "why_none": None})
    else:
        atomic_files.write_json(path, policy(None))
    recorded = routing.record_routing(registry_dir, compared_run)
    assert recorded["why_none"] and recorded["scale"]
    loaded = routing.load_routing(registry_dir, [{"to": "v1", "routing": recorded}], "v1")
    assert loaded.threshold is None and loaded.no_threshold_reason and loaded.scale is not None
