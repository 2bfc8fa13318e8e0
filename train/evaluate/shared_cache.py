"""Keys and values of many rows after one prefix, which is stored once. line_states.py has the recurrent layers.

    prefix  [1, heads, P, width]     one copy; the rows attend to it by broadcast
    rows    [R, heads, T, width]     a line each, its tokens from slot 0 on
    a pass  [1, N]                   tokens of any rows side by side, unpadded: prompts at first, then some of each

A softmax over the scores of the prefix and of the row's own line together is the softmax over the complete sequence.
The scores of the prefix are one matrix product for all rows. This works in every attention layer, sliding windows
included.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from train.evaluate.line_states import LineStates
from train.evaluate.row_cache import COMPACT_FRACTION, Span, UnsupportedAttentionError, restrict_logits
from train.model import architecture, recurrent_layers

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    _HiddenMasks = tuple[torch.Tensor | None, torch.Tensor]

ATTENTION_NAME = "shared_cache"
"""The name under which attention to this cache is registered with transformers."""
# Slots added when lines grow.
GROWTH_SLOTS = 32
# Tokens of a row that attend together. Later tokens see the slots up to their own, so that little is masked.
CHUNK_TOKENS = 256


@dataclass(frozen=True)
class PassLimits:
    """Limits of one pass, which bound memory, and on a CPU keep the data in its caches."""

    pass_tokens: int
    scores: int
    """Attention scores: heads x tokens x visible tokens."""


CPU_LIMITS, GPU_LIMITS = PassLimits(2048, 2**20), PassLimits(8192, 2**26)


class SharedCache:
    """The cache of `rows` rows after a prefix. The prefix is itself a cache of one row, or None."""

    ragged = True

    @property
    def takes_drafts(self) -> bool:
        """See `RowCache`."""
        return self.states is None

    def __init__(self, model: "PreTrainedModel", rows: int, prefix: "SharedCache | None" = None) -> None:
        self.model, self.device, self.prefix = model, model.device, prefix
        self.used_slots: int = 0
        self.prefix_tokens: int = prefix.used_slots if prefix else 0
        self.lines = {row: row for row in range(rows)}
        self.limits = CPU_LIMITS if model.device.type == "cpu" else GPU_LIMITS
        self.keys_and_values: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values of each attention module."""
        self.states: LineStates | None = None
        """The states of recurrent layers, None if the model has none."""
        if recurrent_layers.is_recurrent(model.config):
            self.states = LineStates(rows, prefix.states if prefix else None)

    def logits(self, spans: Sequence[Span], columns: "torch.Tensor | None" = None) -> "torch.Tensor":
        """See `RowCache`. Raise UnsupportedAttentionError."""
        import torch

        tokens = [
            (self.lines[span.row], span.start + index, token, index >= len(span.ids) - span.n_logits)
            for span in spans
            for index, token in enumerate(span.ids)
        ]
        max_tokens = self.limits.pass_tokens
        outputs = [
            self._forward_tokens(tokens[start : start + max_tokens], columns)
            for start in range(0, len(tokens), max_tokens)
        ]
        return torch.cat(outputs)

    def _forward_tokens(
        self, tokens: Sequence[tuple[int, int, int, bool]], columns: "torch.Tensor | None"
    ) -> "torch.Tensor":
        import torch

        device = self.device
        lines, slots, ids, needs_logits = (list(column) for column in zip(*tokens, strict=True))
        self.used_slots = max(self.used_slots, 1 + max(slots))
        positions = [slot + self.prefix_tokens for slot in slots]
        current_pass = _Pass(self, lines, slots)
        logit_indices = [index for index, needed in enumerate(needs_logits) if needed]
        with (
            _cache_attention(self.model.config, current_pass),
            self._continue_states(lines),
            restrict_logits(self.model, columns),
        ):
            output = self.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(logit_indices, device=device) if logit_indices else 1,
            )
        if len(self.keys_and_values) != architecture.count_attention_layers(self.model.config):
            raise UnsupportedAttentionError
        logits: torch.Tensor = output.logits[0, : len(logit_indices)].float()
        return logits

    def _continue_states(self, lines: Sequence[int]) -> AbstractContextManager[None]:
        if self.states is None:
            return nullcontext()
        self.states.start_pass(lines, self.device)
        return recurrent_layers.split_rows(self.model.config, self.states)

    def keep(self, rows: Sequence[int]) -> None:
        """See `RowCache`. Memory is freed once a quarter of the lines has ended."""
        import torch

        if len(rows) > (1 - COMPACT_FRACTION) * len(self.lines):
            return
        indices = torch.tensor([self.lines[row] for row in rows], device=self.device)
        # One module after the other, so that memory never holds two caches.
        for module, (keys, values) in self.keys_and_values.items():
            self.keys_and_values[module] = (keys[indices], values[indices])
        if self.states:
            self.states.keep(indices)
        self.lines = {row: line for line, row in enumerate(rows)}

    def store(
        self,
        module: "torch.nn.Module",
        key: "torch.Tensor",
        value: "torch.Tensor",
        lines: "torch.Tensor",
        slots: "torch.Tensor",
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Store keys and values [heads, N, width] of a module; return all of them, [rows, heads, slots, width]."""
        cached = self.keys_and_values.get(module)
        if cached is None or cached[0].shape[2] < self.used_slots:
            capacity = self.used_slots if cached is None else self.used_slots + GROWTH_SLOTS
            previous = cached or tuple(
                template.new_zeros(len(self.lines), template.shape[0], 0, template.shape[2])
                for template in (key, value)
            )
            cached = (_grow(previous[0], capacity), _grow(previous[1], capacity))
            self.keys_and_values[module] = cached
        for tensor, update in zip(cached, (key, value), strict=True):
            tensor[lines, :, slots] = update.transpose(0, 1)
        return cached


def _grow(tensor: "torch.Tensor", capacity: int) -> "torch.Tensor":
    import torch

    # Zeros, because masked slots have weight 0, and 0 times an uninitialized value can be NaN.
    return torch.nn.functional.pad(tensor, (0, 0, 0, capacity - tensor.shape[2]))


@dataclass(frozen=True)
class _Chunk:
    """Tokens of a pass that attend together: a grid [lines, width] of tokens, padded for lines with fewer tokens."""

    tokens: slice
    lines: slice
    width: int
    grid_indices: "torch.Tensor | None"
    """Positions of the tokens in the grid, None if they fill it."""
    slots: "torch.Tensor"
    """[lines, width]."""
    visible_slots: int
    """Slots that the last token sees."""

    def hidden_masks(self, prefix: int, first_visible: "torch.Tensor | None") -> "_HiddenMasks":
        """Return masks of hidden tokens: of the prefix [lines, 1, width, P], and of the lines [lines, 1, width, seen].

        The prefix mask is None if all of it is visible. `first_visible` is the first position of each window, [lines,
        width], None without windows.
        """
        import torch

        columns = torch.arange(self.visible_slots, device=self.slots.device)
        row_mask = columns > self.slots[..., None]
        if first_visible is None:
            return None, row_mask[:, None]
        row_mask = row_mask | (columns + prefix < first_visible[..., None])
        prefix_mask = torch.arange(prefix, device=self.slots.device) < first_visible[..., None]
        return prefix_mask[:, None], row_mask[:, None]


@dataclass
class _Pass:
    """The pass in computation: the slots of its tokens in a cache, and their attention."""

    cache: SharedCache
    lines: list[int]
    slots: list[int]
    masks: dict[architecture.Window | None, list["_HiddenMasks"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        device = self.cache.device
        self.line_index = torch.tensor(self.lines, device=device)
        self.slot_index = torch.tensor(self.slots, device=device)
        self.chunks = [self._make_chunk(*bounds) for bounds in self._chunk_bounds()]

    def _chunk_bounds(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of tokens that attend together: parts of rows, each line at most once in a group."""
        heads = self.cache.model.config.get_text_config().num_attention_heads
        lines, slots = self.lines, self.slots
        starts = [0]
        for index in range(1, len(lines)):
            if lines[index] != lines[index - 1] or index - starts[-1] == CHUNK_TOKENS:
                starts.append(index)
        group_start, width, visible = 0, 0, 0
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            new_width, new_visible = max(width, end - start), max(visible, 1 + slots[end - 1])
            size = (
                heads * (1 + lines[start] - lines[group_start]) * new_width * (self.cache.prefix_tokens + new_visible)
            )
            same_line = start > group_start and lines[start] == lines[start - 1]
            if start > group_start and (same_line or size > self.cache.limits.scores):
                yield group_start, start
                group_start, new_width, new_visible = start, end - start, 1 + slots[end - 1]
            width, visible = new_width, new_visible
        yield group_start, len(lines)

    def _make_chunk(self, start: int, end: int) -> _Chunk:
        import torch

        device = self.line_index.device
        lines, slots = self.lines[start:end], self.slots[start:end]
        offsets = [0]
        for previous, current in pairwise(lines):
            offsets.append(offsets[-1] + 1 if previous == current else 0)
        width, rows = 1 + max(offsets), 1 + lines[-1] - lines[0]
        grid_indices = [(line - lines[0]) * width + offset for line, offset in zip(lines, offsets, strict=True)]
        is_full = len(grid_indices) == rows * width
        grid = [0] * (rows * width)
        for grid_index, slot in zip(grid_indices, slots, strict=True):
            grid[grid_index] = slot
        return _Chunk(
            slice(start, end),
            slice(lines[0], lines[-1] + 1),
            width,
            None if is_full else torch.tensor(grid_indices, device=device),
            torch.tensor(grid, device=device).view(rows, width),
            1 + max(slots),
        )

    def hidden_masks(self, module: Any) -> list["_HiddenMasks"]:
        """Return the masks of all chunks in a layer."""
        prefix = self.cache.prefix_tokens
        window = architecture.layer_window(self.cache.model.config, module.layer_idx)
        if window and prefix + max(self.slots) < window.tokens:
            window = None
        if window not in self.masks:
            self.masks[window] = [
                chunk.hidden_masks(prefix, window.first_visible(chunk.slots + prefix) if window else None)
                for chunk in self.chunks
            ]
        return self.masks[window]

    def attend(
        self,
        module: "torch.nn.Module",
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        scaling: float | None,
    ) -> "torch.Tensor":
        """Return the attention output, [1, N, heads of queries, width]; query, key and value are [1, heads, N, width].

        It computes in float32, as fused kernels do internally.
        """
        import torch

        keys, values = self.cache.store(module, key[0], value[0], self.line_index, self.slot_index)
        prefix_kv = None
        if self.cache.prefix:
            prefix_kv = tuple(
                tensor[0, :, : self.cache.prefix_tokens].float() for tensor in self.cache.prefix.keys_and_values[module]
            )
        scaled_query = query[0].transpose(0, 1).float() * (scaling or query.shape[-1] ** -0.5)
        outputs = []
        for chunk, masks in zip(self.chunks, self.hidden_masks(module), strict=True):
            queries = scaled_query[chunk.tokens]
            if chunk.grid_indices is not None:
                empty = queries.new_zeros(chunk.slots.numel(), *queries.shape[1:])
                queries = empty.index_copy_(0, chunk.grid_indices, queries)
            grid = queries.unflatten(1, (keys.shape[1], -1)).unflatten(0, chunk.slots.shape)
            row_kv = tuple(tensor[chunk.lines, :, : chunk.visible_slots].float() for tensor in (keys, values))
            attended = _attend_chunk(grid, row_kv, prefix_kv, masks)
            outputs.append(attended if chunk.grid_indices is None else attended[chunk.grid_indices])
        return torch.cat(outputs)[None].to(query.dtype)


def _attend_chunk(
    grid: "torch.Tensor",
    row_kv: tuple["torch.Tensor", ...],
    prefix_kv: tuple["torch.Tensor", ...] | None,
    hidden_masks: "_HiddenMasks",
) -> "torch.Tensor":
    """Return the attention output [lines x width, heads x groups, v] of queries [lines, width, heads, groups, k].

    `row_kv` are keys and values [lines, heads, slots, k or v], `prefix_kv` those of the prefix [heads, P, k or v].
    `hidden_masks` are masks of both, True for hidden tokens.
    """
    import torch

    lines, width, heads, groups, _ = grid.shape
    row_queries = grid.permute(0, 2, 3, 1, 4).reshape(lines, heads, groups * width, -1)
    scores = (row_queries @ row_kv[0].transpose(2, 3)).unflatten(2, (groups, width))
    scores = scores.masked_fill_(hidden_masks[1][:, None], -torch.inf).flatten(2, 3)
    if prefix_kv is None:
        attended = scores.softmax(-1) @ row_kv[1]
    else:
        # Heads first: the rows are one long matrix of queries for each head of the prefix.
        prefix_queries = row_queries.transpose(0, 1).reshape(heads, lines * groups * width, -1)
        prefix_scores = (prefix_queries @ prefix_kv[0].transpose(1, 2)).unflatten(1, (lines, groups, width))
        if hidden_masks[0] is not None:
            prefix_scores = prefix_scores.masked_fill_(hidden_masks[0][None], -torch.inf)
        prefix_tokens = prefix_scores.shape[-1]
        weights = torch.cat([prefix_scores.flatten(2, 3), scores.transpose(0, 1)], -1).softmax(-1)
        attended = (weights[..., :prefix_tokens].flatten(1, 2) @ prefix_kv[1]).unflatten(1, (lines, -1)).transpose(0, 1)
        attended = attended + weights[..., prefix_tokens:].transpose(0, 1) @ row_kv[1]
    output: torch.Tensor = attended.unflatten(2, (groups, width)).permute(0, 3, 1, 2, 4)
    return output.reshape(lines * width, heads * groups, -1)


_current_pass: _Pass | None = None
"""The pass in computation. transformers passes nothing about it to attention."""


@contextmanager
def _cache_attention(config: "PretrainedConfig", current_pass: _Pass) -> Iterator[None]:
    """Make a model of this config attend to the cache of a pass inside of the block."""
    global _current_pass
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Only the attention function is registered: transformers builds no mask for a name without a mask function.
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, _attention_forward)
    text_config = config.get_text_config()
    previous = text_config._attn_implementation, _current_pass
    text_config._attn_implementation, _current_pass = ATTENTION_NAME, current_pass
    try:
        yield
    finally:
        text_config._attn_implementation, _current_pass = previous


def _attention_forward(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    mask: "torch.Tensor",
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[object, None]:
    if _current_pass is None:
        raise RuntimeError(f"{ATTENTION_NAME} attends to the cache of a pass, and there is none")
    if kwargs.get("position_bias") is not None:
        raise UnsupportedAttentionError
    return _current_pass.attend(module, query, key, value, scaling), None
