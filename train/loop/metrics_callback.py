"""Progress of a training: the same rows in metrics.jsonl and W&B, and a summary in the terminal.

    terminal    training  ━━━━━━━━━━━╸━━━━━  120/195  loss 0.412  22 examples/s  0:01:24 eta 0:00:52
    log file    training  5/195    3 s so far, about 2 min left
                training  49/195  loss 1.203  22 examples/s  35 s so far, about 105 s left
                validated 100/195  accuracy 0.873  macro-F1 0.861  4.2 s

A row of a training interval contains step, epoch, loss, learning_rate, grad_norm, examples_per_second,
tokens_per_second (computed tokens), tokens_saved_per_second (further tokens without packing) and peak_memory_bytes. A
row of an evaluation contains step, epoch and validation/<metric>.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from insource.system import progress_bar
from insource.system.console_log import log_line
from insource.system.progress_bar import ProgressUpdate, format_duration
from insource.tasks import metric_label
from insource.tracking import metrics as metrics_file
from insource.tracking import wandb_logging
from train.distributed import world

if TYPE_CHECKING:
    import wandb
    from transformers import TrainerControl, TrainerState, TrainingArguments

TRAINER_METRICS = ("loss", "learning_rate", "grad_norm")


def show_progress(label: str, total: int, done: int = 0) -> AbstractContextManager[ProgressUpdate]:
    """Return the progress bar of `insource.system.progress_bar`, visible only in the main process."""
    return progress_bar.show_progress(label, total, done, visible=world.is_main_process())


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: of the GPU if it used one, else its resident size."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class LoggingInterval:
    """Counts and sums since the last logged row."""

    seconds: float = 0.0
    """Time of updates, without evaluations and checkpoints."""
    examples: int = 0
    computed_tokens: int = 0
    saved_tokens: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    over: dict[str, float] = field(default_factory=dict)

    def rates(self) -> dict[str, float]:
        """Return examples, computed tokens and saved tokens a second; {} if nothing was counted."""
        if not self.seconds or not self.examples:
            return {}
        return {
            "examples_per_second": round(self.examples / self.seconds, 2),
            "tokens_per_second": round(self.computed_tokens / self.seconds, 1),
            "tokens_saved_per_second": round(self.saved_tokens / self.seconds, 1),
        }

    def means(self) -> dict[str, float]:
        """Return the mean of each added metric over its count."""
        return {name: float(value) / self.over[name] for name, value in self.sums.items()}


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Write a row for each logging interval and each evaluation to metrics.jsonl and W&B, and advance the progress bar.

    `updates_per_epoch` converts updates to epochs of the recipe: Trainer gets all epochs as one. Only the main process
    writes. Its rates are right if `count` gets the numbers of all processes.
    """

    def __init__(
        self, path: Path, wandb_run: "wandb.Run | None", updates_per_epoch: float, advance: ProgressUpdate
    ) -> None:
        self.path, self.wandb_run, self.updates_per_epoch, self.advance = path, wandb_run, updates_per_epoch, advance
        self.interval = LoggingInterval()
        self.last_timestamp = time.monotonic()
        self.status_text = ""

    def count(self, examples: int, computed_tokens: int, saved_tokens: int) -> None:
        """Add the counts of an update, over all processes. Call it before the update ends."""
        self.interval.examples += examples
        self.interval.computed_tokens += computed_tokens
        self.interval.saved_tokens += saved_tokens

    def add_metric(self, sums: Mapping[str, object], count: float = 1.0) -> None:
        """Add metrics of an update, each as its sum over `count` items (rows, tokens, updates).

        The row contains their mean over the interval: `add_metric({"rewards/accuracies": 5.0}, count=8)`. A sum may be
        a tensor, which is not read before the row is written. An added `loss` replaces Trainer's.
        """
        for name, value in sums.items():
            self.interval.sums[name] = self.interval.sums.get(name, 0.0) + value
            self.interval.over[name] = self.interval.over.get(name, 0.0) + count

    def state_dict(self) -> dict[str, Any]:
        """Return the current interval as JSON, for a checkpoint between two rows."""
        sums = {name: float(value) for name, value in self.interval.sums.items()}
        return {**asdict(self.interval), "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the interval of a checkpoint, so that the next row is that of an uninterrupted run."""
        self.interval = LoggingInterval(**state)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row to metrics.jsonl and W&B."""
        row = {"step": step, "epoch": round(step / self.updates_per_epoch, 4), **values}
        metrics_file.append(self.path, row)
        wandb_logging.log_row(self.wandb_run, row)

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        if state.is_world_process_zero:
            wandb_logging.replay_rows(self.wandb_run, self.path)
        self.last_timestamp = time.monotonic()

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        now = time.monotonic()
        self.interval.seconds, self.last_timestamp = self.interval.seconds + now - self.last_timestamp, now
        # Otherwise no row would contain the last updates of a run.
        control.should_log |= state.global_step >= state.max_steps
        self.advance(state.global_step, self.status_text)

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        interval, self.interval = self.interval, LoggingInterval()
        if not state.is_world_process_zero:
            return
        values = {name: float(logs[name]) for name in TRAINER_METRICS if name in logs} | interval.means()
        self.log(state.global_step, {**values, **interval.rates(), "peak_memory_bytes": peak_memory_bytes()})
        self.status_text = f"loss {values['loss']:.3f}"
        if examples := interval.rates().get("examples_per_second"):
            self.status_text += f"  {examples:.3g} examples/s"
        self.advance(state.global_step, self.status_text)

    def on_evaluate(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        metrics: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """Log {metric: value}, with or without Trainer's prefix (eval_<metric>)."""
        now = time.monotonic()
        seconds, self.last_timestamp = now - self.last_timestamp, now
        if not metrics or not state.is_world_process_zero:
            return
        values = {name.removeprefix("eval_"): float(value) for name, value in metrics.items() if name != "epoch"}
        values = {
            name: value for name, value in values.items() if not name.startswith(("runtime", "model_preparation"))
        }
        seconds = values.pop("seconds", seconds)
        row = {f"validation/{name}": value for name, value in values.items()} | {
            "validation/seconds": round(seconds, 2)
        }
        self.log(state.global_step, row)
        display = "  ".join(f"{metric_label(name)} {value:.3f}" for name, value in values.items())
        line = f"validated {state.global_step:,}/{state.max_steps:,}  {display}  {format_duration(seconds)}"
        log_line(line)

    def on_save(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object) -> None:
        self.last_timestamp = time.monotonic()
