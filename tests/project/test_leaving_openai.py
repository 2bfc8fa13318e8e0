"""Every command of docs/leaving-openai.md, as `make` would run it, with a fine-tune that answers on loopback: from the
download to a client of the gateway."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from insource.system import atomic_files
from insource.text.text_keys import clean
from serve.vllm import server_process
from tests.conftest import REAL_DATA, ROOT
from tests.helpers import commands
from tests.helpers.importing import MODEL, QUEUES, chat_row, ticket_rows, write_lines
from tests.helpers.provider import faulty_provider
from tests.helpers.provider.faulty_provider import Provider

PAGE = (ROOT / "docs" / "leaving-openai.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
(CLIENT,) = (block for language, block in BLOCKS if language == "python")
KEY = "key-of-the-gateway"
# The page's commands train to the end, and serve three variants. Here few updates have to do, and one variant.
SETTINGS = (
    "train.max_steps=2 train.save_steps=2 export.merge=false export.quantize=none compare.forms=served "
    "compare.explore_rows=50"
)
TARGETS_WITH_SETTINGS = ("train", "export", "parity", "compare", "deploy", "gateway")


@dataclass(frozen=True)
class Files:
    """The rows of a fine-tune, and what the import says of them."""

    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    task: str


def read_tickets() -> Files:
    rows = ticket_rows(150)
    return Files(rows[:110], rows[110:], "classification: 150 of 150 answers are one of 3 short texts")


def read_banking77() -> Files:
    system = "Classify the question of the bank's customer."
    rows = []
    for split in ("train", "test"):
        with (REAL_DATA / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            pairs = [chat_row(row["text"], row["category"], system) for row in csv.DictReader(file)]
        rows.append(pairs[::5])
    return Files(*rows, "answers are one of 77 short texts")


def read_sroie() -> Files:
    system = "Extract company, date, address and total from the receipt as JSON."
    rows = [
        [
            chat_row(row["text"], json.dumps(row["target"]), system)
            for row in list(atomic_files.read_jsonl(REAL_DATA / "sroie" / f"{split}.jsonl"))[::3]
        ]
        for split in ("train", "test")
    ]
    return Files(*rows, "extraction: 330 of 330 answers are JSON objects of one shape")


def read_summaries() -> Files:
    system = "Summarize the conversation in one line for the next agent."
    chats = atomic_files.read_jsonl(ROOT / "demo_data" / "support_chats.jsonl")
    rows = [chat_row(row["text"], row["summary"], system) for row in chats][::3]
    return Files(rows[:300], rows[300:], "generation: 400 answers are texts of their own")


KINDS = {
    "tickets": read_tickets,
    "banking77": read_banking77,
    "sroie": read_sroie,
    "summaries": read_summaries,
}


@pytest.fixture(params=["tickets"])
def files(request: pytest.FixtureRequest) -> Files:
    if request.param in ("banking77", "sroie"):
        request.getfixturevalue(request.param)
    return KINDS[request.param]()


@pytest.fixture
def provider(files: Files, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """A provider that has a fine-tuning job, its file, and a fine-tune that errs in every seventh row."""
    jobs = {"object": "list", "data": [{"id": "ftjob-1", "training_file": "file-abc123", "fine_tuned_model": MODEL}]}
    conversations = [row["messages"] for row in (*files.train, *files.heldout)]
    answers = {
        clean(messages[-2]["content"]): conversations[index - (index % 7 == 6)][-1]["content"]
        for index, messages in enumerate(conversations)
    }
    fake_provider = Provider(answer=lambda prompt: answers[clean(prompt)])
    fake_provider.files["file-abc123"] = "".join(json.dumps(row) + "\n" for row in files.train).encode()
    make_application = faulty_provider.make_application

    async def list_jobs(request: web.Request) -> web.Response:
        return web.json_response(jobs)

    def with_jobs(provider: Provider) -> web.Application:
        app = make_application(provider)
        app.add_routes([web.get("/v1/fine_tuning/jobs", list_jobs)])
        return app

    monkeypatch.setattr(faulty_provider, "make_application", with_jobs)
    return fake_provider


class Reader:
    """Someone who types the commands of the page one after the other."""

    def __init__(self, folder: Path, address: str, heldout: list[dict[str, Any]]) -> None:
        self.folder, self.address = folder, address
        self.runs, self.recipe, self.port = folder / "runs", folder / "mytickets.yaml", server_process.free_port()
        variables = {"BASE_URL": f"{address}/v1", "HARDWARE": "cpu", "INSOURCE_API_KEY": KEY}
        # Models that the recipe names besides the fine-tune answer at OpenAI: without a key they are left out.
        self.environment = commands.command_env(self.runs) | variables
        self.environment.pop("OPENAI_API_KEY", None)
        write_lines(folder / "heldout.jsonl", heldout)

    def script(self, line: str) -> tuple[str, dict[str, str]]:
        """Return what a shell would run for a command of the page, and its variables: `make` without the set-up."""
        for name in ("train.jsonl", "heldout.jsonl"):
            line = line.replace(name, str(self.folder / name))
        line = line.replace("https://api.openai.com", self.address).replace("recipes/mytickets.yaml", str(self.recipe))
        args = shlex.split(line.replace("$OPENAI_API_KEY", "secret"))
        if args[0] != "make":
            return shlex.join(args), {}
        if args[1] in TARGETS_WITH_SETTINGS:
            args.append(f"SET={SETTINGS} serve.port={self.port}")
        dry_run = subprocess.run(["make", "-n", "-s", *args[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        programs = [program for program in dry_run.stdout.splitlines() if "requirements/install.py" not in program]
        return " && ".join(programs), dict(word.split("=", 1) for word in args[2:])

    def types(self, line: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        script, variables = self.script(line)
        return subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=4 * commands.TIMEOUT_SECONDS,
            check=False,
        )

    @contextmanager
    def starts(self, line: str) -> Iterator[str]:
        """Starts the gateway, yields its address once it is ready, and stops it."""
        script, variables = self.script(line)
        log = self.folder / "gateway.log"
        with log.open("wb") as stdout:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {script.removeprefix('exec ')}"],
                cwd=ROOT,
                env=self.environment | variables,
                stdout=stdout,
                stderr=stdout,
            )
        try:
            commands.wait_for(log, "ready     ", process)
            yield f"http://127.0.0.1:{self.port}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def check_answer(task: str, content: str | None) -> None:
    """Assert that an answer of the gateway is one of the task's; a summary after two updates may be any text."""
    assert content is not None
    if task.startswith("extraction"):
        assert set(json.loads(content)) == {"company", "date", "address", "total"}
    if "3 short texts" in task:
        assert content in QUEUES


