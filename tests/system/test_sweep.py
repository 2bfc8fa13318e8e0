"""A sweep over two bases to its end: trained, ranked, the winner compared once on the test set and deployed."""

import shutil
from pathlib import Path

import pytest

from deploy import registry
from insource.config.base_models import POCKET
from insource.system import atomic_files
from insource.tracking.run import Run
from tests.helpers import commands


def make_shorter_base(folder: Path) -> Path:
    """Write the pocket model without its last two layers, which no training repairs in a few steps."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POCKET)
    model.model.layers = model.model.layers[:4]
    model.config.num_hidden_layers = 4
    model.save_pretrained(folder)
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(POCKET / name, folder / name)
    return folder


@pytest.mark.nightly
@pytest.mark.slow(minutes=6)
def test_the_winner_of_two_bases_is_compared_once_and_deployed(small_recipe: Path, tmp_path: Path) -> None:
    runs, shorter = tmp_path / "runs", make_shorter_base(tmp_path / "shorter")
    settings = ("train.max_steps=20", "train.save_steps=20", "compare.forms=served", "route.target_accuracy=0.5")
    swept = commands.run_command(runs, "compare.sweep", small_recipe, *settings, MODELS=f"{shorter} pocket", FORCE="1")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    parent = runs / "small"
    summary = atomic_files.read_json(next(parent.glob("sweep-*.json")))
    winner = Run((parent / "latest").resolve())
    assert winner.id == summary["run"] == summary["variants"][0]["run"]
    assert [variant["parameters"] > 0 for variant in summary["variants"]] == [True, True]
    (opening,) = atomic_files.read_jsonl(parent / "ledger.jsonl")
    assert opening["run"] == winner.id and "opening 1 of this test set" in swept.stderr
    assert [path.parent for path in parent.glob("2*/scores.json")] == [parent / winner.id]
    assert "verdict   " in swept.stdout and "routing   " in swept.stdout

    deployed = commands.run_command(runs, "deploy", small_recipe, *settings, FORCE="1")
    assert deployed.returncode == 0, deployed.stderr
    registry_dir = runs.parent / "registry" / "small"
    assert registry.current_version(registry_dir) == registry.compute_version(winner.folder / "adapter")
    (entry,) = registry.read_history(registry_dir)
    policy = atomic_files.read_json(registry_dir / "routing" / entry["routing"]["file"])
    assert policy["target_accuracy"] == 0.5 and policy == atomic_files.read_json(winner.folder / "routing.json")
