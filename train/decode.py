"""What the model answers: greedy decoding under the task's output constraint, for many rows at once.

This is the one decision rule of the project, and the constraint is compiled by xgrammar, the library that constrains
vLLM's output too; a task of free text has none. The opening that all prompts share is computed once; its key-value
cache is copied for each batch. Rows that have ended leave the batch.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.field_confidence import least_of_fields
from tasks.render import shared_prefix_length
from train import models

# A batch is made smaller when so large a part of it has ended.
ENDED = 0.25


@dataclass(frozen=True)
class Answer:
    """One decoded answer. `log_probability` is that of the path taken: each step renormalised over what the constraint
    allowed there."""

    text: str
    token_ids: list[int]
    log_probability: float
    margin: float
    """How much more probable (natural logarithm) the token taken was than the next best that was allowed, at the step
    where this was closest; infinite where there was never a choice."""
    complete: bool
    """Whether it ended by itself and not at `max_new_tokens`."""
    field_log_probability: float | None = None
    """Of the field of a record that the model was least sure of; None where the answer is none."""


def decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    grammar: str | None,
    *,
    batch_rows: int = 64,
    max_new_tokens: int = 64,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[Answer]:
    """Returns one answer for each prompt (token ids), in the order of the prompts.

    `grammar` is EBNF, None for free text; `on_batch` is told how many rows are done after each batch. Changes no
    weight, and leaves the model in the mode that it found.
    """
    import torch

    if not prompts:
        return []
    constraint = compiled(tokenizer, model.config.get_text_config().vocab_size, grammar) if grammar else None
    # What remains behind the prefix is never empty: the last prompt token is what the first answer token comes from.
    # A recurrent layer would carry the padding behind the prefix into its state.
    prefix = min(shared_prefix_length(prompts), min(map(len, prompts)) - 1)
    prefix = 0 if models.recurrent(model.config) else prefix
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


def compiled(tokenizer: Any, vocabulary_size: int, grammar: str) -> Any:
    """Returns an output constraint (EBNF) as xgrammar compiles it: it ends with the tokenizer's EOS."""
    import xgrammar

    about = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocabulary_size, stop_token_ids=[tokenizer.eos_token_id]
    )
    return xgrammar.GrammarCompiler(about).compile_grammar(grammar)


@dataclass
class _Path:
    """A row while it is decoded. `matcher` is its place in the grammar, None for free text."""

    matcher: Any
    stop: int
    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    margin: float = math.inf

    @property
    def ended(self) -> bool:
        if self.matcher is None:
            return self.token_ids[-1:] == [self.stop]
        return bool(self.matcher.is_terminated())

    def go(self, token: int, log_probability: float, next_best: float) -> None:
        if self.matcher is not None:
            self.matcher.accept_token(token)
        self.token_ids.append(token)
        self.log_probabilities.append(log_probability)
        self.margin = min(self.margin, log_probability - next_best)


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

    cache, ids, seen, positions = _behind_prefix(tokenizer.pad_token_id, prefix_cache, prefix, rows, model.device)
    matchers = [xgrammar.GrammarMatcher(constraint) if constraint else None for _ in rows]
    paths = [_Path(matcher, tokenizer.eos_token_id) for matcher in matchers]
    going = list(paths)
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
        best = torch.log_softmax(_allowed(output.logits[:, -1].float(), going, constraint), dim=-1).topk(2)
        for path, (token, _), (gained, next_best) in zip(
            going, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            if not path.ended:
                path.go(token, gained, next_best)
        ids, positions = best.indices[:, :1], positions[:, -1:] + 1
        seen = torch.cat([seen, seen.new_ones(len(going), 1)], dim=1)
        left = [at for at, path in enumerate(going) if not path.ended]
        if not left:
            break
        if len(left) <= (1 - ENDED) * len(going):
            kept = torch.tensor(left, device=model.device)
            cache.batch_select_indices(kept)
            ids, positions, seen = ids[kept], positions[kept], seen[kept]
            going = [going[at] for at in left]
    return [_answer(tokenizer, one) for one in paths]


def _answer(tokenizer: Any, path: _Path) -> Answer:
    text = text_of(tokenizer, path.token_ids)
    # Sums over the tokens of a field need the text of each token; of what is no record, nobody asks.
    tokens = [text_of(tokenizer, [token]) for token in path.token_ids] if text.lstrip().startswith("{") else []
    least = least_of_fields(tokens, path.log_probabilities) if tokens else None
    return Answer(text, path.token_ids, sum(path.log_probabilities), path.margin, path.ended, least)


def _allowed(logits: Any, going: list[_Path], constraint: Any) -> Any:
    """Returns the logits [rows, vocabulary] with what the constraint forbids at minus infinity."""
    import xgrammar

    if constraint is None:
        return logits
    allowed = xgrammar.allocate_token_bitmask(len(going), constraint.tokenizer_info.vocab_size)
    for at, path in enumerate(going):
        if not path.ended:
            path.matcher.fill_next_token_bitmask(allowed, at)
    xgrammar.apply_token_bitmask_inplace(logits, allowed.to(logits.device))
    return logits


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


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Returns the text of an answer's tokens, without the stop and other special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
