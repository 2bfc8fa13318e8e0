"""Greedy decoding of a batch, with the fewest model passes that give the same tokens.

    the constraint leaves one text, {"name": "     it has many tokenizations; a draft, {"  name  ":  ", is read in one
                                                   pass, and kept as far as the model chooses the same tokens
    the constraint leaves one token                it is appended without a pass; mostly this is the stop token

If the constraint allows few tokens, only their logits are computed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from train.evaluate.row_cache import RowCache, Span

if TYPE_CHECKING:
    import torch
    import xgrammar
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    Mask = NDArray[np.uint32]

# Fraction of the vocabulary: if more tokens are allowed, all logits are computed.
MAX_COLUMN_FRACTION = 0.125


@dataclass
class RowState:
    """The state of a row during decoding."""

    row: int
    unread: list[int]
    """Tokens that the model reads next: the rest of the prompt, later the tokens appended since the last pass."""
    stop_token_id: int
    max_tokens: int
    """The maximum of answer tokens."""
    matcher: Any = None
    """Its position in the grammar, None for free text."""
    cached_tokens: int = 0
    """Tokens of the row in the cache."""
    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    """One for each token of the answer; 0 for a token without alternative."""
    margin: float = math.inf

    @property
    def stopped(self) -> bool:
        if self.matcher is None:
            return self.token_ids[-1:] == [self.stop_token_id]
        return bool(self.matcher.is_terminated())

    @property
    def done(self) -> bool:
        return self.stopped or len(self.token_ids) >= self.max_tokens

    def append(self, token: int, log_probability: float, next_best: float) -> None:
        """Append a token to the answer."""
        if self.matcher is not None:
            self.matcher.accept_token(token)
        self.token_ids.append(token)
        self.log_probabilities.append(log_probability)
        self.margin = min(self.margin, log_probability - next_best)


@dataclass
class _PassInput:
    """The tokens of a row for one pass: its unread tokens and a draft.

    `masks` are the allowed tokens after the unread tokens and after each token of the draft (None for free text).
    """

    state: RowState
    draft: list[int]
    masks: Sequence["Mask | None"]


def decode_batch(
    cache: RowCache,
    states: Sequence[RowState],
    constraint: "xgrammar.CompiledGrammar | None",
    tokenizer: "PreTrainedTokenizerBase",
    on_pass: Callable[[], None] = lambda: None,
) -> None:
    """Decode every row to its end, under a compiled constraint or None. The cache must be empty.

    `on_pass` is called after each pass of the model.
    """
    import xgrammar

    if constraint is not None:
        for state in states:
            state.matcher = xgrammar.GrammarMatcher(constraint)
    drafts: dict[str, list[int]] = {}
    active = list(states)
    while active:
        pass_inputs = [_prepare_pass(state, constraint, tokenizer, drafts, cache) for state in active]
        pass_inputs = [pass_input for pass_input in pass_inputs if not pass_input.state.done]
        if pass_inputs:
            cache.keep([pass_input.state.row for pass_input in pass_inputs])
            _run_pass(cache, pass_inputs, constraint)
            on_pass()
        active = [pass_input.state for pass_input in pass_inputs if not pass_input.state.done]


def _prepare_pass(
    state: RowState,
    constraint: "xgrammar.CompiledGrammar | None",
    tokenizer: "PreTrainedTokenizerBase",
    drafts: dict[str, list[int]],
    cache: RowCache,
) -> _PassInput:
    """Append the tokens without alternative, and return the row's input for the next pass."""
    if constraint is None:
        return _PassInput(state, [], [None])
    mask = _allowed_mask(state, constraint)
    while (token := _single_token(mask)) is not None and (cache.ragged or token == state.stop_token_id):
        state.append(token, 0.0, -math.inf)
        state.unread.append(token)
        if state.done:
            return _PassInput(state, [], [])
        mask = _allowed_mask(state, constraint)
    draft: list[int] = []
    masks = [mask]
    for token in _draft_tokens(state, tokenizer, drafts) if cache.takes_drafts else []:
        if len(state.token_ids) + len(draft) + 1 >= state.max_tokens or not state.matcher.accept_token(token):
            break
        draft.append(token)
        masks.append(_allowed_mask(state, constraint))
    state.matcher.rollback(len(draft))
    if draft and _single_token(masks[-1]) == state.stop_token_id:
        # No logits are needed after the last token.
        del draft[-1], masks[-1]
    return _PassInput(state, draft, masks)


