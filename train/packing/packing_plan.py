"""Shared-prefix packing: rows with a common prefix are computed after one copy of it, with the same gradients.

    [ prefix | row 1 | row 2 | row 3 ]     positions of every row start again after the prefix;
                                           a token sees the prefix and the earlier tokens of its own row

A classification prompt is a long opening (instruction, labels) and a short text. Sixteen rows of 300 + 40 tokens cost
940 tokens this way instead of 5,440. This module assigns rows to packs; collate.py makes tensors of them.

Two conditions hold. The prefix ends before the last prompt token of every row, so that every label is predicted from a
token of its own row. Every layer must attend and take the mask (model_support.py). With dropout on adapters the rows of
a pack share the dropped values of the prefix, so gradients are equal only in the mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from train.packing.prefix_groups import group_by_prefix

PackingMode = Literal["shared_prefix", "bfd", "none"]


@dataclass(frozen=True)
class TokenizedRow:
    """The token ids of one training row.

    It has one answer; with soft labels several, each with its probability; or for preference tuning the chosen and the
    rejected answer.
    """

    id: str
    prompt_ids: list[int]
    completions: tuple[list[int], ...]
    weight: float = 1.0
    """The loss weight of each answer token, or of the pair."""
    reference: tuple[float, ...] = ()
    """Log-probability of each completion under the untuned base; preference tuning only."""
    probabilities: tuple[float, ...] = ()
    """Soft labels: the probability of each completion, with sum 1. Empty for one answer and for a pair."""

    def tokens_after_prefix(self, prefix: int) -> int:
        """Return the tokens that the row adds to a pack after a prefix.

        Several answers share all but the last prompt token.
        """
        suffix_tokens = len(self.prompt_ids) - prefix
        if len(self.completions) == 1:
            return suffix_tokens + len(self.completions[0])
        return suffix_tokens - 1 + sum(1 + len(completion) for completion in self.completions)

    @property
    def unpacked_tokens(self) -> int:
        """The tokens of the row without packing: each completion has its own copy of the prompt."""
        return sum(len(self.prompt_ids) + len(completion) for completion in self.completions)

    @property
    def longest_sequence_tokens(self) -> int:
        """Tokens of the prompt with the longest answer."""
        return len(self.prompt_ids) + max(map(len, self.completions))

    @property
    def answer_tokens(self) -> int:
        return sum(map(len, self.completions))


@dataclass(frozen=True)
class Pack:
    """Rows that are computed together, after the first `prefix` tokens of their prompts."""

    rows: tuple[TokenizedRow, ...]
    prefix: int

    @property
    def tokens(self) -> int:
        """The computed tokens, without padding."""
        return self.prefix + sum(row.tokens_after_prefix(self.prefix) for row in self.rows)

    def split_in_half(self) -> "list[Pack]":
        """Return two packs of half the rows each, or this pack if it has only one row."""
        middle = len(self.rows) // 2
        return [Pack(self.rows[:middle], self.prefix), Pack(self.rows[middle:], self.prefix)] if middle else [self]


@dataclass(frozen=True)
class UpdateShard:
    """The part of one optimizer update that one process computes."""

    packs: tuple[Pack, ...]
    normalizer: float
    """The divisor of the summed loss of the complete update, over all processes."""
    examples: int
    """Data rows of the update, over all processes, as are the next two."""
    computed_tokens: int
    unpacked_tokens: int
    """The tokens of its rows without packing."""

    @property
    def rows(self) -> list[TokenizedRow]:
        return [row for pack in self.packs for row in pack.rows]


@dataclass(frozen=True)
class PackCost:
    """The cost of a pack of T tokens, in the time of one token: `pass_tokens` + T + pairs / `quadratic_tokens`.

    `pass_tokens` is the fixed cost of every forward and backward pass, mostly the dequantization of weights. The last
    term is attention, by the pairs of tokens that attend to each other. With a dense mask these are all T * T pairs.
    With blocks of `block_tokens` they are the prefix with its own past, and each other token with the prefix and its
    block.

    For one token a layer of width d does 4 * 12 d * d operations in matrices, forward and backward without weight
    gradients. It does 14 d operations for every visible token. The two are equal at 3.4 d tokens. Measured on two CPU
    cores: 3.1 to 3.5 d.
    """

    pass_tokens: float
    quadratic_tokens: float
    block_tokens: int | None = None

    def estimate(self, prefix: int, suffix_tokens: float) -> float:
        """Return the cost of a pack with `suffix_tokens` tokens after its prefix."""
        return (
            self.pass_tokens
            + prefix
            + suffix_tokens
            + self.attended_pairs(prefix, suffix_tokens) / self.quadratic_tokens
        )

    def attended_pairs(self, prefix: int, suffix_tokens: float) -> float:
        """Return the pairs of tokens that attention computes in such a pack."""
        if self.block_tokens is None:
            return (prefix + suffix_tokens) ** 2
        return prefix**2 / 2 + suffix_tokens * (prefix + min(suffix_tokens, self.block_tokens))


@dataclass(frozen=True)
class PackingPlan:
    """The assignment of rows to groups with common prefixes, and the limits of a pack."""

    mode: PackingMode
    prefixes: tuple[int, ...]
    """Shared tokens of each group; 0 for a group without a common prefix."""
    row_groups: tuple[int, ...]
    """The group of each row."""
    pack_tokens: int
    cost: PackCost


def build_packing_plan(
    rows: Sequence[TokenizedRow], mode: PackingMode, pack_tokens: int, batch_size: int, cost: PackCost
) -> PackingPlan:
    """Return the packing plan for these rows. Common prefixes are found on the token ids."""
    if mode != "shared_prefix":
        return PackingPlan(mode, (0,), (0,) * len(rows), pack_tokens, cost)
    prefixes, row_groups = group_by_prefix([row.prompt_ids for row in rows], batch_size)
    return PackingPlan(mode, prefixes, row_groups, pack_tokens, cost)


def plan_for_rows(train_plan: PackingPlan, rows: Sequence[TokenizedRow], batch_size: int) -> PackingPlan:
    """Return a plan of the same mode for other rows."""
    return build_packing_plan(rows, train_plan.mode, train_plan.pack_tokens, batch_size, train_plan.cost)


@dataclass(frozen=True)
class UpdateShards:
    """All shards of all updates, ordered by update and then by process; each is built when it is indexed.

    All processes of an update have the same number of packs, because with FSDP a process waits for the forward passes
    of the others. Missing packs are filled with dummy packs of weight 0.
    """

    rows: Sequence[TokenizedRow]
    plan: PackingPlan
    updates: Sequence[Sequence[int]]
    processes: int

    def __len__(self) -> int:
        return len(self.updates) * self.processes

    def __getitem__(self, index: int) -> UpdateShard:
        update, process = divmod(index, self.processes)
        rows = [self.rows[row_index] for row_index in self.updates[update]]
        packs_per_process = self._packs_per_process(update)
        missing = max(map(len, packs_per_process)) - len(packs_per_process[process])
        dummy_pack = Pack((replace(min(rows, key=lambda row: row.unpacked_tokens), weight=0.0),), 0)
        return UpdateShard(
            (*packs_per_process[process], *[dummy_pack] * missing),
            sum(map(_normalizer_weight, rows)),
            len(rows),
            sum(pack.tokens for packs in packs_per_process for pack in packs),
            sum(row.unpacked_tokens for row in rows),
        )

    def _packs_per_process(self, update: int) -> list[list[Pack]]:
        """Return the packs of each process: every process gets rows of every group and of every length."""
        order = sorted(
            self.updates[update],
            key=lambda index: (self.plan.row_groups[index], self.rows[index].tokens_after_prefix(0)),
        )
        return [
            list(_iterate_packs(self.rows, self.plan, order[process :: self.processes]))
            for process in range(self.processes)
        ]


def _normalizer_weight(row: TokenizedRow) -> float:
    """Return the row's part of the normalizer, times its weight.

    It is the number of its answer tokens, with soft labels their expected number, or one for a pair.
    """
    if row.probabilities:
        expected_tokens = zip(row.probabilities, row.completions, strict=True)
        return row.weight * sum(probability * len(answer) for probability, answer in expected_tokens)
    return row.weight * (row.answer_tokens if len(row.completions) == 1 else 1)


def answer_weights(row: TokenizedRow) -> list[float]:
    """Return the loss weight of each completion of an imitated row, in order."""
    return [row.weight * probability for probability in row.probabilities or (1.0,)]


def _iterate_packs(rows: Sequence[TokenizedRow], plan: PackingPlan, indices: Sequence[int]) -> Iterator[Pack]:
    for group, prefix in enumerate(plan.prefixes):
        group_rows = [rows[index] for index in indices if plan.row_groups[index] == group]
        if group_rows and plan.mode == "none":
            yield from _padded_batches(group_rows, plan)
        elif group_rows:
            yield from (Pack(tuple(pack_rows), prefix) for pack_rows in _balance_packs(group_rows, prefix, plan))


def _balance_packs(rows: list[TokenizedRow], prefix: int, plan: PackingPlan) -> list[list[TokenizedRow]]:
    """Return the rows in the cheapest number of packs, evenly filled.

    The longest row is placed first, and each row goes into the emptiest pack.
    """
    lengths = [row.tokens_after_prefix(prefix) for row in rows]
    total = sum(lengths)
    cheapest = min(range(1, len(rows) + 1), key=lambda n_packs: n_packs * plan.cost.estimate(prefix, total / n_packs))
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
    for n_packs in range(cheapest, len(rows) + 1):
        filled: list[list[int]] = [[] for _ in range(n_packs)]
        tokens = [prefix] * n_packs
        for index in order:
            emptiest = tokens.index(min(tokens))
            filled[emptiest].append(index)
            tokens[emptiest] += lengths[index]
        if max(tokens) <= plan.pack_tokens:
            break
    return [[rows[index] for index in sorted(indices)] for indices in filled if indices]


def _padded_batches(rows: list[TokenizedRow], plan: PackingPlan) -> Iterator[Pack]:
    """Yield batches of separate rows with at most `pack_tokens` tokens, padding to the longest row included."""
    batch: list[TokenizedRow] = []
    for row in sorted(rows, key=lambda row: row.unpacked_tokens):
        # A pair fills two rows of the batch, soft labels one for each answer.
        if batch and (len(batch) + 1) * row.unpacked_tokens > plan.pack_tokens:
            yield Pack(tuple(batch), 0)
            batch = []
        batch.append(row)
    yield Pack(tuple(batch), 0)


@dataclass(frozen=True)
class PackingStats:
    """Means over the updates of a plan, over all processes, and its longest pack."""

    unpacked: float
    """Tokens of the rows without packing."""
    computed: float
    """Computed tokens."""
    packs: float
    longest_pack: int
    longest_pack_answers: int
    """Answer tokens of the longest pack."""
    longest_pack_pairs: int
    """Pairs of tokens in its mask; 0 for packing without an own mask."""


def compute_packing_stats(shards: UpdateShards, max_updates: int = 200) -> PackingStats:
    """Return the means over the first `max_updates` updates: tokens as computed, and tokens without packing."""
    updates = min(max_updates, len(shards.updates))
    sampled = [shards[index] for index in range(updates * shards.processes)]
    packs = [pack for shard in sampled for pack in shard.packs]
    first_shards = sampled[:: shards.processes]
    longest, plan = max(packs, key=lambda pack: pack.tokens), shards.plan
    return PackingStats(
        sum(shard.unpacked_tokens for shard in first_shards) / updates,
        sum(shard.computed_tokens for shard in first_shards) / updates,
        len(packs) / updates,
        longest.tokens,
        sum(row.answer_tokens for row in longest.rows),
        int(plan.cost.attended_pairs(longest.prefix, longest.tokens - longest.prefix))
        if plan.mode == "shared_prefix"
        else 0,
    )
