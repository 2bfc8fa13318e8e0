"""The states of recurrent layers in a pack: each row starts from the state where the prefix ends.

    pack       [ prefix | row 1 | row 2 prompt | its answer A | its answer B ]
    level 0    prefix                        one scan; its final state is the initial state of level 1
    level 1    row 1, row 2 prompt           one scan of two sequences
    level 2    answers A and B               one scan of two sequences, from the state of row 2's prompt

The gradients of all rows flow back through the state into the prefix, as they would into its copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from train.model.recurrent_layers import Convolution, Scan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a pack after the segment `parent`, which comes before it; -1 for none."""

    start: int
    tokens: int
    parent: int


@dataclass(frozen=True)
class _Grid:
    """Segments of one depth and of similar length: a grid of tokens, padded on the right."""

    tokens: "torch.Tensor"
    """The token at each index, [segments, longest]; padding repeats a token."""
    valid: "torch.Tensor | None"
    """[segments, longest], None if nothing is padded."""
    parents: "torch.Tensor | None"
    """The index of each parent among the segments of the depth above, None at the top."""


class BranchStates:
    """The segments of a pack of `tokens` tokens as `recurrent_layers.RowStates`. Tokens of no segment are padding."""

    def __init__(self, segments: Sequence[Segment], tokens: int, device: "torch.device") -> None:
        self.segments, self.device = segments, device
        self.levels: list[list[_Grid]] = []
        """The grids of each depth, the top first."""
        self.outputs: torch.Tensor
        """The index of each token in the outputs of all grids, [tokens]."""
        self.layouts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """For a width of convolutions the inputs with their past, and the indices of the tokens."""
        self._build_grids(tokens)

    def _build_grids(self, tokens: int) -> None:
        import torch

        outputs, offset = [0] * tokens, 0
        row_by_segment: dict[int, int] = {-1: 0}
        for depth in _by_depth(self.segments):
            self.levels.append([])
            order: list[int] = []
            for numbers in _by_length(self.segments, depth):
                segments = [self.segments[number] for number in numbers]
                longest = max(segment.tokens for segment in segments)
                for segment in segments:
                    outputs[segment.start : segment.start + segment.tokens] = range(offset, offset + segment.tokens)
                    offset += longest
                parents = [row_by_segment[segment.parent] for segment in segments]
                self.levels[-1].append(self._make_grid(segments, longest, parents if segments[0].parent >= 0 else None))
                order += numbers
            row_by_segment = {number: index for index, number in enumerate(order)}
        self.outputs = torch.tensor(outputs, device=self.device)

    def _make_grid(self, segments: Sequence[Segment], longest: int, parents: list[int] | None) -> _Grid:
        import torch

        grid = [[segment.start + min(index, segment.tokens - 1) for index in range(longest)] for segment in segments]
        lengths = torch.tensor([segment.tokens for segment in segments], device=self.device)
        is_full = all(segment.tokens == longest for segment in segments)
        return _Grid(
            torch.tensor(grid, device=self.device),
            None if is_full else torch.arange(longest, device=self.device) < lengths[:, None],
            None if parents is None else torch.tensor(parents, device=self.device),
        )

    def scan(self, scan: Scan, inputs: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """See `RowStates`."""
        import torch

        outputs: list[torch.Tensor] = []
        parent_states: torch.Tensor | None = None
        for level in self.levels:
            states = []
            for grid in level:
                cells = [tensor[0].index_select(0, grid.tokens.flatten()) for tensor in inputs]
                output, final_states = scan(
                    [tensor.view(*grid.tokens.shape, *tensor.shape[1:]) for tensor in cells],
                    None
                    if grid.parents is None or parent_states is None
                    else parent_states.index_select(0, grid.parents),
                    grid.valid,
                )
                outputs.append(output.flatten(0, 1))
                states.append(final_states)
            parent_states = torch.cat(states)
        return torch.cat(outputs).index_select(0, self.outputs)[None]

    def convolve(self, convolution: Convolution, inputs: "torch.Tensor", width: int) -> "torch.Tensor":
        """See `RowStates`. Every segment is computed after the last tokens of its past, or after zeros."""
        import torch

        if width not in self.layouts:
            self.layouts[width] = self._build_layout(width, inputs.shape[-1])
        past_and_tokens, indices = self.layouts[width]
        # Zeros at the end: the past of a first token.
        padded = torch.nn.functional.pad(inputs[0].T, (0, 0, 0, 1))
        output = convolution(padded.index_select(0, past_and_tokens).T[None])
        return output[0].T.index_select(0, indices).T[None]

    def _build_layout(self, width: int, tokens: int) -> "tuple[torch.Tensor, torch.Tensor]":
        import torch

        past = width - 1
        pasts: dict[int, list[int]] = {-1: [tokens] * past}
        inputs: list[int] = []
        indices = [0] * tokens
        for number, segment in enumerate(self.segments):
            positions = range(segment.start, segment.start + segment.tokens)
            line = [*pasts[segment.parent], *positions]
            indices[segment.start : positions.stop] = range(len(inputs) + past, len(inputs) + len(line))
            inputs += line
            pasts[number] = line[len(line) - past :]
        return torch.tensor(inputs, device=self.device), torch.tensor(indices, device=self.device)


def _by_depth(segments: Sequence[Segment]) -> list[list[int]]:
    """Return the numbers of the segments of each depth."""
    levels: list[list[int]] = []
    depths: list[int] = []
    for number, segment in enumerate(segments):
        depths.append(1 + depths[segment.parent] if segment.parent >= 0 else 0)
        if depths[-1] == len(levels):
            levels.append([])
        levels[depths[-1]].append(number)
    return levels


def _by_length(segments: Sequence[Segment], numbers: Sequence[int]) -> list[list[int]]:
    """Return the numbers in groups of similar length, less than twice as long as each other: little is padded."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(segments[number].tokens.bit_length(), []).append(number)
    return list(groups.values())


def find_segments(row_ids: Sequence[int], branch_ids: Sequence[int]) -> tuple[Segment, ...]:
    """Return the segments of a pack, from the row and the branch of each token.

    Row 0 is the prefix, and branch 0 is the prompt of a row with several answers.
    """
    segments: list[Segment] = []
    numbers: dict[tuple[int, int], int] = {}
    start = 0
    for (row, branch), tokens in groupby(zip(row_ids, branch_ids, strict=True)):
        prefix = numbers.get((0, 0), -1)
        numbers[row, branch] = len(segments)
        segments.append(Segment(start, len(list(tokens)), numbers.get((row, 0), prefix) if branch else prefix))
        start += segments[-1].tokens
    return tuple(segments)
