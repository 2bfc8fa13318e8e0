"""Keys and values of many rows behind one prefix, which is kept once.

    prefix  [1, heads, P, width]     one copy; the rows attend to it by broadcast
    rows    [R, heads, T, width]     a line each, its tokens from slot 0 on
    a pass  [1, N]                   tokens of any rows side by side, unpadded: prompts at first, then some of each

A softmax over scores of the prefix and of the row's own line, side by side, is the softmax over the whole sequence. The
scores of the prefix are one matrix product for all rows. Works in every layer that attends, sliding windows included.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from train.evaluate.row_cache import COMPACT_FRACTION, Span, UnsupportedAttentionError, restrict_logits
from train.model import architecture

ATTENTION_NAME = "shared_cache"
"""The name under which transformers knows attention to this cache."""
# Slots that lines are made longer by.
GROWTH_SLOTS = 32
# Tokens of a row that attend together. The next ones see the slots up to their own, so that little is masked.
CHUNK_TOKENS = 256


@dataclass(frozen=True)
class PassLimits:
    """What is computed at once, which bounds memory and on a CPU stays in its caches."""

    pass_tokens: int
    scores: int
    """Of attention: heads x tokens x what they see."""


CPU_LIMITS, GPU_LIMITS = PassLimits(2048, 2**20), PassLimits(8192, 2**26)


class SharedCache:
    """The cache of `rows` rows behind a prefix, itself a cache of one row, or behind none."""

    ragged = True

    def __init__(self, model: Any, rows: int, prefix: "SharedCache | None" = None) -> None:
        self.model, self.device, self.prefix = model, model.device, prefix
        self.tokens: int = 0
        """Slots in use."""
        self.prefix_tokens: int = prefix.tokens if prefix else 0
        self.lines = {row: row for row in range(rows)}
        self.limits = CPU_LIMITS if model.device.type == "cpu" else GPU_LIMITS
        self.held: dict[Any, tuple[Any, Any]] = {}
        """Keys and values of each attention module."""

    def logits(self, spans: Sequence[Span], columns: Any = None) -> Any:
        """See `Rows`. Raises OwnAttentionError."""
        import torch

        tokens = [
            (self.lines[span.row], span.start + at, token, at >= len(span.ids) - span.wanted)
            for span in spans
            for at, token in enumerate(span.ids)
        ]
        most = self.limits.pass_tokens
        found = [self._read(tokens[first : first + most], columns) for first in range(0, len(tokens), most)]
        return torch.cat(found)

    def _read(self, tokens: Sequence[tuple[int, int, int, bool]], columns: Any) -> Any:
        import torch

        device = self.device
        lines, slots, ids, wanted = (list(one) for one in zip(*tokens, strict=True))
        self.tokens = max(self.tokens, 1 + max(slots))
        positions = [slot + self.prefix_tokens for slot in slots]
        now = _Pass(self, lines, slots)
        places = [at for at, yes in enumerate(wanted) if yes]
        with _cache_attention(self.model.config, now), restrict_logits(self.model, columns):
            output = self.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(places, device=device) if places else 1,
            )
        if len(self.held) != self.model.config.get_text_config().num_hidden_layers:
            raise UnsupportedAttentionError
        return output.logits[0, : len(places)].float()

    def keep(self, rows: Sequence[int]) -> None:
        """See `Rows`; memory is freed once a quarter of the lines has ended."""
        import torch

        if len(rows) > (1 - COMPACT_FRACTION) * len(self.lines):
            return
        kept = torch.tensor([self.lines[row] for row in rows], device=self.device)
        for module, (keys, values) in self.held.items():  # one after the other, so that no two caches are held
            self.held[module] = (keys[kept], values[kept])
        self.lines = {row: line for line, row in enumerate(rows)}

    def store(self, module: Any, key: Any, value: Any, lines: Any, slots: Any) -> tuple[Any, Any]:
        """Returns all keys and values [rows, heads, slots, width] of a module, these [heads, N, width] among them."""
        held = self.held.get(module)
        if held is None or held[0].shape[2] < self.tokens:
            capacity = self.tokens if held is None else self.tokens + GROWTH_SLOTS
            old = held or tuple(one.new_zeros(len(self.lines), one.shape[0], 0, one.shape[2]) for one in (key, value))
            held = (_grow(old[0], capacity), _grow(old[1], capacity))
            self.held[module] = held
        for tensor, new in zip(held, (key, value), strict=True):
            tensor[lines, :, slots] = new.transpose(0, 1)
        return held


def _grow(held: Any, capacity: int) -> Any:
    import torch

    # Zeros: what is masked has no weight, and no weight times garbage can be NaN.
    return torch.nn.functional.pad(held, (0, 0, 0, capacity - held.shape[2]))


@dataclass(frozen=True)
class _Chunk:
    """Tokens of a pass that attend together: a grid [lines, width] of tokens, filled in where lines have fewer."""

    tokens: slice
    lines: slice
    width: int
    places: Any
    """Of the tokens in the grid, None where they are all of it."""
    slots: Any
    """[lines, width]."""
    seen: int
    """Slots that the last token sees."""

    def hidden(self, prefix: int, first: Any) -> tuple[Any, Any]:
        """Returns masks of what is not seen: of the prefix [lines, 1, width, P], None where all is, and of the lines
        [lines, 1, width, seen]. `first` is the first position [lines, width] in the windows, None without windows."""
        import torch

        columns = torch.arange(self.seen, device=self.slots.device)
        own = columns > self.slots[..., None]
        if first is None:
            return None, own[:, None]
        own = own | (columns + prefix < first[..., None])
        opening = torch.arange(prefix, device=self.slots.device) < first[..., None]
        return opening[:, None], own[:, None]


@dataclass
class _Pass:
    """What is computed now: where its tokens go in a cache, and how they attend."""

    cache: SharedCache
    lines: list[int]
    slots: list[int]
    masks: dict[architecture.Window | None, list[tuple[Any, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        device = self.cache.device
        self.line_index = torch.tensor(self.lines, device=device)
        self.slot_index = torch.tensor(self.slots, device=device)
        self.chunks = [self._chunk(*group) for group in self._groups()]

    def _groups(self) -> Iterator[tuple[int, int]]:
        """Yields first and end of tokens that attend together: pieces of rows, a line at most once in a group."""
        heads = self.cache.model.config.get_text_config().num_attention_heads
        lines, slots = self.lines, self.slots
        starts = [0]
        for at in range(1, len(lines)):
            if lines[at] != lines[at - 1] or at - starts[-1] == CHUNK_TOKENS:
                starts.append(at)
        begin, width, seen = 0, 0, 0
        for first, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            wider, further = max(width, end - first), max(seen, 1 + slots[end - 1])
            size = heads * (1 + lines[first] - lines[begin]) * wider * (self.cache.prefix_tokens + further)
            again = first > begin and lines[first] == lines[first - 1]
            if first > begin and (again or size > self.cache.limits.scores):
                yield begin, first
                begin, wider, further = first, end - first, 1 + slots[end - 1]
            width, seen = wider, further
        yield begin, len(lines)

    def _chunk(self, begin: int, end: int) -> _Chunk:
        import torch

        device = self.line_index.device
        lines, slots = self.lines[begin:end], self.slots[begin:end]
        offsets = [0]
        for before, now in pairwise(lines):
            offsets.append(offsets[-1] + 1 if before == now else 0)
        width, rows = 1 + max(offsets), 1 + lines[-1] - lines[0]
        places = [(line - lines[0]) * width + offset for line, offset in zip(lines, offsets, strict=True)]
        full = len(places) == rows * width
        grid = [0] * (rows * width)
        for place, slot in zip(places, slots, strict=True):
            grid[place] = slot
        return _Chunk(
            slice(begin, end),
            slice(lines[0], lines[-1] + 1),
            width,
            None if full else torch.tensor(places, device=device),
            torch.tensor(grid, device=device).view(rows, width),
            1 + max(slots),
        )

    def hidden(self, module: Any) -> list[tuple[Any, Any]]:
        """Returns the masks of all chunks in a layer."""
        prefix = self.cache.prefix_tokens
        window = architecture.layer_window(self.cache.model.config, module.layer_idx)
        if window and prefix + max(self.slots) < window.tokens:
            window = None
        if window not in self.masks:
            self.masks[window] = [
                one.hidden(prefix, window.first(one.slots + prefix) if window else None) for one in self.chunks
            ]
        return self.masks[window]

    def attend(self, module: Any, query: Any, key: Any, value: Any, scaling: float | None) -> Any:
        """Returns what the tokens see, [1, N, heads of queries, width]; query, key, value are [1, heads, N, width].

        Computes in float32, as fused kernels do inside.
        """
        import torch

        keys, values = self.cache.store(module, key[0], value[0], self.line_index, self.slot_index)
        opening = None
        if self.cache.prefix:
            opening = tuple(one[0, :, : self.cache.prefix_tokens].float() for one in self.cache.prefix.held[module])
        scaled = query[0].transpose(0, 1).float() * (scaling or query.shape[-1] ** -0.5)
        found = []
        for chunk, hidden in zip(self.chunks, self.hidden(module), strict=True):
            asked = scaled[chunk.tokens]
            if chunk.places is not None:
                empty = asked.new_zeros(chunk.slots.numel(), *asked.shape[1:])
                asked = empty.index_copy_(0, chunk.places, asked)
            grid = asked.unflatten(1, (keys.shape[1], -1)).unflatten(0, chunk.slots.shape)
            own = tuple(one[chunk.lines, :, : chunk.seen].float() for one in (keys, values))
            seen = _attend_chunk(grid, own, opening, hidden)
            found.append(seen if chunk.places is None else seen[chunk.places])
        return torch.cat(found)[None].to(query.dtype)


def _attend_chunk(grid: Any, own: tuple[Any, ...], opening: tuple[Any, ...] | None, hidden: tuple[Any, Any]) -> Any:
    """Returns the values that queries [lines, width, heads, groups, k] see, [lines x width, heads x groups, v].

    `own` are keys and values [lines, heads, slots, k or v], `opening` those of the prefix [heads, P, k or v], `hidden`
    masks of both that are True where nothing is seen.
    """
    import torch

    lines, width, heads, groups, _ = grid.shape
    mine = grid.permute(0, 2, 3, 1, 4).reshape(lines, heads, groups * width, -1)
    scores = (mine @ own[0].transpose(2, 3)).unflatten(2, (groups, width))
    scores = scores.masked_fill_(hidden[1][:, None], -torch.inf).flatten(2, 3)
    if opening is None:
        seen = scores.softmax(-1) @ own[1]
    else:
        # Heads first: the rows are one long matrix of queries for each head of the prefix.
        theirs = mine.transpose(0, 1).reshape(heads, lines * groups * width, -1)
        first = (theirs @ opening[0].transpose(1, 2)).unflatten(1, (lines, groups, width))
        if hidden[0] is not None:
            first = first.masked_fill_(hidden[0][None], -torch.inf)
        prefix = first.shape[-1]
        weights = torch.cat([first.flatten(2, 3), scores.transpose(0, 1)], -1).softmax(-1)
        seen = (weights[..., :prefix].flatten(1, 2) @ opening[1]).unflatten(1, (lines, -1)).transpose(0, 1)
        seen = seen + weights[..., prefix:].transpose(0, 1) @ own[1]
    return seen.unflatten(2, (groups, width)).permute(0, 3, 1, 2, 4).reshape(lines * width, heads * groups, -1)


_current_pass: _Pass | None = None
"""The pass that is computed: transformers passes nothing about it to attention."""


@contextmanager
def _cache_attention(config: Any, now: _Pass) -> Iterator[None]:
    """Has a model of this config attend to the cache of a pass inside of the block."""
    global _current_pass
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # As attention alone: transformers builds no mask for what it knows none of.
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, _attention_forward)
    text = config.get_text_config()
    before = text._attn_implementation, _current_pass
    text._attn_implementation, _current_pass = ATTENTION_NAME, now
    try:
        yield
    finally:
        text._attn_implementation, _current_pass = before


def _attention_forward(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **given: Any
) -> tuple[Any, None]:
    if _current_pass is None:
        raise RuntimeError(f"{ATTENTION_NAME} attends to the cache of a pass, and there is none")
    if given.get("position_bias") is not None:
        raise UnsupportedAttentionError
    return _current_pass.attend(module, query, key, value, scaling), None