def _draft_tokens(state: RowState, tokenizer: "PreTrainedTokenizerBase", drafts: dict[str, list[int]]) -> list[int]:
    """Return tokens of the only text that can come next, up to the last complete character."""
    try:
        text = state.matcher.find_jump_forward_string()
    except UnicodeDecodeError:
        return []
    if text not in drafts:
        drafts[text] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return drafts[text]


def _allowed_mask(state: RowState, constraint: "xgrammar.CompiledGrammar") -> "Mask":
    """Return the allowed next tokens as a bit mask, in words of 32 bits."""
    import xgrammar

    bitmask = xgrammar.allocate_token_bitmask(1, constraint.tokenizer_info.vocab_size)
    state.matcher.fill_next_token_bitmask(bitmask)
    mask: Mask = bitmask[0].numpy().view(np.uint32)
    return mask


def _single_token(mask: "Mask") -> int | None:
    """Return the allowed token if there is only one, else None."""
    (words,) = mask.nonzero()
    if len(words) != 1:
        return None
    word = int(mask[words[0]])
    return 32 * int(words[0]) + word.bit_length() - 1 if word.bit_count() == 1 else None


def _run_pass(
    cache: RowCache, pass_inputs: Sequence[_PassInput], constraint: "xgrammar.CompiledGrammar | None"
) -> None:
    """Run the model once. Append one token to each row, or as many as its draft predicted correctly."""
    import torch

    masks = columns = None
    if constraint is not None:
        masks = np.stack([mask for pass_input in pass_inputs for mask in pass_input.masks if mask is not None])
        columns = _allowed_columns(masks, constraint.tokenizer_info.vocab_size)
    spans = [
        Span(
            pass_input.state.row,
            pass_input.state.cached_tokens,
            pass_input.state.unread + pass_input.draft,
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
        state = pass_input.state
        state.cached_tokens += len(state.unread)
        for index, (token, (log_probability, next_best)) in enumerate(row_predictions):
            state.append(token, log_probability, next_best)
            state.unread = [token]
            if state.done or pass_input.draft[index : index + 1] != [token]:
                break
            state.cached_tokens += 1


def _allowed_columns(masks: "Mask", vocabulary_size: int) -> "NDArray[np.int64] | None":
    """Return the ids of all tokens that any of the masks allows, or None if there are many."""
    union = np.bitwise_or.reduce(masks, axis=0)
    if np.bitwise_count(union).sum() > MAX_COLUMN_FRACTION * vocabulary_size:
        return None
    columns = np.unpackbits(union.view(np.uint8), bitorder="little")[:vocabulary_size].nonzero()[0]
    return columns if len(columns) > 1 else None


def _mask_logits(logits: "torch.Tensor", masks: "Mask | None", columns: "NDArray[np.int64] | None") -> "torch.Tensor":
    """Return the logits with forbidden tokens at minus infinity."""
    import torch
    import xgrammar

    if masks is None:
        return logits
    if columns is None:
        bitmask = torch.from_numpy(masks.view(np.int32)).to(logits.device)
        # By default xgrammar uses Triton on a GPU, which needs a C compiler.
        backend = "cpu" if logits.device.type == "cpu" else "torch_native"
        xgrammar.apply_token_bitmask_inplace(logits, bitmask, backend=backend)
        return logits
    allowed = masks[:, columns >> 5] >> (columns & 31).astype(np.uint32) & 1
    return logits.masked_fill_(torch.from_numpy(allowed == 0).to(logits.device), -torch.inf)
