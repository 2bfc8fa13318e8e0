"""A real transformers Trainer on a model of a few weights, saving checkpoints as training does: for tests that would
take minutes with a language model.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from train.loop import checkpoints
from train.loop.callbacks import RestoreTrainerState

UPDATES = 12


class Model(torch.nn.Module):
    """A line with dropout, so that the random state matters."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.line = torch.nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.line(torch.nn.functional.dropout(x, 0.3, self.training))[:, 0]
        return {"loss": ((found - y) ** 2).mean(), "logits": found}


class TinyTrainer(Trainer):
    """Trainer, saving as ours does; `values` are the validation metric after each evaluation."""

    values: Iterator[float] = iter(())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints.save(
            self, lambda: super(TinyTrainer, self)._save_checkpoint(model, trial), {"step": self.state.global_step}
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_score": next(self.values)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class DoAfterUpdate(TrainerCallback):
    """Does something after an update."""

    def __init__(self, update: int, what: Callable[[], None]) -> None:
        self.update, self.what = update, what

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.update:
            self.what()


def make_trainer(
    folder: Path, *, width: int = 4, callbacks: Sequence[TrainerCallback] = (), **given: Any
) -> TinyTrainer:
    generator = torch.Generator().manual_seed(3)
    rows = [{"x": torch.randn(width, generator=generator), "y": torch.tensor(float(at))} for at in range(2 * UPDATES)]
    asked = {"save_steps": 3, "logging_steps": 2, "learning_rate": 0.1, **given}
    made = TinyTrainer(
        model=Model(width),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            num_train_epochs=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **asked,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=list(callbacks),
    )
    made.callback_handler.callbacks = [
        one for one in made.callback_handler.callbacks if type(one).__name__ != "PrinterCallback"
    ]
    return made


def resume_training(
    folder: Path, values: Sequence[float] = (), announce: Callable[[str], None] = print, **given: Any
) -> TinyTrainer:
    """Returns a new trainer that has trained to the end from the newest whole checkpoint."""
    newest = checkpoints.find_latest_valid(folder).newest
    assert newest is not None
    made = make_trainer(folder, **given)
    made.values = iter(values)
    carried: list[dict[str, int]] = []
    made.add_callback(RestoreTrainerState(made, newest, carried.append, announce))
    made.train(resume_from_checkpoint=str(newest))
    assert carried == [{"step": checkpoints.step(newest)}]
    return made


def logged_metrics(made: TinyTrainer) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in made.state.log_history if "loss" in line]


# Arguments of a trainer that evaluates, and knows which checkpoint is best.
SELECT_BEST = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "metric_for_best_model": "score",
    "greater_is_better": True,
    "lr_scheduler_type": "constant",
}
