"""The snippets of docs/gateway.md, monitoring.md and routing.md work as they are written."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML

from deploy.gateway.proxy_state import ProxyState
from insource.config.schema.serving_and_cost import Route, Serve
from tests.conftest import ROOT
from tests.helpers.gateway.served_gateway import make_router, serve_gateway
from tests.helpers.gateway.task_gateway import TASK_NAME, TASK_VERSION

KEY = "0123456789abcdef"
# The served task has other names than the recipe of the pages.
NAMES = {"classifier": TASK_NAME, "refund_status": "lost", "delivery_delay": "late", "refund_": "lost_"}
FETCH_WITH_CURL = """
const {execFileSync} = require("node:child_process");
const PropertiesService = {getScriptProperties: () => ({getProperty: (name) => process.env[name]})};
const UrlFetchApp = {fetch: (url, options) => {
  const args = ["-sSf", url, "-X", options.method.toUpperCase(), "-H", `Content-Type: ${options.contentType}`];
  for (const [name, value] of Object.entries(options.headers)) args.push("-H", `${name}: ${value}`);
  const text = execFileSync("curl", [...args, "-d", options.payload], {encoding: "utf8"});
  return {getContentText: () => text};
}};
"""


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page with this language, with the names of the served task."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name, replacement in NAMES.items():
        text = text.replace(name, replacement)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


CURL_COMMANDS = [
    block for page in ("gateway.md", "monitoring.md") for block in blocks(page, "") if block.startswith("curl")
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ProxyState]]:
    with serve_gateway([make_router(tmp_path_factory.mktemp("router"))], KEY) as served:
        yield served


def run(command: list[str], address: str) -> str:
    """Return the output of a program that has the key in its environment and uses no proxy."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"INSOURCE_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    local = [part.replace("127.0.0.1:8000", urlsplit(address).netloc) for part in command]
    completed = subprocess.run(local, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_the_python_snippets_print_a_label(served: tuple[str, ProxyState]) -> None:
    snippets = blocks("gateway.md", "python")
    assert len(snippets) == 3 and "anthropic" in snippets[1] and "decisions.create" in snippets[2]
    for snippet in snippets:
        assert run([sys.executable, "-c", snippet], served[0]).strip() in ("late", "lost")


@pytest.mark.parametrize("command", CURL_COMMANDS)
def test_the_curl_commands_get_an_answer(served: tuple[str, ProxyState], command: str) -> None:
    address, _ = served
    if "/v1/feedback" in command:  # its id is that of an answer before, and its second line is the response
        task = [command for command in CURL_COMMANDS if "/v1/tasks" in command]
        answer = json.loads(run(["bash", "-c", task[0]], address))
        command, _, response = command.replace("AWrk3Xq0...", answer["id"]).partition("\n")
        assert json.loads(run(["bash", "-c", command], address)) == json.loads(response)
        return
    payload = json.loads(run(["bash", "-c", command], address))
    assert "error" not in payload and payload.keys() & {"choices", "answer", "answers"}


def test_the_response_in_the_page_has_the_keys_of_a_real_one(served: tuple[str, ProxyState]) -> None:
    (example,) = blocks("gateway.md", "json")
    (command,) = (command for command in CURL_COMMANDS if "/v1/tasks" in command)
    assert json.loads(run(["bash", "-c", command], served[0])).keys() == json.loads(example).keys()


def test_the_plain_post_is_a_complete_request(served: tuple[str, ProxyState]) -> None:
    (request,) = blocks("gateway.md", "http")
    url = urlsplit(served[0])
    head, _, body = request.replace("Bearer KEY", f"Bearer {KEY}").partition("\n\n")
    message = head.replace("\n", "\r\n") + "\r\nConnection: close\r\n\r\n" + body.strip()
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(message.encode())
        response = b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, payload = response.partition(b"\r\n\r\n")
    assert b" 200 " in status.splitlines()[0] and json.loads(payload)["version"] == TASK_VERSION


def test_the_function_for_a_spreadsheet_answers_cells(served: tuple[str, ProxyState]) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("Node.js is not installed")
    (function,) = blocks("gateway.md", "javascript")
    cells = [["says lost"], [""], ["says broken"], ["says nonsense"], [17]]
    calls = "".join(f"console.log(JSON.stringify(CLASSIFY({json.dumps(value)})));" for value in (cells, "says lost"))
    lines = run([node, "-e", f"{FETCH_WITH_CURL}{function}{calls}"], served[0]).splitlines()
    assert [json.loads(line) for line in lines] == [[["lost"], [""], ["broken"], [""], ["late"]], [["lost"]]]


@pytest.mark.parametrize("page", ["gateway.md", "monitoring.md", "routing.md", "engines.md"])
def test_the_recipe_sections_are_valid(page: str) -> None:
    """A page with alternatives has a section on each line."""
    sections = {"route": Route, "serve": Serve}
    texts = [text for text in blocks(page, "yaml") if text.startswith(tuple(f"{name}:" for name in sections))]
    assert texts
    for text in texts:
        alternatives = text.splitlines() if text.count("\nroute:") else [text]
        for alternative in alternatives:
            ((name, values),) = YAML(typ="safe").load(alternative).items()
            sections[name].model_validate(values)
