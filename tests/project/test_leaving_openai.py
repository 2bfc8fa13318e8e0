"""The commands of docs/leaving-openai.md up to the recorded answers, as `make` would run them, with a fine-tune that
answers on loopback."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from aiohttp import web

from insource.system import atomic_files
from tests.conftest import ROOT
from tests.data_prep.test_importer import MODEL, QUEUES, ticket_rows, ticket_text, write_lines
from tests.helpers import commands
from tests.helpers.provider import faulty_provider
from tests.helpers.provider.faulty_provider import Provider

PAGE = (ROOT / "docs" / "leaving-openai.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    """A provider that has a fine-tuning job, its file, and a fine-tune that errs in every seventh row."""
    jobs = {"object": "list", "data": [{"id": "ftjob-1", "training_file": "file-abc123", "fine_tuned_model": MODEL}]}
    rows = ticket_rows(150)
    answers = {ticket_text(index): QUEUES[(index + (index % 7 == 0)) % 3] for index in range(150)}
    fake_provider = Provider(answer=lambda prompt: answers.get(prompt, QUEUES[0]))
    fake_provider.files["file-abc123"] = "".join(json.dumps(row) + "\n" for row in rows[:110]).encode()
    make_application = faulty_provider.make_application

    async def list_model(request: web.Request) -> web.Response:
        return web.json_response(jobs)

    def with_jobs(provider: Provider) -> web.Application:
        app = make_application(provider)
        app.add_routes([web.get("/v1/fine_tuning/jobs", list_model)])
        return app

    monkeypatch.setattr(faulty_provider, "make_application", with_jobs)
    return fake_provider


class Reader:
    """Someone who types the commands of the page one after the other."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self.runs, self.recipe = folder / "runs", folder / "mytickets.yaml"
        variables = {
            "OPENAI_API_KEY": "secret",
            "BASE_URL": f"{address}/v1",
            "HARDWARE": "cpu",
            "INSOURCE_API_KEY": "secret",
        }
        self.environment = {**commands.command_env(self.runs), **variables}
        write_lines(folder / "heldout.jsonl", ticket_rows(150)[110:])

    def words(self, line: str) -> list[str]:
        """A command of the page with the files of this test and the address of its provider."""
        for name in ("train.jsonl", "heldout.jsonl"):
            line = line.replace(name, str(self.folder / name))
        line = line.replace("https://api.openai.com", self.address).replace("recipes/mytickets.yaml", str(self.recipe))
        return shlex.split(os.path.expandvars(line.replace("$OPENAI_API_KEY", "secret")))

    def programs(self, args: list[str]) -> list[str]:
        """What `make` would run for a target, without the set-up."""
        commands = subprocess.run(
            ["make", "-n", "-s", *args], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        return [line for line in commands.splitlines() if "requirements/install.py" not in line]

    def types(self, line: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        args = self.words(line)
        variables = dict(word.split("=", 1) for word in args[2:] if "=" in word) if args[0] == "make" else {}
        script = " && ".join(self.programs(args[1:])) if args[0] == "make" else shlex.join(args)
        return subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=4 * commands.TIMEOUT_SECONDS,
            check=False,
        )


def test_the_commands_from_the_download_to_the_recorded_answers(
    tmp_path: Path, provider: Provider, address: str
) -> None:
    reader = Reader(tmp_path, address)
    output = ""
    for line in COMMANDS[: COMMANDS.index("make record RECIPE=recipes/mytickets.yaml") + 1]:
        answer = reader.types(line)
        assert answer.returncode == 0, (line, answer.stderr)
        output += answer.stdout + answer.stderr
    assert MODEL in output and "classification: 150 of 150 answers are one of 3 short texts" in output
    (path,) = tmp_path.glob("mytickets.openai-*.jsonl")
    outputs = {row["id"]: row["output"] for row in atomic_files.read_jsonl(path)}
    assert len(outputs) == 40 and outputs["heldout.jsonl:1"] == QUEUES[110 % 3]
    assert not provider.rule_violations


def test_the_page_names_no_target_that_is_not_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)", PAGE)) <= set(targets)
    assert len(COMMANDS) == 11
