"""What one sees while it trains: metrics.jsonl, W&B and the terminal get the same fields."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from tracking import metrics

LOGGED = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")


@contextmanager
def bar(what: str, total: int) -> Iterator[Any]:
    """Yields `advance(completed, note)`: a progress bar on a terminal, a line for each quarter where there is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total).advance
        return
    columns = (TextColumn(f"{what:<9}"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
               TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, note="")
        yield lambda completed, note="": progress.update(task, completed=completed, note=note)


class _Lines:
    """Progress for a log file: a line whenever another quarter is done."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.told, self.began = what, total, 0, time.monotonic()

    def advance(self, completed: int, note: str = "") -> None:
        quarter = 4 * completed // self.total
        if quarter > self.told:
            self.told = quarter
            seconds = time.monotonic() - self.began
            print(f"{self.what:<9} {completed}/{self.total}  {note}  {seconds:.0f} s", file=sys.stderr, flush=True)


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes every logged step to metrics.jsonl and W&B, and moves the progress bar."""

    def __init__(self, path: Path, wandb_run: Any, examples_an_update: int, advance: Any) -> None:
        self.path, self.wandb_run, self.examples, self.advance = path, wandb_run, examples_an_update, advance
        self.last: tuple[int, float] | None = None
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = (state.global_step, time.monotonic())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero or self.last is None:
            return
        step, now = state.global_step, time.monotonic()
        done, since = step - self.last[0], now - self.last[1]
        self.last = (step, now)
        figures = {"step": step, "epoch": round(state.epoch, 4)} | {
            name: float(logs[name]) for name in LOGGED if name in logs
        }
        figures["examples_per_second"] = round(done * self.examples / since, 2)
        metrics.append(self.path, figures)
        if self.wandb_run is not None:
            self.wandb_run.log({f"train/{name}": value for name, value in figures.items() if name != "step"}, step=step)
        self.note = f"loss {figures['loss']:.3f}  {figures['examples_per_second']:.0f} examples/s"
