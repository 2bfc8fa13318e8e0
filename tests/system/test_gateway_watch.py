"""A gateway process: what it tells Prometheus, takes as feedback and leaves for `make drift` when it ends."""

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


def profiled(place: GatewaySetup, before: dict[str, int]) -> dict[str, object]:
    """What a deployment records of a comparison whose calibration rows were answered so."""
    recorded = told(place, 0.9)
    path = place.registry / "routing" / recorded["file"]
    rows = sum(before.values())
    profile = {"rows": rows, "confidences": {"905": rows}, "answers": before}
    atomic_files.write_json(path.with_name("aside"), atomic_files.read_json(path) | {"calibration": profile})
    path.unlink()
    name = f"{atomic_files.sha256(path.with_name('aside'))[:16]}.json"
    path.with_name("aside").rename(path.with_name(name))
    return recorded | {"file": name}


def drift(place: GatewaySetup) -> subprocess.CompletedProcess[str]:
    words = [NAME, "--hardware", "cpu", "--registry", str(place.registry.parent)]
    asked = [sys.executable, "-m", "deploy.drift", *words]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_what_a_gateway_saw_is_there_after_its_end_and_make_drift_judges_it(tmp_path: Path) -> None:
    place = GatewaySetup(tmp_path)
    version = place.deploy("delivery_delay", task=task())
    run = Run(place.folder / "runs" / NAME / "run-delivery_delay")
    registry.promote(place.registry, run, [], profiled(place, {"delivery_delay": 400}))
    with place.gateway(LOOPBACK_SETTING, "serve.record.share=1.0") as gateway:
        gateway.says("ready     ")
        assert gateway.ask(path="/healthz")[0] == gateway.ask(path="/readyz")[0] == 200
        status, said, _ = gateway.ask(ASKED, f"/v1/tasks/{NAME}")
        assert status == 200
        name = said["answers"][0]["id"]
        status, answered, _ = gateway.ask({"id": name, "answer": "delivery_delay"}, "/v1/feedback")
        assert (status, answered) == (200, {"recorded": 1, "right": True})
        request = urllib.request.Request(f"http://127.0.0.1:{gateway.port}/metrics")
        with NO_PROXY_OPENER.open(request, timeout=60) as answer:
            text = answer.read().decode()
        assert f'insource_labels_total{{label="delivery_delay",model="{NAME}"}} 60.0' in text
        assert f'insource_deployed{{model="{NAME}",version="{version}"}} 1.0' in text
        assert "customer" not in text + gateway.text()
        assert "customer" not in (place.registry.parent / "access.jsonl").read_text(encoding="utf-8")
    rows = list(atomic_files.read_jsonl(next((place.registry / "traffic").glob("*.jsonl"))))
    assert len(rows) == 60 and {row["message"] for row in rows} == {"a text of a customer"}
    for path in [place.registry / "answers.key", *(place.registry / "traffic").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    holds = drift(place)
    assert holds.returncode == 0 and "60 answers of the last 7 days, beside 400 calibration rows" in holds.stdout

    registry.promote(place.registry, run, [], profiled(place, {"refund_status": 400}))
    none = drift(place)
    assert none.returncode == 0 and "too little is known" in none.stdout, (
        "another routing.json, of which nothing is seen"
    )
    with place.gateway(LOOPBACK_SETTING) as gateway:
        gateway.says("ready     ")
        assert gateway.ask(ASKED, f"/v1/tasks/{NAME}")[0] == 200
        assert gateway.ask({"id": name, "answer": "delivery_delay"}, "/v1/feedback")[0] == 200, "of before"
    lost = drift(place)
    assert lost.returncode == 3 and "LOST      labels" in lost.stdout, lost.stdout + lost.stderr
