"""The states of recurrent layers of many rows after one prefix, beside the keys and values of shared_cache.py.

    prefix  [1, ...]     one state, which every row starts from
    rows    [R, ...]     a line each; after a pass the state behind the row's last token
    a pass  [1, N]       tokens of some rows side by side, unpadded

A state cannot go back to an earlier token, so a row with states takes no drafts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from train.model.recurrent_layers import Convolution, Scan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Grid:
    """The tokens of a pass as a grid, padded on the right: [rows of the pass, longest]."""

    lines: "torch.Tensor"
    """The line of each row of the pass."""
    lengths: "torch.Tensor"
    """Tokens of each row of the pass."""
    tokens: "torch.Tensor"
    """The token at each index; padding repeats a token."""
    valid: "torch.Tensor | None"
    """Indices that are not padding, None if all are."""
    indices: "torch.Tensor"
    """The index of each token in the flattened grid."""


class LineStates:
    """The states of `rows` lines, as `recurrent_layers.RowStates` of one pass after another."""

    def __init__(self, rows: int, prefix: "LineStates | None" = None) -> None:
        self.rows, self.prefix = rows, prefix
        self.pasts: list[torch.Tensor] = []
        """The last inputs [rows, channels, width - 1] of each convolution, in the order of the layers."""
        self.states: list[torch.Tensor] = []
        """The state [rows, ...] of each scan, in the order of the layers."""
        self.grid: _Grid | None = None
        self.convolutions = self.scans = 0
        """Convolutions and scans of this pass so far."""

    def start_pass(self, lines: Sequence[int], device: "torch.device") -> None:
        """Begin a pass with tokens of these lines; the tokens of a line are side by side."""
        import torch

        runs = [(line, len(list(tokens))) for line, tokens in groupby(lines)]
        longest = max(length for _, length in runs)
        tokens: list[list[int]] = []
        indices: list[int] = []
        start = 0
        for number, (_, length) in enumerate(runs):
            tokens.append([start + min(index, length - 1) for index in range(longest)])
            indices += range(number * longest, number * longest + length)
            start += length
        lengths = torch.tensor([length for _, length in runs], device=device)
        self.grid = _Grid(
            torch.tensor([line for line, _ in runs], device=device),
            lengths,
            torch.tensor(tokens, device=device),
            None if len(indices) == len(runs) * longest else torch.arange(longest, device=device) < lengths[:, None],
            torch.tensor(indices, device=device),
        )
        self.convolutions = self.scans = 0

    def convolve(self, convolution: Convolution, inputs: "torch.Tensor", width: int) -> "torch.Tensor":
        """See `RowStates`."""
        import torch

        grid, layer = self._current_grid(), self.convolutions
        self.convolutions += 1
        new = inputs[0].T[grid.tokens].transpose(1, 2)
        if layer == len(self.pasts):
            zeros = new.new_zeros(1, new.shape[1], width - 1)
            self.pasts.append(self._first_lines(self.prefix.pasts[layer] if self.prefix else zeros))
        past_and_new = torch.cat([self.pasts[layer][grid.lines], new], dim=2)
        last = grid.lengths[:, None] + torch.arange(width - 1, device=new.device)
        self.pasts[layer][grid.lines] = past_and_new.gather(2, last[:, None].expand(-1, new.shape[1], -1))
        output = convolution(past_and_new)[:, :, width - 1 :]
        return output.transpose(1, 2).flatten(0, 1)[grid.indices].T[None]

    def scan(self, scan: Scan, inputs: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """See `RowStates`."""
        grid, layer = self._current_grid(), self.scans
        self.scans += 1
        has_state = layer < len(self.states)
        if not has_state and self.prefix:
            self.states.append(self._first_lines(self.prefix.states[layer]))
            has_state = True
        output, states = scan(
            [tensor[0][grid.tokens] for tensor in inputs],
            self.states[layer][grid.lines] if has_state else None,
            grid.valid,
        )
        if not has_state:
            self.states.append(self._first_lines(states.new_zeros(1, *states.shape[1:])))
        self.states[layer][grid.lines] = states.to(self.states[layer].dtype)
        return output.flatten(0, 1)[grid.indices][None]

    def keep(self, lines: "torch.Tensor") -> None:
        """Drop all other lines."""
        self.pasts, self.states = [past[lines] for past in self.pasts], [state[lines] for state in self.states]
        self.rows = len(lines)

    def _first_lines(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Return a copy of a tensor [1, ...] for every line."""
        return tensor.expand(self.rows, *tensor.shape[1:]).clone()

    def _current_grid(self) -> _Grid:
        if self.grid is None:
            raise RuntimeError("recurrent layers continue the states of a pass, and there is none")
        return self.grid
