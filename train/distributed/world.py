"""The processes of one training: the rank of this process, and the results of all processes in order."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from accelerate import PartialState

Item = TypeVar("Item")

# The default of transformers' ddp_timeout. Trainer sets it too late: the process group exists before Trainer.
TIMEOUT_SECONDS = 1800


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(_state().num_processes)


def rank() -> int:
    """Return the rank of this process, 0 for the main process."""
    return int(_state().process_index)


def is_main_process() -> bool:
    """Return whether this is the main process, which writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have reached this call."""
    _state().wait_for_everyone()


def shard(items: Sequence[Item]) -> list[Item]:
    """Return the items of this process: every n-th, for n processes."""
    return list(items[rank() :: world_size()])


def gather_in_order(items: Sequence[Item], total: int) -> list[Item]:
    """Return the results of all processes for their `shard` of `total` items, in the items' order, in every process."""
    if world_size() == 1:
        return list(items)
    from accelerate.utils import gather_object

    gathered: list[Item | None] = [None] * total
    for process, process_items in enumerate(gather_object([list(items)])):
        gathered[process :: world_size()] = process_items
    return cast("list[Item]", gathered)


def _state() -> "PartialState":
    from accelerate import PartialState

    # Without `cpu` it would find one process where torchrun started several on a CPU. On GPUs the default time-out is
    # 10 minutes: a validation of uneven rows, or writing a base in the main process, may take longer.
    return PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "true", timeout=timedelta(seconds=TIMEOUT_SECONDS))
