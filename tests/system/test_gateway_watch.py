"""A gateway process: what it tells Prometheus, takes as feedback and leaves for `make drift` when it ends."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from deploy import registry
from insource.system import atomic_files
from insource.tracking.run import Run
from tests.conftest import ROOT
from tests.helpers.gateway.gateway_process import LOOPBACK_SETTING, NAME, NO_PROXY_OPENER, GatewaySetup
from tests.system.test_gateway_routing import task, told

ASKED = {"inputs": ["a text of a customer"] * 60}


def profiled(gateway_setup: GatewaySetup, label_counts: dict[str, int]) -> dict[str, object]:
    """What a deployment records of a comparison whose calibration rows were answered so."""
    recorded = told(gateway_setup, 0.9)
    path = gateway_setup.registry / "routing" / recorded["file"]
    rows = sum(label_counts.values())
    profile = {"rows": rows, "confidences": {"905": rows}, "answers": label_counts}
    atomic_files.write_json(path.with_name("aside"), atomic_files.read_json(path) | {"calibration": profile})
    path.unlink()
    name = f"{atomic_files.sha256(path.with_name('aside'))[:16]}.json"
    path.with_name("aside").rename(path.with_name(name))
    return recorded | {"file": name}


def drift(gateway_setup: GatewaySetup) -> subprocess.CompletedProcess[str]:
    args = [NAME, "--hardware", "cpu", "--registry", str(gateway_setup.registry.parent)]
    argv = [sys.executable, "-m", "deploy.drift", *args]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_what_a_gateway_saw_is_there_after_its_end_and_make_drift_judges_it(tmp_path: Path) -> None:
    gateway_setup = GatewaySetup(tmp_path)
    version = gateway_setup.deploy("delivery_delay", prompt_fields=task())
    run = Run(gateway_setup.folder / "runs" / NAME / "run-delivery_delay")
    registry.promote(gateway_setup.registry, run, [], profiled(gateway_setup, {"delivery_delay": 400}))
    with gateway_setup.gateway(LOOPBACK_SETTING, "serve.record.share=1.0") as gateway:
        gateway.wait_for_log("ready     ")
        assert gateway.request(path="/healthz")[0] == gateway.request(path="/readyz")[0] == 200
        status, payload, _ = gateway.request(ASKED, f"/v1/tasks/{NAME}")
        assert status == 200
        name = payload["answers"][0]["id"]
        status, feedback_result, _ = gateway.request({"id": name, "answer": "delivery_delay"}, "/v1/feedback")
        assert (status, feedback_result) == (200, {"recorded": 1, "right": True})
        request = urllib.request.Request(f"http://127.0.0.1:{gateway.port}/metrics")
        with NO_PROXY_OPENER.open(request, timeout=60) as response:
            text = response.read().decode()
        assert f'insource_labels_total{{label="delivery_delay",model="{NAME}"}} 60.0' in text
        assert f'insource_deployed{{model="{NAME}",version="{version}"}} 1.0' in text
        assert "customer" not in text + gateway.read_log()
        assert "customer" not in (gateway_setup.registry.parent / "access.jsonl").read_text(encoding="utf-8")
    (path,) = (gateway_setup.registry / "traffic").glob("*.jsonl")
    # Feedback on a row that is on disk already blanks it and appends the corrected one.
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(rows) == 60 and {row["message"] for row in rows} == {"a text of a customer"}
    for path in [gateway_setup.registry / "answers.key", *(gateway_setup.registry / "traffic").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    unchanged = drift(gateway_setup)
    assert (
        unchanged.returncode == 0 and "60 answers of the last 7 days, beside 400 calibration rows" in unchanged.stdout
    )

    registry.promote(gateway_setup.registry, run, [], profiled(gateway_setup, {"refund_status": 400}))
    other_policy = drift(gateway_setup)
    assert other_policy.returncode == 0 and "too little is known" in other_policy.stdout, (
        "another routing.json, of which nothing is seen"
    )
    with gateway_setup.gateway(LOOPBACK_SETTING) as gateway:
        gateway.wait_for_log("ready     ")
        assert gateway.request(ASKED, f"/v1/tasks/{NAME}")[0] == 200
        assert gateway.request({"id": name, "answer": "delivery_delay"}, "/v1/feedback")[0] == 200, "of before"
    drifted = drift(gateway_setup)
    assert drifted.returncode == 3 and "LOST      labels" in drifted.stdout, drifted.stdout + drifted.stderr
