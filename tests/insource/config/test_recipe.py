"""Recipes: what is right is read as written, what is wrong is told in full."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from insource.config import hardware
from insource.config import recipe as schema
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, load
from insource.config.schema.data import Data
from insource.config.schema.train import Train
from insource.tracking import run
from tests.conftest import ROOT
from tests.helpers.errors import raises_error
from tests.helpers.property_tests import examples
from tests.helpers.recipe_errors import VALID_RECIPE, load_error, write


def test_every_recipe_loads_on_every_hardware() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    task_kinds = {
        "banking77": "classification",
        "classifier": "classification",
        "extractor": "extraction",
        "preference": "preference",
        "sroie": "extraction",
        "summarizer": "generation",
    }
    assert names == list(task_kinds)
    assert hardware.list_names() == ["cpu", "cpu-smollm2", "fsdp", "gpu", "multi-cpu", "multi-gpu", "multi-node"]
    for name in names:
        for hardware_name in hardware.list_names():
            assert load(name, (), hardware_name).recipe.task.kind == task_kinds[name]


def test_hardware_lies_over_the_recipe_and_set_over_both_and_both_are_told() -> None:
    loaded = load("classifier", ["train.learning_rate=5e-4"], "cpu")
    assert loaded.recipe.model.base == str(POCKET)
    assert loaded.recipe.train.learning_rate == 5e-4
    assert any("model.base: pocket" in line and "Qwen" in line for line in loaded.overridden)
    assert any("SET train.learning_rate" in line for line in loaded.overridden)


def test_settings_of_the_pocket_model_are_not_laid_over_what_a_recipe_says_of_another_base(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        VALID_RECIPE.replace("some/model}", "some/model, stop: <|end|>}")
        + "lora: {r: 8}\ntrain: {learning_rate: 1e-4}\n",
    )
    for hardware_name in ("cpu", "multi-cpu"):
        pocket, other_base = (
            load(path, overrides, hardware_name).recipe for overrides in ((), ["model.base=another/model"])
        )
        assert (pocket.model.base, pocket.train.learning_rate, pocket.lora.r) == (str(POCKET), 2e-3, 32)
        assert (other_base.model.base, other_base.train.learning_rate, other_base.lora.r) == ("another/model", 1e-4, 8)
        assert other_base.train.adam_beta2 == 0.999 and other_base.accelerate.use_cpu
    assert other_base.model.stop == "<|end|>" and load(path, (), "cpu").recipe.model.stop == "auto"
    preference_recipe = load("preference", ["model.base=another/model"], "cpu").recipe
    assert preference_recipe.train.learning_rate != load("preference", (), "cpu").recipe.train.learning_rate == 3e-4


def test_on_a_cpu_smollm2_has_its_own_settings_however_it_is_named(tmp_path: Path) -> None:
    settings = load("classifier", (), "cpu-smollm2")
    by_override = load("classifier", ["model.base=smollm2"], "cpu")
    by_recipe = load(write(tmp_path, VALID_RECIPE.replace("some/model", "smollm2")), (), "cpu")
    for loaded in (settings, by_override, by_recipe):
        recipe = loaded.recipe
        assert loaded.hardware == "cpu-smollm2" and recipe.model.base == settings.recipe.model.base
        assert (recipe.model.quantization, recipe.train.learning_rate, recipe.lora.r) == ("none", 2e-3, 16)
    assert by_override.hardware_reason == "cpu, with the settings of model.base smollm2"
    other_base = load("classifier", ["model.base=another/model"], "cpu-smollm2").recipe
    assert (other_base.model.quantization, other_base.train.learning_rate) == (
        "nf4",
        load("classifier", (), "gpu").recipe.train.learning_rate,
    )
    assert load("classifier", ["model.base=smollm2"], "gpu").hardware == "gpu"


def test_what_set_says_of_the_launch_it_says_to_the_hardware_file() -> None:
    overrides = ["accelerate.num_processes=4", "accelerate.machine_rank=1", "accelerate.main_process_ip=10.0.0.1"]
    accelerate = load("classifier", overrides, "multi-node").recipe.accelerate
    assert (accelerate.num_processes, accelerate.num_machines, accelerate.machine_rank) == (4, 2, 1)


def test_what_is_pinned_in_a_template_is_a_switch_and_a_day(tmp_path: Path) -> None:
    template = load(
        "classifier", ["model.template={enable_thinking: false, date: 2026-05-01}"], "cpu"
    ).recipe.model.template
    assert (template.enable_thinking, template.date) == (False, "2026-05-01")
    for override in (
        "model.template.date=2026-13-01",
        "model.template.date=today",
        "model.template.enable_thinking=off",
    ):
        with pytest.raises(RecipeError, match=override.partition("=")[0]):
            load("classifier", [override], "cpu")
    path = tmp_path / "mine.yaml"
    path.write_text("model: {base: pocket, template: {date: 2026-13-01}}\n", encoding="utf-8")
    with raises_error(RecipeError, "INS-R008", match=r"mine.yaml: month must be in"):
        load(str(path))


def test_yaml_numbers_that_pyyaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, VALID_RECIPE + "train: {learning_rate: 2e-4}\ncost: {monthly_requests: 1_000_000}\n")
    recipe = load(path, (), "gpu").recipe
    assert (recipe.train.learning_rate, recipe.cost.monthly_requests) == (2e-4, 1_000_000)


def test_all_mistakes_are_told_at_once_with_line_key_given_allowed_and_nearest(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        VALID_RECIPE
        + "lora:\n  r: 600\ntrain:\n  learning_rat: 2e-4\n  num_train_epochs: three\nprivcy: {}\nlearning_rate: 1\n",
    )
    messages = load_error(path)
    assert "has 5 mistakes" in messages
    assert f"{path}:5  lora.r: given 600, allowed: at most 512 (vLLM serves no larger rank)" in messages
    assert f"{path}:7  train.learning_rat: unknown key; did you mean learning_rate?" in messages
    assert f"{path}:8  train.num_train_epochs: given 'three', allowed: a number" in messages
    assert f"{path}:9  privcy: unknown key; did you mean privacy?" in messages
    assert f"{path}:10  learning_rate: unknown key here; it belongs at train.learning_rate" in messages


def test_a_mistake_is_told_though_the_hardware_file_replaces_the_value(tmp_path: Path) -> None:
    path = write(tmp_path, VALID_RECIPE + "lora: {r: 600}\n")
    assert f"{path}:4  lora.r: given 600" in load_error(path, hardware_name="cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            VALID_RECIPE.replace("path: rows.csv", "path: a.csv, train: b.csv"),
            "exactly one of path, paths, hub, or train",
        ),
        (
            VALID_RECIPE.replace(
                "{source: {path: rows.csv}}", "{source: {path: a.csv}, split: {test: 0.9, validation: 0.2}}"
            ),
            "no rows for train",
        ),
        (
            VALID_RECIPE + "lora: {use_dora: true}\nserve: {model: adapter}\n",
            "serve.model: lora.use_dora: vLLM serves DoRA only",
        ),
        (VALID_RECIPE + "train: {pack_tokens: 1000, max_length: 2000}\n", "a row would not fit"),
        (VALID_RECIPE.replace("kind: classification", "kind: extraction"), "needs json_schema"),
        (VALID_RECIPE.replace("queue.}", "queue., labels: [a, a]}"), "'a' occurs twice"),
        (VALID_RECIPE + "compare: {baselines: [{provider: file}]}\n", "provider file takes path"),
        (VALID_RECIPE + "model: {base: x}\n", "mine.yaml"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "an empty file"),
        ("task: {\n", "mine.yaml:2"),
        (VALID_RECIPE.replace("model: {base: some/model}\n", ""), "model: is missing"),
        (VALID_RECIPE.replace("some/model", "./nowhere"), "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in load_error(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=3", "SET train.lr"),
        ("train.max_steps=many", "given 'many'"),
        ("train.max_steps", "write dotted.key=value"),
        ("train.max_steps=[1", "not a YAML value"),
        ("task.labels=[only]", "at least 2 entries"),
        ("accelerate.distributed_type=MULTI_CPU", "MULTI_CPU goes with use_cpu: true"),
        ("accelerate.distributed_type=FSDP", "HARDWARE=fsdp has both"),
    ],
)
def test_a_wrong_set_is_refused(override: str, message: str) -> None:
    assert message in load_error("classifier", override)


def test_an_unknown_name_gets_the_nearest() -> None:
    assert "Did you mean classifier?" in load_error("clasifier")
    assert "Did you mean gpu?" in load_error("classifier", hardware_name="gpus")


def test_paths_start_at_the_recipe_and_in_set_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, VALID_RECIPE)
    monkeypatch.chdir(ROOT)
    assert load(path, (), "gpu").recipe.data.source.path == str(tmp_path / "rows.csv")
    assert load(path, ["data.source.path=rows.csv"], "gpu").recipe.data.source.path == str(ROOT / "rows.csv")


def test_what_cannot_go_together_is_told_all_at_once_with_its_lines(tmp_path: Path) -> None:
    text = VALID_RECIPE.replace("classification", "preference")
    text += "lora:\n  init_lora_weights: pissa\ntrain:\n  class_weight:\n    billing: 2\n  balanced_sampling: true\n"
    text += "  shots: 2\n"
    path = write(tmp_path, text)
    messages = load_error(path)
    assert f"{path}:5  lora.init_lora_weights: with pissa on nf4 weights" in messages
    assert f"{path}:7  train.class_weight: weights labels, but kind is preference" in messages
    assert f"{path}:9  train.balanced_sampling: balances labels, but kind is preference" in messages
    assert f"{path}:10  train.shots: is for kinds with one answer, and kind is preference" in messages


def test_what_sections_leave_to_each_other_is_filled_in(tmp_path: Path) -> None:
    text = (
        VALID_RECIPE
        + "lora: {use_dora: true}\ntrain: {eval_strategy: steps, save_steps: 40, early_stopping_patience: 2}\n"
    )
    recipe = load(write(tmp_path, text), (), "gpu").recipe
    assert recipe.serve.model == "merged"
    assert recipe.train.load_best_model_at_end
    assert (recipe.train.metric_for_best_model, recipe.train.eval_steps) == ("accuracy", 40)
    assert schema.Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_the_json_schema_is_the_committed_one_and_takes_the_recipes() -> None:
    import jsonschema

    committed = json.loads((RECIPES / ".schema.json").read_text(encoding="utf-8"))
    assert committed == schema.make_json_schema()
    for path in RECIPES.glob("*.yaml"):
        jsonschema.validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")), committed)
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=.schema.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(sorted({*schema.Recipe.model_fields, *Train.model_fields, *Data.model_fields}))


@examples(150)
@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=5))
def test_no_yaml_mapping_crashes_the_loader(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)
    with raises_error(RecipeError, "INS-R001", match=r"mistake|is a mapping|any\.yaml"):
        load(str(path), (), "gpu")


@pytest.mark.parametrize("stage", ["train", "train.head", "data_prep"])
def test_help_imports_nothing_heavy(stage: str) -> None:
    code = "import sys; sys.argv = ['x', '--help']\n"
    code += f"try:\n import {stage}.__main__ as m; m.main()\nexcept SystemExit: pass\n"
    heavy_modules = ("torch", "transformers", "wandb", "datasets", "numpy", "pydantic")
    code += f"print([name for name in {heavy_modules} if name in sys.modules])"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: python -m" in completed.stdout
    assert completed.stdout.splitlines()[-1] == "[]"


def test_the_recipe_of_a_run_is_read_by_the_rules_of_its_day(tmp_path: Path) -> None:
    """A rule of how keys go together that is newer than a run takes away neither its adapter nor what is deployed."""
    (tmp_path / "data").mkdir()
    trained_run = run.create(tmp_path / "mine", load("classifier", (), "cpu").recipe, "digest", {}, tmp_path / "data")
    path = trained_run.folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("optim: adamw_torch", "optim: paged_adamw_8bit"), encoding="utf-8")
    assert trained_run.recipe().train.optim == "paged_adamw_8bit"
    path.write_text(text + "invented: {key: 1}\n", encoding="utf-8")
    with raises_error(
        RecipeError, "INS-R014", match=r"recipe.yaml: this version of insource cannot read it \(invented\)"
    ):
        trained_run.recipe()
