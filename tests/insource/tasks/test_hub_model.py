"""Bases by their name on a hub: one on loopback, with the client libraries of the real one.

Each call runs in a process of its own, because huggingface_hub reads its settings when it is imported.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insource.config.base_models import POCKET
from insource.tasks.rendering import base_tokenizer
from tests.conftest import ROOT
from tests.helpers.model_hub import FIRST, SECOND, Hub, Repository, run_hub

UNREACHABLE = "http://127.0.0.1:9"
GENERATION_CONFIG = base_tokenizer.GENERATION_CONFIG
PROGRAM = """
import json, sys
from insource.config.errors import RecipeError
from insource.config.schema.train import Model
from insource.tasks.rendering import chat_template, hub_model

def stop(model):
    return chat_template.load_rendering(model).tokenizer.eos_token

def call(function, base, revision, *arguments):
    functions = {"pin": lambda model: hub_model.pin_commit(model).revision, "stop": stop, "find": hub_model.find_file}
    try:
        result = functions[function](Model(base=base, revision=revision), *arguments)
    except RecipeError as error:
        return f"{error.code} {error}"
    return result and str(result)

print(json.dumps([call(*words) for words in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with the pocket model in two commits, of which only the second has a generation config, and a gated one."""
    first, second = (shutil.copytree(POCKET, tmp_path / commit) for commit in (FIRST, SECOND))
    (first / GENERATION_CONFIG).unlink()
    with run_hub(pocket=Repository({FIRST: first, SECOND: second}), gated=Repository({}, gated=True)) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"HF_HOME": str(tmp_path / "hf")}


def call(*calls: tuple[str | None, ...], **settings: str) -> list[Any]:
    """Returns what calls of hub_model return, or the code and text of their error."""
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "0", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(completed.stdout))


def test_a_name_on_the_hub_stands_for_the_commit_of_its_branch(hub: Hub, cache: dict[str, str]) -> None:
    calls = (("pin", "acme/pocket", None), ("pin", "acme/pocket", FIRST), ("pin", str(POCKET), None))
    assert call(*calls, HF_ENDPOINT=hub.address, **cache) == [FIRST, FIRST, None]
    hub.repositories["acme/pocket"].main = SECOND
    assert call(*calls, HF_ENDPOINT=hub.address, **cache) == [SECOND, FIRST, None]


def test_all_files_of_a_base_are_read_from_one_commit_and_without_a_network_from_the_cache(
    hub: Hub, cache: dict[str, str]
) -> None:
    assert call(("stop", "acme/pocket", None), HF_ENDPOINT=hub.address, **cache) == ["<|end|>"]
    files = [path for path in hub.requests if "/resolve/" in path]
    assert files and all(f"/resolve/{FIRST}/" in path for path in files)
    hub.repositories["acme/pocket"].main = SECOND
    calls = (("pin", "acme/pocket", None), ("stop", "acme/pocket", None))
    for settings in ({"HF_ENDPOINT": UNREACHABLE}, {"HF_ENDPOINT": UNREACHABLE, "HF_HUB_OFFLINE": "1"}):
        assert call(*calls, **cache, **settings) == [FIRST, "<|end|>"]


def test_each_refusal_of_the_hub_has_its_own_reason(hub: Hub, cache: dict[str, str]) -> None:
    gated, missing, revision, name = call(
        ("stop", "acme/gated", None),
        ("stop", "acme/missing", None),
        ("stop", "acme/pocket", "v9"),
        ("stop", "models/of/ours", None),
        HF_ENDPOINT=hub.address,
        **cache,
    )
    assert gated.startswith(
        "INS-T001 model.base: acme/gated is neither on this machine nor on the hub: it is gated: accept its terms"
    )
    assert "INS-T001 " in missing and "no such repository, or a private one" in missing
    assert revision.startswith("INS-T001 model.revision: acme/pocket has no revision v9")
    assert "INS-T001 " in name and "Repo id must be in the form" in name


def test_without_a_network_and_a_cache_the_error_says_so(cache: dict[str, str]) -> None:
    for offline in ("0", "1"):
        (message,) = call(("stop", "acme/pocket", None), HF_ENDPOINT=UNREACHABLE, **cache | {"HF_HUB_OFFLINE": offline})
        assert "INS-T001 model.base: acme/pocket is not in the cache" in message
        assert "the hub cannot be reached" in message and "hf download acme/pocket" in message


def test_a_file_that_the_cache_lacks_is_absent_only_if_the_hub_said_so(hub: Hub, cache: dict[str, str]) -> None:
    """Without its generation config a base such as Gemma would be trained with another stop."""
    configs = (("find", "acme/pocket", FIRST, "config.json"), ("find", "acme/pocket", SECOND, "config.json"))
    assert all(call(*configs, HF_ENDPOINT=hub.address, **cache))
    questions = tuple(("find", "acme/pocket", commit, GENERATION_CONFIG) for commit in (FIRST, SECOND))
    without_network = {"HF_ENDPOINT": UNREACHABLE, "HF_HUB_OFFLINE": "1"}
    for message in call(*questions, **cache, **without_network):
        assert f"INS-T001 model.base: {GENERATION_CONFIG} of acme/pocket is not in the cache" in message
    assert call(questions[0], HF_ENDPOINT=hub.address, **cache) == [None]
    program = "import huggingface_hub, sys; huggingface_hub.snapshot_download('acme/pocket', revision=sys.argv[1])"
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", **cache}
    subprocess.run([sys.executable, "-c", program, SECOND], env=environment, check=True, capture_output=True)
    absent, found, unlisted = call(
        *questions, ("find", "acme/pocket", SECOND, "chat_template.json"), **cache, **without_network
    )
    assert absent is None and found.endswith(f"/snapshots/{SECOND}/{GENERATION_CONFIG}") and unlisted is None
