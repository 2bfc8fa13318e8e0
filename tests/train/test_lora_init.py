"""What a recipe can ask of adapter, base and optimizer: done for real, exported as it was trained."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from ruamel.yaml import YAML

from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema import optimizers
from train.export import adapter
from train.model import base, lora_init

IDS = torch.arange(40).reshape(2, 20) * 37 % 2000 + 5
RS_PATTERNS = (
    "lora={init_lora_weights: pissa, r: 8, lora_alpha: 8, use_rslora: true, target_modules: [q_proj, down_proj], "
    "rank_pattern: {q_proj: 4}, alpha_pattern: {down_proj: 20}, layers_to_transform: [0, 2]}"
)
SMALL = "lora={r: 8, lora_alpha: 16, init_lora_weights: %s}"


def recipe(lora: str, quantization: str = "none") -> Recipe:
    keys = YAML(typ="safe").load(lora.removeprefix("lora="))
    overrides = [f"lora.{key}={json.dumps(value)}" for key, value in keys.items()]
    return load("classifier", [f"model.quantization={quantization}", *overrides], "cpu").recipe


def initialized_model(settings: Recipe) -> Any:
    return base.add_adapter(base.load_base_model(settings), settings.lora, seed=3)


def train(model: Any, updates: int = 3) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=2e-3), []
    model.train()
    for _ in range(updates):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def weight_error(model: Any, original: Any) -> float:
    """How far base and adapter together are from the weights as published, relative, over all layers."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    error, total = 0.0, 0.0
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            weight = original.get_submodule(name).weight.detach()
            adapted = (
                dequantize_module_weight(layer.get_base_layer()).float() + layer.get_delta_weight("default").detach()
            )
            error += float((weight - adapted).square().sum())
            total += float(weight.square().sum())
    return (error / total) ** 0.5


@pytest.mark.parametrize("variant", ["true", "gaussian", "orthogonal", "mica", "pissa", "pissa_niter_4", "olora"])
def test_on_an_unquantized_base_every_beginning_leaves_the_model_as_it_is(variant: str) -> None:
    settings = recipe(SMALL % variant)
    model = base.load_base_model(settings)
    base_logits = logits(model)
    adapted_logits = logits(base.add_adapter(model, settings.lora, seed=3))
    torch.testing.assert_close(adapted_logits, base_logits, atol=2e-3, rtol=0)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_what_begins_with_a_part_of_the_base_loses_less_by_quantization(quantization: str) -> None:
    original = base.load_base_model(recipe(SMALL % "true"))
    errors = {
        variant: weight_error(initialized_model(recipe(SMALL % variant, quantization)), original)
        for variant in ("true", "orthogonal", "pissa", "olora", "loftq")
    }
    assert errors["orthogonal"] == pytest.approx(errors["true"], rel=1e-3)
    assert errors["pissa"] < 0.97 * errors["true"]
    assert errors["loftq"] < 0.97 * errors["true"]
    assert errors["olora"] < 1.05 * errors["true"]


def test_more_rounds_of_loftq_lose_less() -> None:
    original = base.load_base_model(recipe(SMALL % "true"))
    lora = "lora={r: 8, lora_alpha: 16, init_lora_weights: loftq, loftq_config: {loftq_iter: %d}}"
    one_round, four_rounds = (
        weight_error(initialized_model(recipe(lora % rounds, "nf4")), original) for rounds in (1, 4)
    )
    assert four_rounds < one_round


@pytest.mark.parametrize("variant", ["pissa", "loftq"])
def test_a_beginning_takes_effect_after_forwards_and_is_the_same_again(variant: str) -> None:
    settings = recipe(SMALL % variant, "int8")
    model = base.load_base_model(settings)
    untuned = logits(model)
    adapted_logits = logits(base.add_adapter(model, settings.lora, seed=3))
    torch.testing.assert_close(logits(initialized_model(settings)), adapted_logits, atol=0, rtol=0)
    # The rest of the base alone would answer otherwise altogether.
    assert (adapted_logits - untuned).square().mean() < 0.05 * untuned.square().mean()


