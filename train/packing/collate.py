"""The tensors of a pack: the inputs of the model, and the labels.

    pack     prefix [5 6], rows [5 6 1 | 9 2] and [5 6 3 4 | 8 2]        prompt | answer, 2 the stop token
    input_ids       5 6   1  9 2   3  4  8 2
    position_ids    0 1   2  3 4   2  3  4 5
    labels          . .   .  9 2   .  .  8 2      . is IGNORE_INDEX
    sequences       . .   .  0 0   .  .  1 1      the number of the answer that a label belongs to

The two answers of a preference pair are two branches after one prompt, and so are the answers of soft labels. Tokens of
a branch see the prefix, the prompt and their own branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from train.packing.attention_blocks import FLEX, SHARED_PREFIX, AttentionBlocks, Implementation, block_lengths
from train.packing.branch_states import Segment, find_segments
from train.packing.packing_plan import Pack, PackingMode, TokenizedRow

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask

IGNORE_INDEX = -100
# Minimum pack length for FlexAttention on a GPU, which skips empty blocks of a mask. Below, a dense mask is faster.
MIN_FLEX_TOKENS = 2048
FLEX_BLOCK_SIZE = 128


@dataclass(frozen=True)
class Batch:
    """The tensors of a pack on one device."""

    inputs: dict[str, Any]
    """Model inputs: input_ids and position_ids [B, T]; attention_mask [1, 1, T, T] or [B, T], or none."""
    labels: "torch.Tensor"
    """[B, T], IGNORE_INDEX for tokens that are not trained on."""
    sequences: "torch.Tensor"
    """[B, T], the number of the answer that a label belongs to, in the order of rows and their completions."""
    rows: tuple[TokenizedRow, ...]
    attention: Implementation = "sdpa"
    """The attention implementation that the mask is for, by transformers' name."""
    blocks: AttentionBlocks | None = None
    """The blocks, only for attention by blocks of rows."""
    segments: tuple[Segment, ...] = ()
    """The segments of a pack with a shared prefix, for recurrent layers."""


def collate_pack(
    pack: Pack, mode: PackingMode, device: "torch.device | str", pad_token_id: int, attention: Implementation = "sdpa"
) -> Batch:
    """Return the tensors of a pack: one sequence [1, T], or for packing `none` separate rows, padded on the right.

    `attention` is the implementation for packs with a mask that are long enough to be faster with it.
    """
    if mode == "none":
        return _collate_padded(pack, device, pad_token_id)
    return (
        _collate_bfd(pack, device) if mode == "bfd" else _collate_shared_prefix(pack, device, attention, pad_token_id)
    )


def _collate_bfd(pack: Pack, device: "torch.device | str") -> Batch:
    """Return separate rows as one sequence without a mask.

    Positions that start again make transformers build the mask of each layer, sliding windows included.
    """
    import torch

    lines = [_tokens_and_labels(row, index) for row, index in _row_completions(pack)]
    positions = [position for ids, _ in lines for position in range(len(ids))]
    return _make_batch(
        device,
        [[token for ids, _ in lines for token in ids]],
        [[label for _, labels in lines for label in labels]],
        [[number for number, (ids, _) in enumerate(lines) for _ in ids]],
        pack.rows,
        {"position_ids": torch.tensor([positions], device=device)},
    )


def _row_completions(pack: Pack) -> list[tuple[TokenizedRow, int]]:
    return [(row, index) for row in pack.rows for index in range(len(row.completions))]


def _tokens_and_labels(row: TokenizedRow, index: int) -> tuple[list[int], list[int]]:
    """Return ids and labels of one answer of a row after its complete prompt."""
    answer = row.completions[index]
    return row.prompt_ids + answer, [IGNORE_INDEX] * len(row.prompt_ids) + answer


def _collate_padded(pack: Pack, device: "torch.device | str", pad_token_id: int) -> Batch:
    import torch

    lines = [_tokens_and_labels(row, index) for row, index in _row_completions(pack)]
    longest = max(len(ids) for ids, _ in lines)

    def pad_values(values: list[int], fill_value: int) -> list[int]:
        return values + [fill_value] * (longest - len(values))

    # The mask is by position, not by id: if pad and stop are one token, the stop token must still be trained on.
    attention_mask = torch.tensor([pad_values([1] * len(ids), 0) for ids, _ in lines], device=device)
    return _make_batch(
        device,
        [pad_values(ids, pad_token_id) for ids, _ in lines],
        [pad_values(labels, IGNORE_INDEX) for _, labels in lines],
        [[number] * longest for number in range(len(lines))],
        pack.rows,
        {"attention_mask": attention_mask},
    )


