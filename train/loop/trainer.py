"""transformers' Trainer with packs: one item is one process's part of an optimizer update.

Trainer provides the optimizer, the schedule, mixed precision, processes and checkpoints. An item of the data set is an
`UpdateShard`, so per_device_train_batch_size and gradient_accumulation_steps are 1. The update equals that of separate
rows for any packs, any number of processes, and any halving of packs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from insource.config.errors import StageError
from train.device import out_of_memory
from train.loop import checkpoints
from train.loop.losses import OBJECTIVES, MetricSums
from train.loop.metrics_callback import MetricsCallback
from train.packing import collate
from train.packing.attention import disable_unsupported_flex, pack_attention, preferred_implementation
from train.packing.dataset import TrainingSet
from train.packing.packing_plan import Pack, UpdateShard

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class PackTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose batches are shards of an update.

    `training_set` contains the rows and their order. `evaluator` returns the validation metrics of the current model.
    `recorder` gets the counts and metrics of every update. `on_fallback` gets a message to print and record.
    `forward_context` is the context of forward passes.
    """

    def __init__(
        self,
        *,
        training_set: TrainingSet,
        beta: float,
        validate: Callable[[], dict[str, float]],
        recorder: MetricsCallback,
        on_fallback: Callable[[str], None],
        forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
        **kwargs: object,
    ) -> None:
        super().__init__(data_collator=_single_item, **kwargs)
        self.training_set, self.loss_fn, self.beta = training_set, OBJECTIVES[training_set.objective], beta
        self.validate, self.recorder, self.on_fallback = validate, recorder, on_fallback
        self.forward_context = forward_context
        self.max_pack_rows: int | None = None
        """The most rows of a pack since an out-of-memory error."""
        self.shard: UpdateShard | None = None

    def training_step(
        self, model: "PreTrainedModel", inputs: UpdateShard, num_items_in_batch: object = None
    ) -> torch.Tensor:
        """Return the loss of the update and accumulate its gradients.

        The loss is this process's part times the number of processes, so that the mean over processes is the loss.
        Packs are halved after an out-of-memory error. Raise StageError if the loss is not finite.
        """
        model.train()
        self.shard = inputs
        packs = [part for pack in inputs.packs for part in self._split_to_fit(pack)]
        while True:
            try:
                loss, metric_sums = self._forward_and_backward(model, packs, inputs.normalizer)
                break
            except RuntimeError as error:
                if message := disable_unsupported_flex(error):
                    model.zero_grad()
                    self.on_fallback(message)
                    continue
                if not out_of_memory.is_out_of_memory(error):
                    raise
                oom_message = str(error).splitlines()[0]
            # Outside of the except block, where the failed graph would still be held.
            packs = self._halve_packs(model, packs, oom_message)
        if not torch.isfinite(loss):
            raise StageError(self._non_finite_message("the loss", loss.item()), code="INS-T015")
        saved = inputs.unpacked_tokens - inputs.computed_tokens
        self.recorder.count(inputs.examples, inputs.computed_tokens, saved)
        for name, (total, count) in metric_sums.items():
            self.recorder.add_metric({name: total}, count)
        return loss

    def _forward_and_backward(
        self, model: "PreTrainedModel", packs: list[Pack], normalizer: float
    ) -> tuple[torch.Tensor, MetricSums]:
        # Gradients are averaged over processes, and each process divides by the normalizer of the complete update.
        scale = self.accelerator.num_processes / normalizer
        loss, metric_sums = torch.zeros((), device=self.accelerator.device), MetricSums()
        for index, pack in enumerate(packs):
            is_last = index == len(packs) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                batch = self._collate(pack)
                # Backward is inside: gradient checkpointing computes layers again there.
                with pack_attention(self.model.config, batch):
                    with self.compute_loss_context_manager(), self.forward_context():
                        summed, pack_sums = self.loss_fn(model, batch, self.beta)
                    self.accelerator.backward(summed * scale)
            loss += summed.detach() * scale
            for name, (total, count) in pack_sums.items():
                previous = metric_sums.get(name, (0.0, 0.0))
                metric_sums[name] = (previous[0] + total, previous[1] + count)
        return loss, metric_sums

    def _collate(self, pack: Pack) -> collate.Batch:
        device, pad_token_id = self.accelerator.device, self.processing_class.pad_token_id
        return collate.collate_pack(
            pack, self.training_set.plan.mode, device, pad_token_id, preferred_implementation(device, self.model.config)
        )

    def _split_to_fit(self, pack: Pack) -> list[Pack]:
        if self.max_pack_rows is None or len(pack.rows) <= self.max_pack_rows:
            return [pack]
        return [part for half in pack.split_in_half() for part in self._split_to_fit(half)]

    def _halve_packs(self, model: "PreTrainedModel", packs: list[Pack], oom_message: str) -> list[Pack]:
        """Return the packs of this update with half the rows each, and reset its gradients.

        Raise StageError if packs cannot be halved: one row, or several processes.
        """
        largest = max(len(pack.rows) for pack in packs)
        if largest == 1 or self.accelerator.num_processes > 1:
            raise StageError(
                f"update {self.state.global_step + 1} ran out of memory: {oom_message}\n"
                f"  Set train.pack_tokens lower (the longest pack had {max(pack.tokens for pack in packs)} tokens), "
                "train.gradient_checkpointing=true or model.quantization=nf4.",
                code="INS-T016",
            )
        model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.max_pack_rows = largest // 2
        self.on_fallback(
            f"out of memory with {largest} rows a pack: {self.max_pack_rows} from update "
            f"{self.state.global_step + 1} on, the same {len(self.shard.rows) if self.shard else 0} an update"
        )
        return [part for pack in packs for part in self._split_to_fit(pack)]

    def _non_finite_message(self, quantity: str, value: float) -> str:
        rows = [row.id for row in self.shard.rows] if self.shard else []
        display = ", ".join(rows[:16]) + (f" and {len(rows) - 16} more" if len(rows) > 16 else "")
        return (
            f"In update {self.state.global_step + 1} {quantity} is {value}: "
            "training stopped, the checkpoints are good.\n"
            f"  Rows of the update: {display}.\n"
            "  Look at these rows, lower train.learning_rate, or set train.max_grad_norm=1.0; then FRESH=1."
        )

    def _get_grad_norm(self, model: "PreTrainedModel", grad_norm: object = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # In fp16 the scaler adjusts its scale by overflowing updates, and skips them.
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            raise StageError(self._non_finite_message("the gradient norm", float(norm)), code="INS-T015")
        return norm

    def _save_checkpoint(self, model: "PreTrainedModel", trial: object) -> None:
        write = super()._save_checkpoint
        checkpoints.save(self, lambda: write(model, trial), self.recorder.state_dict())

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Return the validation metrics under Trainer's names, eval_<metric>."""
        metrics = {f"eval_{name}": value for name, value in self.validate().items()}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: object) -> int:
        """Return 0: Trainer's estimate reads input_ids of padded batches."""
        return 0

    def _get_num_items_in_batch(self, batch_samples: object, device: "torch.device") -> None:
        """Return None: the normalizer is part of the shard."""


def _single_item(items: list[UpdateShard]) -> UpdateShard:
    (shard,) = items
    return shard
