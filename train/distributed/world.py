"""The processes of one training: which one this is, and what all of them together have found."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

# As transformers' ddp_timeout, which comes too late: the process group is there before Trainer.
TIMEOUT_SECONDS = 1800


def world_size() -> int:
    """Returns how many processes train together."""
    return int(_state().num_processes)


def rank() -> int:
    """Returns the number of this process, 0 for the one that writes and talks."""
    return int(_state().process_index)


def is_main_process() -> bool:
    """Returns whether this process is the one that writes and talks."""
    return rank() == 0


def barrier() -> None:
    """Returns when all processes are here."""
    _state().wait_for_everyone()


def shard(items: Sequence[Any]) -> list[Any]:
    """Returns the items that this process works on: every n-th."""
    return list(items[rank() :: world_size()])


def gather_in_order(items: Sequence[Any], total: int) -> list[Any]:
    """Returns what all processes made of their `dealt` items, in the order of all `total` items, in every process."""
    if world_size() == 1:
        return list(items)
    from accelerate.utils import gather_object

    gathered: list[Any] = [None] * total
    for process, process_items in enumerate(gather_object([list(items)])):
        gathered[process :: world_size()] = process_items
    return gathered


def _state() -> Any:
    from accelerate import PartialState

    # Left to itself it would find one process where torchrun started several on a CPU, and on GPUs wait 10 minutes for
    # the others: a validation of uneven rows, or the first process writing a base, may take longer.
    return PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "true", timeout=timedelta(seconds=TIMEOUT_SECONDS))
