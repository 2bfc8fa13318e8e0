"""Greedy decoding in its simplest form: one row at a time, the complete sequence at each step, no cache."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import xgrammar

from train.evaluate.constrained_decoding import DecodedAnswer, compile_grammar, decode_answers


def decode_plainly(
    model: Any, tokenizer: Any, prompt: list[int], grammar: str | None, max_tokens: int
) -> tuple[list[int], float]:
    """Return the tokens of the answer, and their log-probability among the allowed tokens."""
    matcher = None
    if grammar:
        vocabulary_size = model.config.get_text_config().vocab_size
        matcher = xgrammar.GrammarMatcher(compile_grammar(tokenizer, vocabulary_size, grammar))
    ids: list[int] = []
    log_probability = 0.0
    while len(ids) < max_tokens and not (matcher.is_terminated() if matcher else ids[-1:] == [tokenizer.eos_token_id]):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[:, -1].float()
        if matcher:
            mask = xgrammar.allocate_token_bitmask(1, logits.shape[1])
            matcher.fill_next_token_bitmask(mask)
            xgrammar.apply_token_bitmask_inplace(logits, mask)
        best = logits.log_softmax(-1).max(-1)
        ids.append(int(best.indices))
        log_probability += float(best.values)
        if matcher:
            assert matcher.accept_token(ids[-1])
    return ids, log_probability


def assert_equals_plain_decoding(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], grammar: str | None, max_new_tokens: int = 64
) -> list[DecodedAnswer]:
    """Assert that `decode_answers` gives the answers of plain decoding. Return them."""
    answers = decode_answers(model, tokenizer, prompts, grammar, max_new_tokens=max_new_tokens)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, log_probability = decode_plainly(model, tokenizer, prompt, grammar, max_new_tokens)
        assert answer.token_ids == ids
        assert answer.log_probability == pytest.approx(log_probability, abs=1e-3)
        assert answer.margin >= 0
    return answers
