"""Shared-prefix packing: rows that open alike are computed behind one copy of what they share, with the same gradients.

    [ prefix | row 1 | row 2 | row 3 ]     positions of every row start again behind the prefix;
                                           a token sees the prefix and the earlier tokens of its own row

A classification prompt is one long opening (instruction, labels) and a short text. Sixteen rows of 300 + 40 tokens cost
940 tokens this way instead of 5,440. The mask is an ordinary 4D attention mask, so the model needs no change; it must
attend with SDPA (eager attention would add a boolean mask as 0 and 1, a wrong loss without an error).

Conditions, checked here: the prefix ends before the last prompt token of every row, so that what the model must predict
is always predicted from a token of its own row; full attention in every layer. Dropout on adapters makes the rows of a
pack share what the prefix dropped, so that gradients are equal only in the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recipes.schema_train import Train
from tasks.render import Example, shared_prefix_length

IGNORE = -100


@dataclass(frozen=True)
class Plan:
    """How examples become sequences. `prefix_tokens` is 0 where nothing is shared."""

    prefix_tokens: int
    rows_a_pack: int
    packs_an_update: int
    tokens_a_row: float
    """Mean tokens of a row, its prefix included."""
    packed_tokens_a_row: float
    """Mean tokens of a row as computed: its own, and its part of the prefix."""


def unshareable(config: Any) -> str | None:
    """Returns why a model with this config cannot take the mask of a pack, or None."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if other := kinds - {"full_attention"}:
        return f"{text.model_type} has layers of kind {', '.join(sorted(other))}, which cannot take a pack's mask"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return f"{text.model_type} attends in a sliding window, which a pack's mask would switch off"
    return None


def possible(kind: str, config: Any) -> tuple[str, str | None]:
    """Returns the packing that will be used for the kind asked for, and why it is another one (None: it is not)."""
    if kind == "shared_prefix" and (why := unshareable(config)):
        return "none", why
    if kind == "bfd":
        return "none", "bfd packing is not built yet"
    return kind, None


def plan(examples: Sequence[Example], train: Train, processes: int = 1) -> Plan:
    """Returns the largest packs that fit `pack_tokens` and divide an update's rows evenly over processes."""
    share = max(1, train.batch_size // processes)
    lengths = [len(one.prompt_ids) + len(one.completion_ids) for one in examples]
    prefix, fits = 0, share
    if train.packing == "shared_prefix":
        shortest = min(len(one.prompt_ids) for one in examples)
        prefix = min(shared_prefix_length([one.prompt_ids for one in examples]), shortest - 1)
        longest = sorted((length - prefix for length in lengths), reverse=True)
        fits = max(n for n in range(1, share + 1) if n == 1 or prefix + sum(longest[:n]) <= train.pack_tokens)
    rows = max(n for n in range(1, fits + 1) if share % n == 0)
    mean = sum(lengths) / len(lengths)
    packed = mean - prefix + prefix / rows if prefix else mean
    return Plan(prefix, rows, share // rows, mean, packed)


def features(examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """Returns one row each, as TRL takes pre-tokenised data; only the completion is learnt."""
    return [
        {
            "input_ids": one.prompt_ids + one.completion_ids,
            "labels": [IGNORE] * len(one.prompt_ids) + one.completion_ids,
        }
        for one in examples
    ]


def collator(plan: Plan, pad_token_id: int) -> "SharedPrefixCollator | PaddedCollator":
    """Returns what makes batches by this plan."""
    return SharedPrefixCollator(plan.prefix_tokens) if plan.prefix_tokens else PaddedCollator(pad_token_id)


@dataclass(frozen=True)
class SharedPrefixCollator:
    """Makes one sequence of K rows: input_ids, labels and position_ids [1, T], attention_mask [1, 1, T, T]."""

    prefix_tokens: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        prefix = self.prefix_tokens
        ids, labels = list(rows[0]["input_ids"][:prefix]), [IGNORE] * prefix
        positions, segments = list(range(prefix)), [0] * prefix
        for number, row in enumerate(rows, start=1):
            own = row["input_ids"][prefix:]
            ids += own
            labels += row["labels"][prefix:]
            positions += range(prefix, prefix + len(own))
            segments += [number] * len(own)
        segment = torch.tensor(segments)
        visible = (segment[None, :] == segment[:, None]) | (segment[None, :] == 0)
        return {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.tensor([positions]),
            "attention_mask": visible.tril()[None, None],
        }


@dataclass(frozen=True)
class PaddedCollator:
    """Makes a batch of K separate rows, padded on the right: what every other trainer does."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[int], fill: int) -> list[int]:
            return values + [fill] * (longest - len(values))

        # By position, not by id: where pad and stop are one token, the stop token must still be learnt.
        return {
            "input_ids": torch.tensor([padded(row["input_ids"], self.pad_token_id) for row in rows]),
            "labels": torch.tensor([padded(row["labels"], IGNORE) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
        }
