"""A transformers Trainer with a model of a few weights and the checkpoints of training.

For tests that would take minutes with a language model.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from train.loop import checkpoints
from train.loop.callbacks import RestoreTrainerState

UPDATES = 12


class TinyModel(torch.nn.Module):
    """A linear model with dropout, so that the random state has an effect."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.line = torch.nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        predictions = self.line(torch.nn.functional.dropout(x, 0.3, self.training))[:, 0]
        return {"loss": ((predictions - y) ** 2).mean(), "logits": predictions}


class TinyTrainer(Trainer):
    """A Trainer that saves as train/loop does. `metric_values` are the results of the evaluations, in order."""

    metric_values: Iterator[float] = iter(())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints.save(
            self, lambda: super(TinyTrainer, self)._save_checkpoint(model, trial), {"step": self.state.global_step}
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_score": next(self.metric_values)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class CallAfterUpdate(TrainerCallback):
    """Call a function after an update."""

    def __init__(self, update: int, action: Callable[[], None]) -> None:
        self.update, self.action = update, action

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.update:
            self.action()


def make_trainer(
    folder: Path, *, width: int = 4, callbacks: Sequence[TrainerCallback] = (), **kwargs: Any
) -> TinyTrainer:
    generator = torch.Generator().manual_seed(3)
    rows = [
        {"x": torch.randn(width, generator=generator), "y": torch.tensor(float(index))} for index in range(2 * UPDATES)
    ]
    arguments = {"save_steps": 3, "logging_steps": 2, "learning_rate": 0.1, **kwargs}
    trainer = TinyTrainer(
        model=TinyModel(width),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            num_train_epochs=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=list(callbacks),
    )
    trainer.callback_handler.callbacks = [
        callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ != "PrinterCallback"
    ]
    return trainer


def resume_training(
    folder: Path, values: Sequence[float] = (), on_fallback: Callable[[str], None] = print, **kwargs: Any
) -> TinyTrainer:
    """Resume training from the newest complete checkpoint to the end. Return the new trainer."""
    checkpoint = checkpoints.find_latest_valid(folder).latest
    assert checkpoint is not None
    trainer = make_trainer(folder, **kwargs)
    trainer.metric_values = iter(values)
    restored: list[dict[str, int]] = []
    trainer.add_callback(RestoreTrainerState(trainer, checkpoint, restored.append, on_fallback))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert restored == [{"step": checkpoints.step(checkpoint)}]
    return trainer


def logged_losses(trainer: TinyTrainer) -> list[tuple[int, float]]:
    """Return (step, loss) of each logged step."""
    return [(line["step"], line["loss"]) for line in trainer.state.log_history if "loss" in line]


# Arguments of a trainer that evaluates and selects the best checkpoint.
SELECT_BEST = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "metric_for_best_model": "score",
    "greater_is_better": True,
    "lr_scheduler_type": "constant",
}
