"""Recipes: what is right is read as written, what is wrong is told in full."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from recipes import hardware, schema
from recipes.errors import RecipeError
from recipes.load import POCKET, RECIPES, load
from recipes.schema_data import Data
from recipes.schema_train import Lora, Train
from tests.conftest import ROOT

GOOD = """\
task: {kind: classification, instruction: Route the message to one queue.}
data: {source: {path: rows.csv}}
model: {base: some/model}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def mistakes(path: str, *overrides: str, hardware_name: str = "gpu") -> str:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides, hardware_name)
    return str(caught.value)


def test_every_recipe_loads_on_every_hardware() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert names == ["banking77", "classifier", "extractor", "sroie"]
    assert hardware.names() == ["cpu", "gpu", "multi-gpu", "multi-node"]
    for name in names:
        for machine in hardware.names():
            kind = "extraction" if name in ("extractor", "sroie") else "classification"
            assert load(name, (), machine).recipe.task.kind == kind


def test_hardware_lies_over_the_recipe_and_set_over_both_and_both_are_told() -> None:
    loaded = load("classifier", ["train.learning_rate=5e-4"], "cpu")
    assert loaded.recipe.model.base == str(POCKET)
    assert loaded.recipe.train.learning_rate == 5e-4
    assert any("model.base: pocket" in told and "Qwen" in told for told in loaded.replaced)
    assert any("SET train.learning_rate" in told for told in loaded.replaced)


def test_yaml_numbers_that_pyyaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "train: {learning_rate: 2e-4}\ncost: {monthly_requests: 1_000_000}\n")
    recipe = load(path, (), "gpu").recipe
    assert (recipe.train.learning_rate, recipe.cost.monthly_requests) == (2e-4, 1_000_000)


def test_all_mistakes_are_told_at_once_with_line_key_given_allowed_and_nearest(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        GOOD
        + "lora:\n  r: 600\ntrain:\n  learning_rat: 2e-4\n  num_train_epochs: three\nprivcy: {}\nlearning_rate: 1\n",
    )
    told = mistakes(path)
    assert "has 5 mistakes" in told
    assert f"{path}:5  lora.r: given 600, allowed: at most 512 (vLLM serves no larger rank)" in told
    assert f"{path}:7  train.learning_rat: unknown key; did you mean learning_rate?" in told
    assert f"{path}:8  train.num_train_epochs: given 'three', allowed: a number" in told
    assert f"{path}:9  privcy: unknown key; did you mean privacy?" in told
    assert f"{path}:10  learning_rate: unknown key here; it belongs at train.learning_rate" in told


def test_a_mistake_is_told_though_the_hardware_file_replaces_the_value(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "lora: {r: 600}\n")
    assert f"{path}:4  lora.r: given 600" in mistakes(path, hardware_name="cpu")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("path: rows.csv", "path: a.csv, train: b.csv"), "exactly one of path, paths, hub, or train"),
        (
            GOOD.replace("{source: {path: rows.csv}}", "{source: {path: a.csv}, split: {test: 0.9, validation: 0.2}}"),
            "no rows for train",
        ),
        (GOOD + "lora: {use_dora: true}\n", "serve.model: merged"),
        (GOOD + "train: {pack_tokens: 1000, max_length: 2000}\n", "a row would not fit"),
        (GOOD.replace("kind: classification", "kind: extraction"), "needs json_schema"),
        (GOOD.replace("queue.}", "queue., labels: [a, a]}"), "'a' stands there twice"),
        (GOOD + "compare: {baselines: [{provider: file}]}\n", "provider file takes path"),
        (GOOD + "model: {base: x}\n", "mine.yaml"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "an empty file"),
        ("task: {\n", "mine.yaml:2"),
        (GOOD.replace("model: {base: some/model}\n", ""), "model: is missing"),
        (GOOD.replace("some/model", "./nowhere"), "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in mistakes(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.lr=3", "SET train.lr"),
        ("train.max_steps=many", "given 'many'"),
        ("train.max_steps", "write dotted.key=value"),
        ("train.max_steps=[1", "not a YAML value"),
        ("task.labels=[only]", "at least 2 entries"),
    ],
)
def test_a_wrong_set_is_refused(override: str, told: str) -> None:
    assert told in mistakes("classifier", override)


def test_an_unknown_name_gets_the_nearest() -> None:
    assert "Did you mean classifier?" in mistakes("clasifier")
    assert "Did you mean gpu?" in mistakes("classifier", hardware_name="gpus")


def test_paths_start_at_the_recipe_and_in_set_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.chdir(ROOT)
    assert load(path, (), "gpu").recipe.data.source.path == str(tmp_path / "rows.csv")
    assert load(path, ["data.source.path=rows.csv"], "gpu").recipe.data.source.path == str(ROOT / "rows.csv")


def test_lora_and_train_bear_upstream_names() -> None:
    from peft import LoraConfig
    from trl import SFTConfig

    ours = {"batch_size", "packing", "pack_tokens"}
    assert set(Lora.model_fields) <= {field.name for field in dataclasses.fields(LoraConfig)}
    assert set(Train.model_fields) - ours <= {field.name for field in dataclasses.fields(SFTConfig)}


def test_the_json_schema_is_the_committed_one_and_takes_the_recipes() -> None:
    import jsonschema

    committed = json.loads((RECIPES / ".schema.json").read_text(encoding="utf-8"))
    assert committed == schema.json_schema()
    for path in RECIPES.glob("*.yaml"):
        jsonschema.validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")), committed)
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=.schema.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(sorted({*schema.Recipe.model_fields, *Train.model_fields, *Data.model_fields}))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=5))
def test_no_yaml_mapping_crashes_the_loader(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)
    with pytest.raises(RecipeError, match=r"mistake|is a mapping|any\.yaml"):
        load(str(path), (), "gpu")


@pytest.mark.parametrize("stage", ["train", "data_prep"])
def test_help_imports_nothing_heavy(stage: str) -> None:
    code = "import sys; sys.argv = ['x', '--help']\n"
    code += f"try:\n import {stage}.__main__ as m; m.main()\nexcept SystemExit: pass\n"
    heavy = ("torch", "transformers", "wandb", "datasets", "numpy", "pydantic")
    code += f"print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: python -m" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "[]"
