"""Decoding behind a prefix that is kept once: on layers of every kind, and in how much memory."""

import weakref
from collections.abc import Iterable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from insource.config.schema.data import Task
from insource.tasks import classification
from insource.tasks.rendering import chat_template
from tests.helpers.plain_decoding import assert_equals_plain_decoding
from train.evaluate import shared_cache
from train.evaluate.constrained_decoding import decode_answers
from train.evaluate.row_cache import Span
from train.evaluate.shared_cache import PassLimits, SharedCache
from train.packing.attention_blocks import SHARED_PREFIX

SPEC = classification.make_spec(
    Task(kind="classification", instruction="Say what the user wants."),
    {"find_bus": "Find a bus", "find_bus_stop": "Find where it stops", "get weather": "Weather", "other": ""},
)
TEXTS = ["I need a bus", "rain?", "Will it rain in San Jose on Monday, and shall I take my umbrella with me?"]
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SIX = {**TINY, "num_hidden_layers": 6}
CONFIGS = {
    "llama": lambda **kwargs: transformers.LlamaConfig(**TINY, **kwargs),
    "qwen3": lambda **kwargs: transformers.Qwen3Config(**TINY, **kwargs),
    "gemma 2, whose logits are capped": lambda **kwargs: transformers.Gemma2Config(**TINY, sliding_window=32, **kwargs),
    # Shorter than the prefix, and longer than most rows.
    "gemma 3, window of 16": lambda **kwargs: transformers.Gemma3TextConfig(**SIX, sliding_window=16, **kwargs),
    "mistral, window of 16": lambda **kwargs: transformers.MistralConfig(**TINY, sliding_window=16, **kwargs),
    "mistral, window of 1000": lambda **kwargs: transformers.MistralConfig(**TINY, sliding_window=1000, **kwargs),
    "one head of keys": lambda **kwargs: transformers.LlamaConfig(**{**TINY, "num_key_value_heads": 1}, **kwargs),
}
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


def build_model(config: Any, attention: str = "sdpa") -> Any:
    torch.manual_seed(5)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def prompts(tokenizer: Any) -> list[list[int]]:
    return chat_template.encode_prompts(tokenizer, [classification.messages(SPEC, {"text": text}) for text in TEXTS])


def token_settings(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


@pytest.fixture(params=["in one piece", "in many"])
def pass_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of few tokens that attend a few at a time, as long rows need them, and without."""
    if request.param == "in many":
        monkeypatch.setattr(shared_cache, "CPU_LIMITS", PassLimits(pass_tokens=37, scores=4000))
        monkeypatch.setattr(shared_cache, "CHUNK_TOKENS", 11)


@pytest.mark.usefixtures("pass_sizes")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_layer_answers_as_in_plain_decoding(name: str, tokenizer: Any) -> None:
    model = build_model(CONFIGS[name](**token_settings(tokenizer)))
    assert_equals_plain_decoding(model, tokenizer, prompts(tokenizer), classification.grammar(SPEC))
    assert_equals_plain_decoding(model, tokenizer, prompts(tokenizer), None, max_new_tokens=4)


def test_a_head_that_has_an_adapter_answers_as_in_plain_decoding(tokenizer: Any) -> None:
    config = peft.LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build_model(CONFIGS["llama"](**token_settings(tokenizer))), config).eval()
    assert_equals_plain_decoding(model, tokenizer, prompts(tokenizer), classification.grammar(SPEC))


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", SHARED_PREFIX])
def test_however_a_model_attends_otherwise_it_does_so_afterwards(attention: str, tokenizer: Any) -> None:
    model = build_model(CONFIGS["qwen3"](**token_settings(tokenizer)))
    expected = decode_answers(model, tokenizer, prompts(tokenizer), classification.grammar(SPEC))
    model.config._attn_implementation = attention
    assert decode_answers(model, tokenizer, prompts(tokenizer), classification.grammar(SPEC)) == expected
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("name", "reason"),
    [("jamba", "jamba has layers that carry a state"), ("bloom", "bloom attends in its own way")],
)
def test_a_model_that_cannot_share_a_prefix_computes_each_prompt_and_that_is_told(
    name: str, reason: str, tokenizer: Any
) -> None:
    config = {
        "jamba": lambda: transformers.JambaConfig(
            **{**TINY, "num_hidden_layers": 2},
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=1,
            use_mamba_kernels=False,
            **token_settings(tokenizer),
        ),
        "bloom": lambda: transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, **token_settings(tokenizer)),
    }[name]()
    model = build_model(config, "eager" if name == "bloom" else "sdpa")
    messages: list[str] = []
    answers = decode_answers(
        model, tokenizer, prompts(tokenizer), classification.grammar(SPEC), on_fallback=messages.append
    )
    assert len(messages) == 1 and messages[0].startswith(reason)
    assert answers == assert_equals_plain_decoding(model, tokenizer, prompts(tokenizer), classification.grammar(SPEC))


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside of it hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self._count(tree_leaves(outputs), tree_leaves((args, kwargs)))
        return outputs

    def _count(self, outputs: Iterable[Any], inputs: Iterable[Any]) -> None:
        input_storages = {tensor.untyped_storage()._cdata for tensor in inputs if isinstance(tensor, torch.Tensor)}
        for tensor in outputs:
            if (
                not isinstance(tensor, torch.Tensor)
                or (storage := tensor.untyped_storage())._cdata in self.known | input_storages
            ):
                continue
            self.known.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def test_64_rows_behind_700_tokens_of_a_4b_model_fit_beside_its_weights_on_24_gb() -> None:
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**QWEN3_4B)).to(torch.bfloat16).eval()
    weights = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(module.weight.numel() for module in model.model.modules() if isinstance(module, torch.nn.Linear))
    assert 4.0e9 < weights < 4.1e9
    rows, own_tokens, answer_tokens = 64, 60, 64
    with torch.inference_mode(), PeakBytes() as memory:
        prefix = SharedCache(model, 1)
        prefix.logits([Span(0, 0, [1] * 700, 0)])
        cache = SharedCache(model, rows, prefix)
        assert cache.limits == shared_cache.GPU_LIMITS
        cache.logits([Span(row, 0, [1] * own_tokens, 1) for row in range(rows)])
        for position in range(own_tokens, own_tokens + answer_tokens):
            logits = cache.logits([Span(row, position, [1], 1) for row in range(rows)])
            assert logits.shape == (rows, QWEN3_4B["vocab_size"])
    # The weights both in 4 bits (with a scale of 8 bits a 64) and dequantized.
    resident = 2 * weights + linear * (0.5 + 1 / 64 + 0.001)
    tokens = 700 + rows * (own_tokens + answer_tokens)
    cached = tokens * 36 * 2 * 8 * 128 * 2
    assert cached < memory.most < 4e9
    assert resident + memory.most < 24e9 * 0.9
