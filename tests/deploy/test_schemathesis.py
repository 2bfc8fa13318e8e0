"""schemathesis against GET /openapi.json: no 5xx, no status and no body that is not described.

It runs in its own environment, which CI installs (`.ci/run`, requirements/schemathesis.txt). Without it the test is
skipped.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.gateway.served_gateway import make_router, serve_gateway
from tests.helpers.gateway.task_gateway import EXTRACTOR_TASK, make_deployed_task, make_recipe

PROGRAM = ROOT / ".venvs" / "schemathesis" / "bin" / "st"
KEY = "0123456789abcdef"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
EXAMPLES, SEED = 30, 17


@pytest.mark.slow(minutes=4)
@pytest.mark.parametrize("kind", ["classification", "extraction"])
def test_schemathesis_finds_no_failure(tmp_path: Path, kind: str) -> None:
    if not PROGRAM.exists():
        pytest.skip("schemathesis is not installed (docs/dependencies.md)")
    deployment = (
        make_router(tmp_path)
        if kind == "classification"
        else make_deployed_task(tmp_path, make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}"))
    )
    with serve_gateway([deployment], KEY) as (address, state):
        command = [str(PROGRAM), "run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
        command += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"]
        command += ["--max-examples", str(EXAMPLES), "--seed", str(SEED), "--generation-database", "none"]
        command += ["--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure", "--no-color"]
        command += ["--request-timeout", "120"]  # the first decision imports the tokenizer's library
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        completed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert completed.returncode == 0, completed.stdout[-8000:] + completed.stderr[-2000:]
        assert state.in_flight_by_client.total() == 0
