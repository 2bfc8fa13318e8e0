"""The first request to an API model: no other request waits for an import."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PROGRAM = """
import asyncio, sys
from pathlib import Path
from deploy.routing import Routing
from tests.helpers.gateway.task_gateway import baseline_yaml, make_deployed_task, make_recipe

folder = Path(sys.argv[1])
recipe = make_recipe(folder, baselines=baseline_yaml("http://127.0.0.1:9"))
deployment = make_deployed_task(folder, recipe, Routing(None, 0.9, None))
imported = set(sys.modules)
assert asyncio.run(deployment.escalation.query(deployment.task.prepare("where is my parcel"))) == "api_failed"
print(*(name for name in set(sys.modules) - imported if name.partition(".")[0] in ("openai", "anthropic", "httpx2")))
"""


def test_the_first_request_to_an_api_model_imports_no_sdk(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "API_KEY": "secret"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (completed.returncode, completed.stdout.strip()) == (0, ""), completed.stderr
