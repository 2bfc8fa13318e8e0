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
from typing import Any

from train.model.recurrent_layers import Convolution, Scan


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a pack after the segment `parent`, which comes before it; -1 for none."""

    start: int
    tokens: int
    parent: int


@dataclass(frozen=True)
class _Level:
    """Segments of one depth: a grid of tokens, padded on the right."""

    tokens: Any
    """The token of each place, [segments, longest]; padding repeats a token."""
    valid: Any
    """[segments, longest], None if nothing is padded."""
    parents: Any
    """The place of each parent in the level above, None at the top."""


class BranchStates:
    """The segments of a pack of `tokens` tokens as `recurrent_layers.RowStates`. Tokens of no segment are padding."""

    def __init__(self, segments: Sequence[Segment], tokens: int, device: Any) -> None:
        self.segments, self.device = segments, device
        self.levels: list[_Level] = []
        self.outputs: Any = None
        """The place of each token in the outputs of all levels, [tokens]."""
        self.layouts: dict[int, tuple[Any, Any]] = {}
        """For a width of convolutions the inputs with their past, and the places of the tokens."""
        self._build_levels(tokens)

    def _build_levels(self, tokens: int) -> None:
        import torch

        depths: list[int] = []
        for segment in self.segments:
            depths.append(1 + depths[segment.parent] if segment.parent >= 0 else 0)
        outputs, places, offset = [0] * tokens, {-1: 0}, 0
        for depth in range(1 + max(depths)):
            members = [number for number, segment_depth in enumerate(depths) if segment_depth == depth]
            segments = [self.segments[number] for number in members]
            longest = max(segment.tokens for segment in segments)
            grid = [
                [segment.start + min(index, segment.tokens - 1) for index in range(longest)] for segment in segments
            ]
            for row, segment in enumerate(segments):
                start = offset + row * longest
                outputs[segment.start : segment.start + segment.tokens] = range(start, start + segment.tokens)
            offset += len(segments) * longest
            lengths = torch.tensor([segment.tokens for segment in segments], device=self.device)
            is_full = all(segment.tokens == longest for segment in segments)
            parents = [places[segment.parent] for segment in segments]
            self.levels.append(
                _Level(
                    torch.tensor(grid, device=self.device),
                    None if is_full else torch.arange(longest, device=self.device) < lengths[:, None],
                    torch.tensor(parents, device=self.device) if depth else None,
                )
            )
            places |= {number: place for place, number in enumerate(members)}
        self.outputs = torch.tensor(outputs, device=self.device)

    def scan(self, scan: Scan, inputs: Sequence[Any]) -> Any:
        """See `RowStates`."""
        import torch

        outputs, states = [], None
        for level in self.levels:
            grid = [tensor[0].index_select(0, level.tokens.flatten()) for tensor in inputs]
            initial_states = None if level.parents is None else states.index_select(0, level.parents)
            output, states = scan(
                [tensor.unflatten(0, level.tokens.shape) for tensor in grid], initial_states, level.valid
            )
            outputs.append(output.flatten(0, 1))
        return torch.cat(outputs).index_select(0, self.outputs)[None]

    def convolve(self, convolution: Convolution, inputs: Any, width: int) -> Any:
        """See `RowStates`. Every segment is computed after the last tokens of its past, or after zeros."""
        import torch

        if width not in self.layouts:
            self.layouts[width] = self._build_layout(width, inputs.shape[-1])
        past_and_tokens, places = self.layouts[width]
        # Zeros at the end: the past of a first token.
        padded = torch.nn.functional.pad(inputs[0].T, (0, 0, 0, 1))
        output = convolution(padded.index_select(0, past_and_tokens).T[None])
        return output[0].T.index_select(0, places).T[None]

    def _build_layout(self, width: int, tokens: int) -> tuple[Any, Any]:
        import torch

        past = width - 1
        pasts: dict[int, list[int]] = {-1: [tokens] * past}
        inputs: list[int] = []
        places = [0] * tokens
        for number, segment in enumerate(self.segments):
            own = range(segment.start, segment.start + segment.tokens)
            line = [*pasts[segment.parent], *own]
            places[segment.start : own.stop] = range(len(inputs) + past, len(inputs) + len(line))
            inputs += line
            pasts[number] = line[len(line) - past :]
        return torch.tensor(inputs, device=self.device), torch.tensor(places, device=self.device)


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
