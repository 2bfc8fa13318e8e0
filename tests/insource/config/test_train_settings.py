"""Settings of training: upstream names, schedules, optimizers and metrics."""

import dataclasses
import inspect
from pathlib import Path
from typing import get_args

import pytest

from insource.config.schema import lora, optimizers, train
from insource.config.schema.lora import Lora
from insource.config.schema.train import Accelerate, Train
from tests.helpers.recipe_errors import VALID_RECIPE, load_error, write


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
    recipe_text = VALID_RECIPE.replace("model: {base: some/model}\n", "") if "\nmodel:" in section else VALID_RECIPE
    assert message in load_error(write(tmp_path, f"{recipe_text}{section}\n"))


def test_weights_of_labels_that_there_are_not_are_refused(tmp_path: Path) -> None:
    text = (
        VALID_RECIPE.replace("queue.}", "queue., labels: [billing, refund]}") + "train: {class_weight: {biling: 2}}\n"
    )
    assert "train.class_weight.biling: is not in task.labels: billing, refund" in load_error(write(tmp_path, text))
