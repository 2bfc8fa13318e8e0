"""Models that see, on tasks that are text: Gemma 3 as it is published from 4B on, small and with random weights."""

from typing import Any

import pytest
import torch
import transformers
from accelerate import FullyShardedDataParallelPlugin

from insource.config.schema.lora import Lora
from train.model import base, multimodal

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 300,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def gemma() -> Any:
    config = transformers.Gemma3Config(
        text_config=TEXT, vision_config={**VISION, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(5)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def list_trainable_parameters(model: Any, **lora: Any) -> list[str]:
    return [
        name
        for name, parameter in base.add_adapter(model, Lora(r=4, **lora), 1).named_parameters()
        if parameter.requires_grad
    ]


def test_adapters_go_on_the_text_alone_and_each_gets_a_gradient(gemma: Any) -> None:
    model = base.add_adapter(gemma, Lora(r=4), 1)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * TEXT["num_hidden_layers"]
    assert all(".language_model.layers." in name for name in trained)
    ids = torch.arange(5, 25)[None]
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    # DDP waits in its second update for those that got none in its first.
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []


def test_a_projector_that_is_a_linear_layer_itself_gets_no_adapter(gemma: Any) -> None:
    gemma.model.multi_modal_projector = torch.nn.Linear(32, 32)
    names = list_trainable_parameters(gemma)
    assert len(names) == 2 * 7 * TEXT["num_hidden_layers"]
    assert not [name for name in names if "multi_modal_projector" in name]


@pytest.mark.parametrize("pattern", [["q_proj"], r".*\.q_proj"])
def test_what_a_recipe_leaves_out_is_left_out_besides(gemma: Any, pattern: Any) -> None:
    names = list_trainable_parameters(gemma, exclude_modules=pattern)
    assert len(names) == 2 * 6 * TEXT["num_hidden_layers"]
    assert not [name for name in names if "q_proj" in name or "vision" in name]


def test_a_model_that_knows_text_alone_is_left_as_it_is(gemma: Any) -> None:
    text_model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**TEXT))
    assert multimodal.list_non_text_modules(text_model) == [] and multimodal.build_exclude_modules(
        text_model, ["q_proj"]
    ) == ["q_proj"]
    assert multimodal.list_non_text_modules(gemma) == ["model.vision_tower", "model.multi_modal_projector"]


def test_fsdp_finds_the_layers_that_the_model_names(gemma: Any) -> None:
    gemma._no_split_modules = [*gemma._no_split_modules, "SiglipTextEmbeddings"]
    with pytest.raises(ValueError, match="Could not find the transformer layer class"):
        FullyShardedDataParallelPlugin(auto_wrap_policy="TRANSFORMER_BASED_WRAP").set_auto_wrap_policy(gemma)
    multimodal.fix_no_split_modules(gemma)
    FullyShardedDataParallelPlugin(auto_wrap_policy="TRANSFORMER_BASED_WRAP").set_auto_wrap_policy(gemma)
    assert "Gemma3DecoderLayer" in gemma._no_split_modules
