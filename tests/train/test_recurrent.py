"""Recurrent layers behind a shared prefix: the gradients of separate rows, and the answers of plain decoding.

The models have random weights. Real recurrent bases were not run.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from bench.recurrent import own_layers_off
from insource.tasks import classification
from tests.helpers.plain_decoding import assert_equals_plain_decoding, decode_plainly
from tests.helpers.recurrent_models import CONFIGS, OTHER_CONFIGS, build_model
from tests.train.test_packing import PAIRS, PREFIX, ROWS, small_blocks  # noqa: F401 - a fixture among them
from tests.train.test_shared_cache import SPEC, pass_sizes, prompts, token_settings  # noqa: F401 - a fixture among them
from train.evaluate import decoding_memory
from train.evaluate.constrained_decoding import decode_answers
from train.evaluate.row_cache import Span
from train.evaluate.shared_cache import SharedCache
from train.loop import losses
from train.model import recurrent_layers
from train.packing import attention, collate, model_support, self_check
from train.packing.attention_blocks import SHARED_PREFIX, Implementation
from train.packing.branch_states import Segment, find_segments
from train.packing.packing_plan import Pack, PackingMode, TokenizedRow

EVERY_KIND = [*CONFIGS, *[pytest.param(name, marks=pytest.mark.nightly) for name in OTHER_CONFIGS]]
SMALL = {"vocab_size": 256}


def gradients(
    model: Any,
    mode: PackingMode,
    packs: Sequence[Pack],
    objective: str = "imitate",
    kernel: Implementation = SHARED_PREFIX,
) -> dict[str, Any]:
    model.train().zero_grad()
    for pack in packs:
        batch = collate.collate_pack(pack, mode, model.device, 0, kernel)
        with attention.pack_attention(model.config, batch):
            losses.OBJECTIVES[objective](model, batch, 0.1)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def largest_difference(actual: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest relative difference of the gradients of a parameter."""
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - gradient).norm() / gradient.norm()) for name, gradient in expected.items())


def measure(model: Any, rows: Sequence[TokenizedRow]) -> self_check.PackingDifference:
    return self_check.measure_difference(
        model.eval(),
        Pack(tuple(rows), len(PREFIX)),
        log_probabilities=losses.log_probabilities,
        attention=SHARED_PREFIX,
        pad_token_id=0,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_pack_has_the_gradients_of_separate_rows(name: str, checkpointing: bool) -> None:
    model = build_model(name, **SMALL)
    assert model_support.supported_packing("shared_prefix", model.config, 80) == ("shared_prefix", None)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = gradients(model, "none", [Pack((row,), 0) for row in ROWS])
    for kernel in (SHARED_PREFIX, "sdpa"):
        actual = gradients(model, "shared_prefix", [Pack(tuple(ROWS), len(PREFIX))], kernel=kernel)
        assert largest_difference(actual, expected) <= 1e-5


@pytest.mark.parametrize("prefix", [0, len(PREFIX)])
@pytest.mark.parametrize("name", CONFIGS)
def test_both_answers_of_a_pair_start_from_their_prompt(name: str, prefix: int) -> None:
    model = build_model(name, **SMALL)
    expected = gradients(model, "none", [Pack((row,), 0) for row in PAIRS], "prefer")
    actual = gradients(model, "shared_prefix", [Pack(tuple(PAIRS), prefix)], "prefer")
    assert largest_difference(actual, expected) <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_the_self_check_finds_layers_that_read_a_pack_as_one_sequence(name: str) -> None:
    model = build_model(name, **SMALL)
    assert not measure(model, ROWS).exceeds("float32")
    with own_layers_off():
        assert measure(model, ROWS).exceeds("float32")


def test_transformers_own_functions_are_back_after_a_pack_and_after_an_error() -> None:
    model = build_model("qwen3_5", **SMALL)
    modeling: Any = transformers.models.qwen3_5.modeling_qwen3_5
    names = (recurrent_layers.CONVOLUTION, recurrent_layers.DELTA_RULE)
    functions = [getattr(modeling, name) for name in names]
    batch = collate.collate_pack(Pack(tuple(ROWS), len(PREFIX)), "shared_prefix", "cpu", 0, SHARED_PREFIX)
    with pytest.raises(KeyError), attention.pack_attention(model.config, batch):
        assert all(getattr(modeling, name) is not function for name, function in zip(names, functions, strict=True))
        raise KeyError
    assert [getattr(modeling, name) for name in names] == functions


def test_a_pack_is_cut_where_a_row_or_an_answer_begins() -> None:
    # Prefix, a row with one answer, a row with two answers, and padding.
    row_ids, branch_ids = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 1, 1, 0, 0, 1, 2, 2]
    assert find_segments(row_ids, branch_ids) == (
        Segment(0, 3, -1),
        Segment(3, 2, 0),
        Segment(5, 2, 0),
        Segment(7, 1, 2),
        Segment(8, 2, 2),
    )


def test_rows_stay_apart_where_nothing_splits_them() -> None:
    others = (transformers.MambaConfig(), transformers.JambaConfig(num_hidden_layers=8))
    for config in (*others, *[make_config(**SMALL) for make_config in CONFIGS.values()]):
        for requested in ("shared_prefix", "bfd") if config in others else ("bfd",):
            mode, reason = model_support.supported_packing(requested, config, 80)
            assert mode == "none" and config.get_text_config().model_type in str(reason)
        assert model_support.supported_packing("none", config, 80) == ("none", None)


@pytest.mark.parametrize("name", [*CONFIGS, *OTHER_CONFIGS])
def test_the_memory_of_decoding_counts_the_states(name: str, tokenizer: Any) -> None:
    model = build_model(name, **token_settings(tokenizer)).eval()
    cache = SharedCache(model, 1)
    with torch.inference_mode():
        cache.logits([Span(0, 0, [5, 6, 7], 1)])
    assert cache.states is not None
    states = sum(state.nbytes for state in cache.states.states)
    assert decoding_memory.state_bytes(model.config.get_text_config()) == states


@pytest.mark.usefixtures("pass_sizes")
@pytest.mark.parametrize("name", EVERY_KIND)
def test_rows_behind_one_state_answer_as_in_plain_decoding(name: str, tokenizer: Any) -> None:
    model = build_model(name, **token_settings(tokenizer)).eval()
    grammar, messages = classification.grammar(SPEC), list[str]()
    answers = decode_answers(model, tokenizer, prompts(tokenizer), grammar, on_fallback=messages.append)
    assert not messages
    for prompt, answer in zip(prompts(tokenizer), answers, strict=True):
        token_ids, log_probability = decode_plainly(model, tokenizer, prompt, grammar, 64)
        assert answer.token_ids == token_ids and answer.log_probability == pytest.approx(log_probability, abs=1e-3)
    assert_equals_plain_decoding(model, tokenizer, prompts(tokenizer), None, max_new_tokens=4)
