"""A classification head: one number for each label from the last token of a prompt, however rows share a batch."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.tracking.run import Run
from tests.helpers import commands
from tests.train.test_packing import COST, PREFIX, TINY
from tests.train.test_packing_check import own_attention
from train.evaluate import packing_check
from train.head import validation
from train.head.model import find_dequantized_base
from train.head.worker import training_recipe
from train.loop import losses
from train.model import base, classification_head
from train.packing import packing_plan
from train.packing.attention import pack_attention
from train.packing.collate import collate_pack
from train.packing.packing_plan import Pack, PackingMode, TokenizedRow

LABELS = ("late", "lost", "broken")
PAD = 0
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(POCKET).save_pretrained(folder)
    return folder


def recipe(base_model: Path | str, *settings: str) -> Recipe:
    overrides = [f"model.base={base_model}", "model.quantization=none", "lora.r=4", "accelerate.mixed_precision=no"]
    return load("classifier", [*overrides, *settings], "cpu").recipe


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    """A base with a head and LoRA weights that are not zero."""
    settings = recipe(tiny_base)
    torch.manual_seed(1)
    adapted = base.add_adapter(base.load_base_model(settings, labels=LABELS), settings.lora, 3, "SEQ_CLS")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return adapted.eval()


def rows(count: int = 9) -> list[TokenizedRow]:
    """Rows of different lengths behind one prefix, each with its class."""
    return [
        TokenizedRow(f"r{index}", [*PREFIX, *range(5, 6 + (index * 5) % 8), 30 + index], ([index % len(LABELS)],))
        for index in range(count)
    ]


def single_logits(model: Any, prompts: Sequence[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([classification_head.compute_padded_logits(model, [prompt], PAD) for prompt in prompts])


@pytest.mark.parametrize("pad_token_id", [PAD, 30, 33])
def test_a_padded_batch_gives_the_logits_of_each_row_by_itself(model: Any, pad_token_id: int) -> None:
    """Also if the padding token is the last token of some prompt, where an id could not tell them apart."""
    prompts = [row.prompt_ids for row in rows()]
    assert len({len(prompt) for prompt in prompts}) > 3
    with torch.inference_mode():
        batch = classification_head.compute_padded_logits(model, prompts, pad_token_id)
    assert batch.shape == (len(prompts), len(LABELS)) and batch.dtype == torch.float32
    torch.testing.assert_close(batch, single_logits(model, prompts), **TOLERANCE)


def test_the_logits_are_those_of_transformers_own_class(model: Any) -> None:
    prompts = [row.prompt_ids for row in rows()]
    classifier = model.get_base_model()
    assert isinstance(classifier, transformers.LlamaForSequenceClassification)
    expected = [model(input_ids=torch.tensor([prompt])).logits for prompt in prompts]
    torch.testing.assert_close(single_logits(model, prompts), torch.cat(expected).detach(), **TOLERANCE)


@pytest.mark.parametrize("mode", ["shared_prefix", "bfd", "none"])
def test_packs_have_the_logits_the_loss_and_the_gradients_of_single_rows(model: Any, mode: PackingMode) -> None:
    training_rows = rows()
    prefix = len(PREFIX) if mode == "shared_prefix" else 0
    batch = collate_pack(Pack(tuple(training_rows), prefix), mode, torch.device("cpu"), PAD)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    with pack_attention(model.config, batch):
        logits, classes, numbers = losses.class_logits(model, batch)
        loss, metrics = losses.classification_loss(model, batch, 0.1)
        packed = gradients(loss)
    assert numbers.tolist() == list(range(len(training_rows)))
    assert classes.tolist() == [row.completions[0][0] for row in training_rows]
    prompts = [row.prompt_ids for row in training_rows]
    separate = torch.cat([classification_head.compute_padded_logits(model, [prompt], PAD) for prompt in prompts])
    torch.testing.assert_close(logits, separate, **TOLERANCE)
    expected = torch.nn.functional.cross_entropy(separate, classes, reduction="sum")
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    assert metrics["accuracy"][0] == (separate.argmax(-1) == classes).sum()
    for actual, wanted in zip(packed, gradients(expected), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-5)


def test_the_adapter_contains_the_head_and_can_be_merged(model: Any, tiny_base: Path, tmp_path: Path) -> None:
    prompts = [row.prompt_ids for row in rows()]
    expected = single_logits(model, prompts)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(base.load_base_model(recipe(tiny_base), labels=LABELS), tmp_path).eval()
    torch.testing.assert_close(single_logits(loaded, prompts), expected, rtol=0, atol=0)
    merged = loaded.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(single_logits(merged, prompts), expected, **TOLERANCE)


def test_lora_has_the_settings_of_the_recipe_and_not_the_head(model: Any) -> None:
    config = model.peft_config["default"]
    assert (config.r, config.task_type) == (4, "SEQ_CLS") and "score" in config.modules_to_save
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    assert not any("lora_" in name and "score" in name for name in trainable)
    projections = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable if "lora_" in name}
    assert projections == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_quantized_base_keeps_its_head_in_float32() -> None:
    quantized = base.load_base_model(load("classifier", ["model.quantization=nf4"], "cpu").recipe, labels=LABELS)
    assert type(quantized.score) is torch.nn.Linear and quantized.score.weight.dtype == torch.float32
    assert type(quantized.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_a_base_without_such_a_class_is_refused(tmp_path: Path) -> None:
    config = transformers.CLIPTextConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"compare\.head: transformers has no class with a classification head"):
        base.load_base_model(recipe(POCKET).with_model(base=str(tmp_path)), labels=LABELS)


def test_validation_gives_probabilities_of_all_labels_in_the_order_of_the_rows(model: Any) -> None:
    validation_rows = rows(40)
    plan = packing_plan.build_packing_plan(validation_rows, "shared_prefix", 512, 16, COST)
    predicted = validation.predict_log_probabilities(model, validation_rows, plan, PAD)
    expected = torch.log_softmax(single_logits(model, [row.prompt_ids for row in validation_rows]), dim=-1)
    torch.testing.assert_close(torch.tensor(predicted), expected, **TOLERANCE)
    assert validation.most_probable(LABELS, [-3.0, -0.1, -4.0]) == ("lost", -0.1)


def test_a_base_that_ignores_the_mask_trains_its_head_row_by_row(model: Any, tiny_base: Path, tmp_path: Path) -> None:
    settings, messages = recipe(tiny_base), list[str]()
    plan = packing_plan.build_packing_plan(rows(), "shared_prefix", 4096, 9, COST)
    arguments = (model, rows(), plan, PAD, messages.append, losses.class_log_probabilities)
    assert packing_check.verify_packing(settings, tmp_path / "good", *arguments).mode == "shared_prefix"
    with own_attention():
        assert packing_check.verify_packing(settings, tmp_path / "bad", *arguments).mode == "none"
    # The record that the adapter's training left is read: the model computes its mask again.
    assert packing_check.verify_packing(settings, tmp_path / "bad", *arguments).mode == "none"
    assert len(messages) == 2 and "computes a pack differently from its rows" in messages[1]


@pytest.mark.slow(minutes=1)
def test_a_head_answers_on_the_dequantized_base_where_its_device_holds_it(
    tmp_path_factory: pytest.TempPathFactory, small_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_folder = commands.copy_exported_runs(tmp_path_factory, small_recipe, "heads")
    run = Run((runs_folder / "small" / "latest").resolve())
    settings = run.recipe()
    on_gpu = settings.model_copy(update={"accelerate": settings.accelerate.model_copy(update={"use_cpu": False})})
    assert find_dequantized_base(run, settings) is not None, "main memory holds it"
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda *_: 1.0)
    # The base takes 20 MB in float32, and dequantized weights may take 40% of a device.
    for total_memory, fits in ((24 * 2**30, True), (2**24, False)):
        properties = SimpleNamespace(total_memory=total_memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, properties=properties: properties)
        assert (find_dequantized_base(run, on_gpu) is not None) == fits


def test_the_head_trains_by_the_recipe_of_the_adapter_with_its_own_rate() -> None:
    adapter_recipe = recipe(POCKET, "train.num_train_epochs=2", "train.seed=4")
    settings = training_recipe(adapter_recipe, 5e-4)
    assert settings.train.learning_rate == 5e-4 and settings.train.eval_strategy == "epoch"
    assert settings.train.selects_best_checkpoint and settings.train.metric_for_best_model == "accuracy"
    same = {"num_train_epochs", "max_steps", "batch_size", "seed", "optim", "lr_scheduler_type", "warmup_steps"}
    assert settings.train.model_dump(include=same) == adapter_recipe.train.model_dump(include=same)
    assert settings.lora == adapter_recipe.lora
