"""The manifest in docs/engines.md: vLLM accepts its flags, and the gateway's arguments fit the engines."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from insource.config.load import load
from insource.config.schema.serving_and_cost import Serve
from serve.vllm.server_process import Address, LaunchPlan, vllm_command, vllm_environment
from tests.conftest import ROOT

PARSE_SCRIPT = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(json.loads(sys.argv[1]))
print("parsed", json.dumps([arguments.port, arguments.enable_lora, arguments.max_loras, arguments.max_lora_rank]))
"""


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], Any]:
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "apiVersion" in block)
    documents = list(YAML(typ="safe").load_all(block))
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def container(manifest: Any) -> Any:
    (only,) = manifest["spec"]["template"]["spec"]["containers"]
    return only


def test_vllm_accepts_the_flags_of_the_engines(manifests: dict[tuple[str, str], Any]) -> None:
    pytest.importorskip("vllm")
    arguments = container(manifests["StatefulSet", "vllm"])["args"]
    result = subprocess.run(
        [sys.executable, "-c", PARSE_SCRIPT, json.dumps(arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout.rpartition("parsed ")[2]) == [8001, True, 2, 64]


def test_the_engines_have_the_flags_and_variables_that_insource_runs_vllm_with(
    manifests: dict[tuple[str, str], Any],
) -> None:
    engine = container(manifests["StatefulSet", "vllm"])
    folder = Path("/registry/classifier/current/adapter")
    plan = LaunchPlan(
        model="/registry/.bases/BASE_DIGEST",
        name="base",
        serve=Serve(),
        use_cpu=False,
        chat_template=folder / "chat_template.jinja",
        tokenizer=folder,
        max_lora_rank=64,
        runtime_adapters=2,
    )
    command = vllm_command(plan, Address("0.0.0.0", 8001), with_key=True)  # noqa: S104
    options: dict[str, str] = {}
    for word, value in zip(command, [*command[1:], ""], strict=True):
        if word.startswith("--"):
            options[word] = "" if value.startswith("--") else value
    assert options.pop("--model") == engine["command"][2] == plan.model
    # The generation config of the adapter is not on this machine.
    options["--generation-config"] = str(folder)
    assert dict((*argument.split("=", 1), "")[:2] for argument in engine["args"]) == options
    variables = {variable["name"] for variable in engine["env"]}
    assert {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "VLLM_NO_USAGE_STATS"} <= variables
    assert vllm_environment(plan, None)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_the_gateway_sends_requests_to_the_engines(manifests: dict[tuple[str, str], Any]) -> None:
    engines, gateway = manifests["StatefulSet", "vllm"], container(manifests["Deployment", "gateway"])
    name, *words = [word for word in gateway["args"] if not word.startswith("--")]
    serve = load(name, words, "gpu").recipe.serve
    (port,) = container(engines)["ports"]
    expected = [
        f"http://{engines['metadata']['name']}-{number}.{engines['spec']['serviceName']}:{port['containerPort']}"
        for number in range(engines["spec"]["replicas"])
    ]
    assert serve.engines == expected
    assert serve.port == gateway["ports"][0]["containerPort"]
    policy = manifests["NetworkPolicy", "vllm"]
    assert policy["spec"]["ingress"][0]["ports"] == [{"port": port["containerPort"]}]
