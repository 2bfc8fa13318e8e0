"""Greedy decoding of a batch, with as few passes through the model as give the same tokens.

    the constraint leaves one text, {"name": "     it can be cut into tokens in many ways; a draft, {"  name  ":  ", is
                                                   read in one pass, and kept as far as the model takes the same tokens
    the constraint leaves one token                it is taken without asking; mostly this is the stop

Logits are computed of the allowed tokens alone where these are few.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train.evaluate.row_cache import RowCache, Span

# Of the vocabulary: where more of it is allowed, all logits are computed.
MAX_COLUMN_FRACTION = 0.125


@dataclass
class RowState:
    """A row while it is decoded."""

    row: int
    unread: list[int]
    """What the model reads next: what remains of the prompt, later the tokens taken since."""
    stop: int
    most: int
    """Tokens that the answer may have."""
    matcher: Any = None
    """Its place in the grammar, None for free text."""
    read: int = 0
    """How many tokens the cache holds of it."""
    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    """Of each token of the answer; 0 where it was certain."""
    margin: float = math.inf

    @property
    def ended(self) -> bool:
        if self.matcher is None:
            return self.token_ids[-1:] == [self.stop]
        return bool(self.matcher.is_terminated())

    @property
    def done(self) -> bool:
        return self.ended or len(self.token_ids) >= self.most

    def go(self, token: int, log_probability: float, next_best: float) -> None:
        """Takes a token of the answer."""
        if self.matcher is not None:
            self.matcher.accept_token(token)
        self.token_ids.append(token)
        self.log_probabilities.append(log_probability)
        self.margin = min(self.margin, log_probability - next_best)


@dataclass
class _PassInput:
    """What a path reads in one pass: its unread tokens and a draft; `masks` say what is allowed behind the unread
    tokens and behind each of the draft (None each for free text)."""

    path: RowState
    draft: list[int]
    masks: list[Any]


def decode_batch(cache: RowCache, states: Sequence[RowState], constraint: Any, tokenizer: Any) -> None:
    """Takes every path to its end, under a compiled constraint or None; the cache holds nothing of them yet."""
    import xgrammar

    if constraint is not None:
        for state in states:
            state.matcher = xgrammar.GrammarMatcher(constraint)
    drafts: dict[str, list[int]] = {}
    active = list(states)
    while active:
        pass_inputs = [_prepare_pass(state, constraint, tokenizer, drafts, cache.ragged) for state in active]
        pass_inputs = [pass_input for pass_input in pass_inputs if not pass_input.path.done]
        if pass_inputs:
            cache.keep([pass_input.path.row for pass_input in pass_inputs])
            _run_pass(cache, pass_inputs, constraint)
        active = [pass_input.path for pass_input in pass_inputs if not pass_input.path.done]


def _prepare_pass(
    state: RowState, constraint: Any, tokenizer: Any, drafts: dict[str, list[int]], ragged: bool
) -> _PassInput:
    """Takes the tokens that are certain, and returns what the path asks the model next."""
    if constraint is None:
        return _PassInput(state, [], [None])
    mask = _allowed_mask(state, constraint)
    while (token := _single_token(mask)) is not None and (ragged or token == state.stop):
        state.go(token, 0.0, -math.inf)
        state.unread.append(token)
        if state.done:
            return _PassInput(state, [], [])
        mask = _allowed_mask(state, constraint)
    draft: list[int] = []
    masks = [mask]
    for token in _draft_tokens(state, tokenizer, drafts) if ragged else []:
        if len(state.token_ids) + len(draft) + 1 >= state.most or not state.matcher.accept_token(token):
            break
        draft.append(token)
        masks.append(_allowed_mask(state, constraint))
    state.matcher.rollback(len(draft))
    if draft and _single_token(masks[-1]) == state.stop:
        # Nothing is asked behind the last token.
        del draft[-1], masks[-1]
    return _PassInput(state, draft, masks)


def _draft_tokens(state: RowState, tokenizer: Any, drafts: dict[str, list[int]]) -> list[int]:
    """Returns tokens of the text that is certain to come next, as far as it is whole characters."""
    try:
        text = state.matcher.find_jump_forward_string()
    except UnicodeDecodeError:
        return []
    if text not in drafts:
        drafts[text] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return drafts[text]


def _allowed_mask(state: RowState, constraint: Any) -> Any:
    """Returns which tokens the constraint allows next, a bit each in words of 32."""
    import xgrammar

    mask = xgrammar.allocate_token_bitmask(1, constraint.tokenizer_info.vocab_size)
    state.matcher.fill_next_token_bitmask(mask)
    return mask[0].numpy().view(np.uint32)


def _single_token(mask: Any) -> int | None:
    """Returns the one token that is allowed, None where there are others."""
    (words,) = mask.nonzero()
    if len(words) != 1:
        return None
    word = int(mask[words[0]])
    return 32 * int(words[0]) + word.bit_length() - 1 if word.bit_count() == 1 else None


def _run_pass(cache: RowCache, pass_inputs: Sequence[_PassInput], constraint: Any) -> None:
    """Asks the model once, and takes a token of each path, or as many as its draft is right for."""
    import torch

    masks = None if constraint is None else np.stack([mask for pass_input in pass_inputs for mask in pass_input.masks])
    columns = None if masks is None else _allowed_columns(masks, constraint.tokenizer_info.vocab_size)
    spans = [
        Span(
            pass_input.path.row,
            pass_input.path.read,
            pass_input.path.unread + pass_input.draft,
            len(pass_input.draft) + 1,
        )
        for pass_input in pass_inputs
    ]
    indices = None if columns is None else torch.from_numpy(columns).to(cache.device)
    logits = _mask_logits(cache.logits(spans, indices), masks, columns)
    best = torch.log_softmax(logits, dim=-1).topk(2)
    tokens = best.indices[:, 0] if indices is None else indices[best.indices[:, 0]]
    predictions = iter(zip(tokens.tolist(), best.values.tolist(), strict=True))
    for pass_input in pass_inputs:
        row_predictions = [next(predictions) for _ in range(len(pass_input.draft) + 1)]
        state = pass_input.path
        state.read += len(state.unread)
        for index, (token, (log_probability, next_best)) in enumerate(row_predictions):
            state.go(token, log_probability, next_best)
            state.unread = [token]
            if state.done or pass_input.draft[index : index + 1] != [token]:
                break
            state.read += 1


def _allowed_columns(masks: Any, vocabulary_size: int) -> Any:
    """Returns the ids of all tokens that any of the masks allows, None where these are many."""
    union = np.bitwise_or.reduce(masks, axis=0)
    if np.bitwise_count(union).sum() > MAX_COLUMN_FRACTION * vocabulary_size:
        return None
    columns = np.unpackbits(union.view(np.uint8), bitorder="little")[:vocabulary_size].nonzero()[0]
    return columns if len(columns) > 1 else None


def _mask_logits(logits: Any, masks: Any, columns: Any) -> Any:
    """Returns the logits with what a mask forbids at minus infinity."""
    import torch
    import xgrammar

    if masks is None:
        return logits
    if columns is None:
        bitmask = torch.from_numpy(masks.view(np.int32)).to(logits.device)
        # By itself xgrammar takes Triton on a GPU, which needs a C compiler there.
        backend = "cpu" if logits.device.type == "cpu" else "torch_native"
        xgrammar.apply_token_bitmask_inplace(logits, bitmask, backend=backend)
        return logits
    allowed = masks[:, columns >> 5] >> (columns & 31).astype(np.uint32) & 1
    return logits.masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)
