"""What the model answers: greedy decoding under the task's output constraint, for many rows at once.

This is the one decision rule of the project, and the constraint is compiled by xgrammar, the library that constrains
vLLM's output too. The opening that all prompts share is computed once; its key-value cache is copied for each batch.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.render import shared_prefix_length


@dataclass(frozen=True)
class Answer:
    """One decoded answer. `log_probability` is that of the constrained path: each step renormalised over what the
    constraint allowed there."""

    text: str
    token_ids: list[int]
    log_probability: float
    complete: bool
    """Whether it ended by itself and not at `max_new_tokens`."""


def decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    grammar: str,
    *,
    batch_rows: int = 64,
    max_new_tokens: int = 64,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[Answer]:
    """Returns one answer for each prompt (token ids), in the order of the prompts.

    `grammar` is EBNF; `on_batch` is told how many rows are done after each batch. Changes no weight and no mode but
    evaluation mode, which it leaves as it found it.
    """
    import torch

    constraint = _compile(tokenizer, model.config.get_text_config().vocab_size, grammar)
    # What remains behind the prefix is never empty: the last prompt token is what the first answer token comes from.
    prefix = min(shared_prefix_length(prompts), min(map(len, prompts)) - 1)
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    answers: dict[int, Answer] = {}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        cache = None
        if prefix:
            ids = torch.tensor([prompts[0][:prefix]], device=model.device)
            cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        for first in range(0, len(order), batch_rows):
            chosen = order[first : first + batch_rows]
            rows = [prompts[at][prefix:] for at in chosen]
            answers |= zip(
                chosen, _decode_batch(model, tokenizer, cache, prefix, rows, constraint, max_new_tokens), strict=True
            )
            on_batch(len(answers))
    model.train(was_training)
    return [answers[at] for at in range(len(prompts))]


def _compile(tokenizer: Any, vocabulary_size: int, grammar: str) -> Any:
    import xgrammar

    about = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocabulary_size, stop_token_ids=[tokenizer.eos_token_id]
    )
    return xgrammar.GrammarCompiler(about).compile_grammar(grammar)


def _decode_batch(
    model: Any,
    tokenizer: Any,
    prefix_cache: Any,
    prefix: int,
    rows: list[list[int]],
    constraint: Any,
    max_new_tokens: int,
) -> list[Answer]:
    """Decodes rows behind one prefix: [prefix | padding | row], so that all rows end, and go on, in one column."""
    import torch
    import xgrammar

    device, count = model.device, len(rows)
    cache, ids, seen, positions = _behind_prefix(tokenizer.pad_token_id, prefix_cache, prefix, rows, device)
    matchers = [xgrammar.GrammarMatcher(constraint) for _ in rows]
    allowed = xgrammar.allocate_token_bitmask(count, constraint.tokenizer_info.vocab_size)
    tokens: list[list[int]] = [[] for _ in rows]
    log_probabilities = [0.0] * count
    for _ in range(max_new_tokens):
        output = model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logits = output.logits[:, -1].float()
        going = [at for at, matcher in enumerate(matchers) if not matcher.is_terminated()]
        for at in going:
            matchers[at].fill_next_token_bitmask(allowed, at)
        xgrammar.apply_token_bitmask_inplace(logits, allowed.to(device))
        best = torch.log_softmax(logits, dim=-1).max(dim=-1)
        chosen, gained = best.indices.tolist(), best.values.tolist()
        for at in going:
            matchers[at].accept_token(chosen[at])
            tokens[at].append(chosen[at])
            log_probabilities[at] += gained[at]
        if all(matcher.is_terminated() for matcher in matchers):
            break
        ids = best.indices[:, None]
        seen = torch.cat([seen, seen.new_ones(count, 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [
        Answer(_text(tokenizer, own), own, log_probability, matcher.is_terminated())
        for own, log_probability, matcher in zip(tokens, log_probabilities, matchers, strict=True)
    ]


def _behind_prefix(
    pad: int, prefix_cache: Any, prefix: int, rows: list[list[int]], device: Any
) -> tuple[Any, Any, Any, Any]:
    """Returns a cache for the batch and the ids, attention mask and positions of its rows ([rows, tokens] each)."""
    import torch

    cache = None
    if prefix_cache is not None:
        cache = copy.deepcopy(prefix_cache)
        cache.batch_repeat_interleave(len(rows))
    longest = max(map(len, rows))
    gaps = [longest - len(row) for row in rows]
    ids = torch.tensor([[pad] * gap + row for gap, row in zip(gaps, rows, strict=True)], device=device)
    seen = torch.tensor([[1] * prefix + [0] * gap + [1] * (longest - gap) for gap in gaps], device=device)
    columns = torch.arange(longest, device=device)[None] - torch.tensor(gaps, device=device)[:, None]
    return cache, ids, seen, columns.clamp(min=0) + prefix


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
