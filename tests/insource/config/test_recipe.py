"""Recipes: what is right is read as written, what is wrong is told in full."""

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from insource.config import hardware
from insource.config import recipe as schema
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import RECIPES, load
from insource.config.metric_names import METRICS
from insource.config.schema import lora, optimizers, train
from insource.config.schema.data import Data
from insource.config.schema.lora import Lora
from insource.config.schema.train import Accelerate, Train
from insource.tasks import TASKS
from insource.tracking import run
from tests.conftest import ROOT
from tests.helpers.errors import raises_error
from tests.helpers.property_tests import examples

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
    with pytest.raises(RecipeError) as error:
        load(path, overrides, hardware_name)
    return str(error.value)


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
        GOOD.replace("some/model}", "some/model, stop: <|end|>}") + "lora: {r: 8}\ntrain: {learning_rate: 1e-4}\n",
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
    by_recipe = load(write(tmp_path, GOOD.replace("some/model", "smollm2")), (), "cpu")
    for loaded in (settings, by_override, by_recipe):
        recipe = loaded.recipe
        assert loaded.hardware == "cpu-smollm2" and recipe.model.base == settings.recipe.model.base
        assert (recipe.model.quantization, recipe.train.learning_rate, recipe.lora.r) == ("none", 3e-4, 16)
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
    path = write(tmp_path, GOOD + "train: {learning_rate: 2e-4}\ncost: {monthly_requests: 1_000_000}\n")
    recipe = load(path, (), "gpu").recipe
    assert (recipe.train.learning_rate, recipe.cost.monthly_requests) == (2e-4, 1_000_000)


def test_all_mistakes_are_told_at_once_with_line_key_given_allowed_and_nearest(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        GOOD
        + "lora:\n  r: 600\ntrain:\n  learning_rat: 2e-4\n  num_train_epochs: three\nprivcy: {}\nlearning_rate: 1\n",
    )
    messages = mistakes(path)
    assert "has 5 mistakes" in messages
    assert f"{path}:5  lora.r: given 600, allowed: at most 512 (vLLM serves no larger rank)" in messages
    assert f"{path}:7  train.learning_rat: unknown key; did you mean learning_rate?" in messages
    assert f"{path}:8  train.num_train_epochs: given 'three', allowed: a number" in messages
    assert f"{path}:9  privcy: unknown key; did you mean privacy?" in messages
    assert f"{path}:10  learning_rate: unknown key here; it belongs at train.learning_rate" in messages