def run_client(address: str) -> str:
    """Run the page's Python block against this gateway. Return its output."""
    source = CLIENT.replace("http://127.0.0.1:8000/v1", address)
    completed = subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | {"INSOURCE_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


@pytest.mark.slow(minutes=2)
@pytest.mark.parametrize(
    "files",
    [
        "tickets",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("banking77", "sroie", "summaries")),
    ],
    indirect=True,
)
def test_every_command_of_the_page_from_the_download_to_a_client_of_the_gateway(
    files: Files, tmp_path: Path, provider: Provider, address: str
) -> None:
    reader, output = Reader(tmp_path, address, files.heldout), {}
    for line in COMMANDS[:-1]:
        completed = reader.types(line)
        output[line] = completed.stdout + completed.stderr
        assert completed.returncode == 0, (line, output[line])
        if line.startswith("make record"):
            recorded_requests = provider.attempts.total()
    printed = "".join(output.values())
    assert MODEL in printed and files.task in printed
    (path,) = tmp_path.glob("mytickets.openai-*.jsonl")
    outputs = {row["id"]: row["output"] for row in atomic_files.read_jsonl(path)}
    assert len(outputs) == len(files.heldout) and not provider.rule_violations
    assert provider.attempts.total() == recorded_requests, "the comparison sends no recorded request again"

    (scores,) = reader.runs.glob("mytickets/2*/scores.json")
    systems = atomic_files.read_json(scores)["systems"]
    assert systems[f"openai:{MODEL}"]["complete"] and systems["tuned"]["complete"]
    with reader.starts(COMMANDS[-1]) as gateway:
        check_answer(files.task, run_client(gateway))
        client = openai.OpenAI(base_url=gateway, api_key=KEY, max_retries=0)
        for row in files.heldout[:3]:
            completion = client.chat.completions.create(model="mytickets", messages=row["messages"][:-1], temperature=0)
            check_answer(files.task, completion.choices[0].message.content)


def test_the_page_names_no_target_that_is_not_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)", PAGE)) <= set(targets)
    assert len(COMMANDS) == 11 and COMMANDS[-1].startswith("make gateway")
