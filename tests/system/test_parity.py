"""The parity table of every form of a run, with a real vLLM, and what it opens: the way to deploy."""

from pathlib import Path

import pytest

from insource.system import atomic_files
from insource.tracking.run import Run
from tests.helpers import commands

pytestmark = pytest.mark.slow(minutes=4)


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one trained, merged and quantized."""
    return commands.copy_exported_runs(tmp_path_factory, small_recipe, "parity")


def test_the_parity_table_has_every_form_and_lets_the_adapter_be_deployed(runs: Path, small_recipe: Path) -> None:
    completed = commands.run_command(runs, "serve.parity", small_recipe, "serve.parity.rows=24")
    assert completed.returncode == 0, completed.stderr
    trained_run = Run((runs / "small" / "latest").resolve())
    report = atomic_files.read_json(trained_run.folder / "parity.json")
    forms = {form["which"]: form for form in report["forms"]}
    assert list(forms) == ["merged", "adapter", "quantized/int8"]
    assert report["passed"] and all(form["prompt_ids_equal"] == 1 for form in forms.values())
    for which in ("adapter", "merged"):
        assert forms[which]["same"]["agreement"] >= 0.99
        assert all(flip["margin"] is not None for flip in forms[which]["same"]["flips"])
    assert forms["quantized/int8"]["same"] is None and forms["quantized/int8"]["other"]["difference"]["n"] == 24
    assert all(form["valid"]["grammar"] == [1, 24] for form in forms.values())
    assert "none" in forms["merged"]["valid"] and report["repeated"][0]["concurrency"] == 64
    stage = trained_run.stage("parity")
    assert stage.state == "done" and stage.metrics["prompt_ids_equal"] == 1
    # On a CPU the merged model is served, and the adapter is what is deployed.
    assert report["served"] == "merged" and stage.metrics["form_failures"]["adapter"] == []
    assert "| adapter | 100.0% |" in (trained_run.folder / "parity.md").read_text(encoding="utf-8")
    deployed = commands.run_command(runs, "deploy", small_recipe)
    assert deployed.returncode == 0, deployed.stderr