@pytest.mark.parametrize(
    "lora",
    [SMALL % "true", SMALL % "pissa", SMALL % "olora", RS_PATTERNS, "lora={r: 8, lora_alpha: 16, use_dora: true}"],
    ids=["plain", "pissa", "olora", "rslora and patterns", "dora"],
)
def test_the_base_as_published_with_the_exported_adapter_answers_as_the_trained_model(
    lora: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    settings = recipe(lora)
    model = initialized_model(settings)
    untuned = logits(model)
    train(model)
    trained_logits = logits(model)
    assert (trained_logits - untuned).abs().max() > 0.1
    adapter._save_weights(model, settings, tmp_path, None)
    exported = PeftModel.from_pretrained(base.load_base_model(settings), tmp_path)
    torch.testing.assert_close(logits(exported), trained_logits, atol=2e-3, rtol=0)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["init_lora_weights"] is True
    assert max(config["r"], *config["rank_pattern"].values(), 0) == settings.lora.largest_rank


@pytest.mark.parametrize("variant", ["pissa", "loftq"])
def test_on_nf4_the_exported_adapter_is_the_whole_change_that_training_made(variant: str) -> None:
    from peft.tuners.lora import LoraLayer

    model = initialized_model(recipe(SMALL % variant, "nf4"))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    initial_deltas = [layer.get_delta_weight("default").clone() for layer in layers]
    losses = train(model)
    assert losses[-1] < losses[0]
    tensors, config = lora_init.to_standard_lora(model)
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    scaling = config.lora_alpha / config.r
    for layer, initial_delta, name in zip(layers, initial_deltas, names, strict=True):
        exported = scaling * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        torch.testing.assert_close(exported, layer.get_delta_weight("default") - initial_delta, atol=1e-5, rtol=0)


def test_dora_learns_on_a_quantized_base_and_its_magnitudes_are_float32() -> None:
    model = initialized_model(recipe("lora={r: 8, lora_alpha: 16, use_dora: true}", "nf4"))
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    losses = train(model, 6)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_on_a_quantized_base_are_the_same_after_an_evaluation(quantization: str) -> None:
    model = initialized_model(recipe(SMALL % "gaussian", quantization))
    train(model)

    def gradients() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return torch.cat(
            [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        ).clone()

    expected = gradients()
    logits(model.eval())
    assert torch.equal(gradients(), expected)
    assert expected.norm() > 0


def test_layers_and_exceptions_are_followed() -> None:
    lora = "lora={target_modules: [q_proj, v_proj], exclude_modules: [v_proj], layers_to_transform: 1}"
    trained = [
        name for name, parameter in initialized_model(recipe(lora, "nf4")).named_parameters() if parameter.requires_grad
    ]
    assert len(trained) == 2
    assert all(".layers.1.self_attn.q_proj.lora_" in name for name in trained)


def test_experts_of_a_mixture_are_parameters_that_can_be_adapted() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=2100, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    lora = "lora={r: 4, target_modules: [q_proj], target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]}"
    model = base.add_adapter(Qwen3MoeForCausalLM(config), recipe(lora).lora, seed=3)
    assert sum("experts" in name for name, parameter in model.named_parameters() if parameter.requires_grad) == 4
    losses = train(model, 6)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optim", [name for name in get_args(optimizers.Optimizer) if not name.startswith("paged_")])
def test_optimizers_that_a_recipe_can_name_run_on_a_cpu(optim: str) -> None:
    from transformers import Trainer, TrainingArguments

    settings = {"sgd": "momentum=0.9,nesterov=true", "adagrad": "lr_decay=0.01", "rmsprop": "alpha=0.9,centered=true"}
    arguments = TrainingArguments(
        "unused", optim=optim, optim_args=settings.get(optim), learning_rate=0.01, use_cpu=True, report_to="none"
    )
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 128)
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, layer)
    optimizer, rows = kind(layer.parameters(), **kwargs), torch.randn(8, 128)
    losses = []
    for _ in range(10):
        loss = (layer(rows) - rows).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("lora", "served"),
    [
        (SMALL % "pissa", True),
        (SMALL % "orthogonal", True),
        (SMALL % "mica", True),
        (RS_PATTERNS, True),
        ("lora={r: 8, use_dora: true}", False),
    ],
)
def test_vllm_takes_what_the_recipe_says_that_it_takes(lora: str, served: bool, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    settings = recipe(lora)
    assert (settings.lora.unservable_reason is None) == served
    adapter._save_weights(initialized_model(settings), settings, tmp_path, None)
    helper = PEFTHelper.from_local_dir(str(tmp_path), 2048)
    limits = LoRAConfig(max_lora_rank=adapter.max_lora_rank(settings.lora))
    if served:
        helper.validate_legal(limits)
    else:
        with pytest.raises(ValueError, match="DoRA"):
            helper.validate_legal(limits)
