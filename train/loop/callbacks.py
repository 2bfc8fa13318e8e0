"""Trainer callbacks: periodic saving, graceful stop on a signal, and restoring state when a run resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

from train.distributed import world
from train.loop import checkpoints
from train.loop.signals import StopRequest

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class SaveEvery(TrainerCallback):  # type: ignore[misc]
    """Save every `updates` updates, also if Trainer keeps the best checkpoint and would save only at evaluations."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        control.should_save |= state.global_step % self.updates == 0


class GracefulStop(TrainerCallback):  # type: ignore[misc]
    """Save and stop after the update in which a signal arrives, in all processes after the same update."""

    def __init__(self, stop_request: StopRequest) -> None:
        self.stop_request = stop_request

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        self.stop_request.training = True

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        if any_process_stopping(self.stop_request.signal_name is not None, args.device):
            control.should_save = control.should_training_stop = True
            # The signal may have reached only another process.
            self.stop_request.signal_name = self.stop_request.signal_name or "SIGTERM"


def any_process_stopping(stopping: bool, device: "torch.device") -> bool:
    """Return whether a stop was requested in any process, with the same result in all processes."""
    if world.world_size() == 1:
        return stopping
    flag = torch.tensor(int(stopping), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


class RestoreTrainerState(TrainerCallback):  # type: ignore[misc]
    """Restore state that Trainer's own checkpoint lacks: sums since the last log, and the path of the best checkpoint.

    `load_state` receives the extra state of the checkpoint. `on_fallback` receives a message if the best checkpoint is
    damaged.
    """

    def __init__(
        self,
        trainer: "Trainer",
        checkpoint: Path,
        load_state: Callable[[dict[str, object]], None],
        on_fallback: Callable[[str], None],
    ) -> None:
        self.trainer, self.checkpoint, self.load_state, self.on_fallback = trainer, checkpoint, load_state, on_fallback

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        self.load_state(checkpoints.restore_trainer_sums(self.trainer, self.checkpoint))
        if state.best_global_step is None:
            return
        best = self.checkpoint.with_name(f"{checkpoints.PREFIX}{state.best_global_step}")
        if problem := checkpoints.find_corruption(best):
            self.on_fallback(
                f"the best checkpoint so far, {best.name}, is damaged: {problem}; the best of the next is taken"
            )
            state.best_global_step = state.best_metric = None
        checkpoints.set_best_checkpoint(state, self.checkpoint.parent)