def test_a_mistake_is_told_though_the_hardware_file_replaces_the_value(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "lora: {r: 600}\n")
    assert f"{path}:4  lora.r: given 600" in mistakes(path, hardware_name="cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("path: rows.csv", "path: a.csv, train: b.csv"), "exactly one of path, paths, hub, or train"),
        (
            GOOD.replace("{source: {path: rows.csv}}", "{source: {path: a.csv}, split: {test: 0.9, validation: 0.2}}"),
            "no rows for train",
        ),
        (
            GOOD + "lora: {use_dora: true}\nserve: {model: adapter}\n",
            "serve.model: lora.use_dora: vLLM serves DoRA only",
        ),
        (GOOD + "train: {pack_tokens: 1000, max_length: 2000}\n", "a row would not fit"),
        (GOOD.replace("kind: classification", "kind: extraction"), "needs json_schema"),
        (GOOD.replace("queue.}", "queue., labels: [a, a]}"), "'a' occurs twice"),
        (GOOD + "compare: {baselines: [{provider: file}]}\n", "provider file takes path"),
        (GOOD + "model: {base: x}\n", "mine.yaml"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "an empty file"),
        ("task: {\n", "mine.yaml:2"),
        (GOOD.replace("model: {base: some/model}\n", ""), "model: is missing"),
        (GOOD.replace("some/model", "./nowhere"), "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in mistakes(write(tmp_path, text))


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
    assert message in mistakes("classifier", override)


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


def test_sections_bear_upstream_names_and_every_field_of_lora_is_taken_or_refused_with_the_reason() -> None:
    from accelerate.commands.config.config_args import ClusterConfig
    from peft import LoraConfig
    from peft.tuners.lora.config import LoftQConfig
    from transformers import EarlyStoppingCallback
    from trl import DPOConfig, SFTConfig

    def names(upstream: type) -> set[str]:
        return {field.name for field in dataclasses.fields(upstream)}

    assert not set(Lora.model_fields) & set(lora.UNSUPPORTED_KEYS)
    assert set(Lora.model_fields) | set(lora.UNSUPPORTED_KEYS) == names(LoraConfig)
    assert set(lora.LoftqConfig.model_fields) <= names(LoftQConfig)
    own_fields = {"max_train_rows", "batch_size", "packing", "pack_tokens", "class_weight", "balanced_sampling"}
    own_fields |= {"soft_labels", "shots"}
    stopping_fields = set(inspect.signature(EarlyStoppingCallback.__init__).parameters)
    assert set(Train.model_fields) - own_fields <= names(SFTConfig) | {"beta", "loss_type"} | stopping_fields
    assert {"beta", "loss_type"} <= names(DPOConfig)
    assert not set(Train.model_fields) & set(train.UNSUPPORTED_KEYS)
    assert set(Accelerate.model_fields) <= names(ClusterConfig)


def test_schedules_and_optimizers_take_what_transformers_takes() -> None:
    from transformers import trainer_optimizer
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.training_args import OptimizerNames

    provided = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        if kind.value in optimizers.SCHEDULE_KWARGS:
            accepted = set(inspect.signature(function).parameters) - provided
            assert set(optimizers.SCHEDULE_KWARGS[kind.value]) == accepted, kind
    assert set(optimizers.SCHEDULE_KWARGS) <= {kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION}
    assert set(get_args(optimizers.Optimizer)) <= {optimizer.value for optimizer in OptimizerNames}
    source = inspect.getsource(trainer_optimizer)
    assert all(f'"{name}"' in source for names in optimizers.OPTIM_ARGS.values() for name in names)


def test_the_metrics_that_choose_a_checkpoint_are_those_that_tasks_compute() -> None:
    for kind, names in METRICS.items():
        assert list(TASKS[kind].main_metrics(dict.fromkeys(names, 0.5))) == list(names)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("train: {early_stopping_patience: 3}", "train.early_stopping_patience: needs the score of validation"),
        ("train: {load_best_model_at_end: true}", "set eval_strategy: steps or epoch"),
        ("train: {early_stopping_threshold: 0.01}", "goes with early_stopping_patience"),
        ("train: {metric_for_best_model: accuracy}", "set load_best_model_at_end or early_stopping_patience"),
        ("train: {eval_steps: 10}", "goes with eval_strategy: steps"),
        (
            "train: {eval_strategy: steps, eval_steps: 30, save_steps: 100, early_stopping_patience: 2}",
            "train.save_steps: 100 is no multiple of eval_steps (30); the best must be scored and saved; set 90",
        ),
        (
            "train: {eval_strategy: epoch, early_stopping_patience: 2, metric_for_best_model: rouge_l}",
            "allowed for kind classification: accuracy, macro_f1",
        ),
        ("train: {lr_scheduler_kwargs: {min_lr: 1e-5}}", "unknown to lr_scheduler_type cosine, which takes num_cycles"),
        ("train: {lr_scheduler_type: linear, lr_scheduler_kwargs: {power: 2}}", "which takes none"),
        ("train: {lr_scheduler_type: cosine_with_min_lr}", "needs one of min_lr"),
        (
            "train: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 0.1}}",
            "lr_scheduler_kwargs.min_lr: given 0.1, allowed: below learning_rate (0.0002)",
        ),
        ("train: {lr_scheduler_type: warmup_stable_decay}", "needs num_decay_steps"),
        (
            "train: {lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: many}}",
            "given 'many', allowed: a whole number",
        ),
        ("train: {optim_args: momentum=0.9}", "unknown to optim adamw_torch, which reads none"),
        ("train: {optim: sgd, optim_args: momentum=much}", "momentum: given 'much', allowed: a number"),
        ("train: {optim: lomo}", "given 'lomo', allowed: adamw_torch"),
        ("train: {class_weight: balanced, balanced_sampling: true}", "evens out the classes as class_weight"),
        ("train: {beta: 0.3}", "belongs to preference tuning"),
        ("train: {shots: 3}\ncompare: {head: true}", "train.shots: 3 examples in each prompt"),
        ("cost: {gpu_usd_per_hour: .inf}", "cost.gpu_usd_per_hour: given inf, allowed: a finite number"),
        ("compare: {baselines: [{provider: openai, model: m, encoding: cp1252}]}", "takes no encoding"),
        ("train: {per_device_train_batch_size: 4}", "not supported: set batch_size"),
        ("train: {bf16: true}", "not supported: set accelerate.mixed_precision"),
        ("train: {batch_size: 2}\naccelerate: {distributed_type: MULTI_GPU, num_processes: 4}", "set at least 4"),
        ("train: {optim: paged_adamw_8bit}\naccelerate: {use_cpu: true}", "on a CPU set adamw_8bit"),
        ("accelerate: {num_processes: 2}", "NO is one process"),
        (
            "accelerate: {distributed_type: MULTI_GPU, num_machines: 2, num_processes: 3, machine_rank: 2}",
            "cannot be dealt evenly",
        ),
        ("lora: {modules_to_save: [lm_head]}", "not supported: whole modules in an adapter are refused by vLLM"),
        ("lora: {init_lora_weights: eva}", "EVA reads activations"),
        ("lora: {init_lora_weights: pissa_niter_many}", "allowed: "),
        ("lora: {init_lora_weights: pissa, r: 512}", "lora.r: pissa is exported with twice the rank"),
        ("lora: {init_lora_weights: orthogonal, r: 3}", "needs even ranks"),
        ("lora: {init_lora_weights: mica}", "set model.quantization: none"),
        (
            "lora: {init_lora_weights: loftq}\nmodel: {base: b, quantization: none}",
            "set model.quantization: nf4 or int8",
        ),
        ("lora: {use_dora: true}\nmodel: {base: b, quantization: int8}", "set model.quantization: nf4 or none"),
        ("export: {replay_nf4: true}", "export.replay_nf4: not supported: the merged model is always made of"),
        ("lora: {loftq_config: {loftq_iter: 2}}", "goes with init_lora_weights: loftq"),
        ("lora: {use_dora: true, init_lora_weights: pissa}", "keep one of them"),
        ("lora: {layers_to_transform: [0, 1]}", "goes with target_modules as a list of names"),
        ("lora: {target_parameters: [mlp.experts.down_proj], lora_dropout: 0.1}", "take no dropout"),
    ],
)
def test_what_training_cannot_do_is_refused_with_what_would_do(tmp_path: Path, section: str, message: str) -> None:
    recipe_text = GOOD.replace("model: {base: some/model}\n", "") if "\nmodel:" in section else GOOD
    assert message in mistakes(write(tmp_path, f"{recipe_text}{section}\n"))


