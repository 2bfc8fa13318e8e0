"""A base by its name on a hub, from the download to the adapter: everything is of one commit."""

import json
import shutil
from pathlib import Path

import pytest

from insource.config.base_models import POCKET
from insource.config.load import load
from insource.tracking.run import Run
from tests.conftest import Command
from tests.helpers.model_hub import FIRST, SECOND, Repository, run_hub
from train.model import base, dequantize


@pytest.mark.slow
def test_a_run_keeps_the_commit_of_its_base(tmp_path: Path, small_recipe: Path, python: Command) -> None:
    command = ("train", small_recipe, "model.base=acme/pocket", "train.max_steps=2", "--hardware", "cpu")
    pocket = Repository({FIRST: POCKET, SECOND: shutil.copytree(POCKET, tmp_path / "second")})
    with run_hub(pocket=pocket) as hub:
        settings = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        trained = python(*command, **settings)
        assert trained.returncode == 0, trained.stderr
        downloads = [path for path in hub.requests if "model.safetensors" in path]
        assert downloads and all(f"/resolve/{FIRST}/" in path for path in downloads)
        pocket.main = SECOND
        again = python(*command, **settings)
    assert again.returncode == 0 and "train     unchanged" in again.stderr
    run = Run((tmp_path / "runs" / "small" / "latest").resolve())
    assert run.recipe().model.base == "acme/pocket" and run.recipe().model.revision == FIRST
    prompt, config = (
        json.loads((run.folder / "adapter" / name).read_text(encoding="utf-8"))
        for name in ("prompt.json", "adapter_config.json")
    )
    assert prompt["base"]["name"] == "acme/pocket" and prompt["base"]["commit"] == FIRST
    assert config["base_model_name_or_path"] == "acme/pocket" and config["revision"] == FIRST
    # What nf4 left of it is served.
    (record,) = (tmp_path / "runs" / ".bases").glob("*/base.json")
    assert json.loads(record.read_text(encoding="utf-8"))["base"]["commit"] == FIRST


def test_the_dequantized_weights_of_another_commit_are_others() -> None:
    """Else a run would be served with weights that the hub had before."""
    recipe = load("classifier", [], "cpu").recipe
    model = base.load_base_model(recipe.with_model(quantization="none"))
    digests = {
        dequantize.compute_digest(recipe.with_model(base="acme/pocket", revision=commit), model)
        for commit in (FIRST, SECOND)
    }
    assert len(digests) == 2