def _collate_shared_prefix(
    pack: Pack, device: "torch.device | str", attention: Implementation, pad_token_id: int
) -> Batch:
    import torch

    prefix = pack.prefix
    ids, labels, positions = list(pack.rows[0].prompt_ids[:prefix]), [IGNORE_INDEX] * prefix, list(range(prefix))
    row_ids, branch_ids, sequences = [0] * prefix, [0] * prefix, [0] * prefix
    n_answers = 0
    for number, row in enumerate(pack.rows, start=1):
        suffix = row.prompt_ids[prefix:]
        # Several answers share the prompt but for its last token, which predicts the first token of an answer.
        shared_prompt = [] if len(row.completions) == 1 else suffix[:-1]
        segments = [(shared_prompt, [IGNORE_INDEX] * len(shared_prompt), 0, prefix)] if shared_prompt else []
        for branch, answer in enumerate(row.completions, start=1):
            segment = suffix[len(shared_prompt) :] + answer
            segments.append(
                (segment, [IGNORE_INDEX] * (len(segment) - len(answer)) + answer, branch, prefix + len(shared_prompt))
            )
        for segment, segment_labels, branch, start in segments:
            ids += segment
            labels += segment_labels
            positions += range(start, start + len(segment))
            row_ids += [number] * len(segment)
            branch_ids += [branch] * len(segment)
            sequences += [n_answers + max(0, branch - 1)] * len(segment)
        n_answers += len(row.completions)
    pack_segments = find_segments(row_ids, branch_ids)
    use_flex = attention == FLEX and len(ids) >= MIN_FLEX_TOKENS
    block_sizes = (
        block_lengths(prefix, [row.tokens_after_prefix(prefix) for row in pack.rows])
        if attention == SHARED_PREFIX
        else None
    )
    if use_flex:
        # Padding to few lengths avoids recompilation for every pack. The padding is a row that no other token sees.
        padding = -len(ids) % FLEX_BLOCK_SIZE
        ids, labels = ids + [pad_token_id] * padding, labels + [IGNORE_INDEX] * padding
        positions, sequences = positions + [0] * padding, sequences + [0] * padding
        row_ids, branch_ids = row_ids + [-1] * padding, branch_ids + [0] * padding
    token_rows, token_branches = torch.tensor(row_ids, device=device), torch.tensor(branch_ids, device=device)
    inputs = {"position_ids": torch.tensor([positions], device=device)}
    batch = _make_batch(device, [ids], [labels], [sequences], pack.rows, inputs, pack_segments)
    if block_sizes:
        return replace(
            batch,
            attention=SHARED_PREFIX,
            blocks=AttentionBlocks(prefix, dense_block_masks(token_rows, token_branches, prefix, block_sizes)),
        )
    batch.inputs["attention_mask"] = (
        block_mask(token_rows, token_branches) if use_flex else dense_mask(token_rows, token_branches)
    )
    return replace(batch, attention=FLEX) if use_flex else batch


def dense_block_masks(
    row_ids: "torch.Tensor", branch_ids: "torch.Tensor", prefix: int, lengths: Sequence[int]
) -> tuple["torch.Tensor", ...]:
    """Return the part of the dense mask for each block of these lengths after the prefix, each [1, 1, B, prefix + B].

    The columns of other blocks are left out: the block does not see them.
    """
    import torch

    blocks = zip(row_ids[prefix:].split(lengths), branch_ids[prefix:].split(lengths), strict=True)
    return tuple(torch.nn.functional.pad(dense_mask(*tokens), (prefix, 0), value=True) for tokens in blocks)


def dense_mask(row_ids: "torch.Tensor", branch_ids: "torch.Tensor") -> "torch.Tensor":
    """Return the boolean mask [1, 1, T, T] of visible tokens, from the row and the branch of each token.

    Row 0 is the prefix, and branch 0 is the prompt.
    """
    same_branch = (branch_ids[:, None] == branch_ids[None, :]) | (branch_ids[None, :] == 0)
    visible = (row_ids[None, :] == 0) | ((row_ids[:, None] == row_ids[None, :]) & same_branch)
    return visible.tril()[None, None]


def block_mask(row_ids: "torch.Tensor", branch_ids: "torch.Tensor") -> "BlockMask":
    """Return the same mask for FlexAttention, as a mask of the blocks with visible tokens."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_batch: object, _head: object, query: "torch.Tensor", key: "torch.Tensor") -> "torch.Tensor":
        same_branch = (branch_ids[query] == branch_ids[key]) | (branch_ids[key] == 0)
        return (query >= key) & ((row_ids[key] == 0) | ((row_ids[query] == row_ids[key]) & same_branch))

    tokens = row_ids.numel()
    return create_block_mask(visible, 1, None, tokens, tokens, device=str(row_ids.device), BLOCK_SIZE=FLEX_BLOCK_SIZE)


def _make_batch(
    device: "torch.device | str",
    ids: list[list[int]],
    labels: list[list[int]],
    sequences: list[list[int]],
    rows: tuple[TokenizedRow, ...],
    extra_inputs: dict[str, Any],
    segments: tuple[Segment, ...] = (),
) -> Batch:
    import torch

    inputs = {"input_ids": torch.tensor(ids, device=device), **extra_inputs}
    return Batch(
        inputs, torch.tensor(labels, device=device), torch.tensor(sequences, device=device), rows, segments=segments
    )