def test_what_cannot_go_together_is_told_all_at_once_with_its_lines(tmp_path: Path) -> None:
    text = GOOD.replace("classification", "preference")
    text += "lora:\n  init_lora_weights: pissa\ntrain:\n  class_weight:\n    billing: 2\n  balanced_sampling: true\n"
    text += "  shots: 2\n"
    path = write(tmp_path, text)
    messages = mistakes(path)
    assert f"{path}:5  lora.init_lora_weights: with pissa on nf4 weights" in messages
    assert f"{path}:7  train.class_weight: weights labels, but kind is preference" in messages
    assert f"{path}:9  train.balanced_sampling: balances labels, but kind is preference" in messages
    assert f"{path}:10  train.shots: is for kinds with one answer, and kind is preference" in messages


def test_weights_of_labels_that_there_are_not_are_refused(tmp_path: Path) -> None:
    text = GOOD.replace("queue.}", "queue., labels: [billing, refund]}") + "train: {class_weight: {biling: 2}}\n"
    assert "train.class_weight.biling: is not in task.labels: billing, refund" in mistakes(write(tmp_path, text))


def test_what_sections_leave_to_each_other_is_filled_in(tmp_path: Path) -> None:
    text = GOOD + "lora: {use_dora: true}\ntrain: {eval_strategy: steps, save_steps: 40, early_stopping_patience: 2}\n"
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
