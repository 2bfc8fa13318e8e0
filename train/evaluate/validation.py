"""Evaluation on the validation rows: before, during and after training.

For most kinds of task the answers are decoded and parsed, as in serving (`GenerationEvaluator`). For a preference task
the metrics come from the log-probabilities of the chosen and the rejected answer (`PreferenceEvaluator`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from insource.config.metric_names import select_metrics
from insource.tasks import references, slice_name
from insource.tasks.data_row import Rows
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tasks.task_kind import TaskKind
from train.distributed import fsdp, world
from train.evaluate import log_likelihood
from train.evaluate.constrained_decoding import DecodedAnswer, decode_answers
from train.model import dequantize
from train.packing.packing_plan import PackingPlan, TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class GenerationEvaluator:
    """Evaluation by decoded answers."""

    task: TaskKind
    spec: Any
    rows: Rows
    prompts: Sequence[list[int]]
    tokenizer: "PreTrainedTokenizerBase"
    max_answer_tokens: int
    example_ids: Sequence[list[str]] = ()
    """Ids of the train rows in the prompt of each row; empty without `train.shots`."""
    on_fallback: Callable[[str], None] = lambda message: None
    """Called with a message if a part is computed by a slower method."""

    def head(self, rows: int) -> "GenerationEvaluator":
        """Return the evaluator of only the first rows."""
        return replace(self, rows=self.rows[:rows], prompts=self.prompts[:rows], example_ids=self.example_ids[:rows])

    def predict(self, model: "PreTrainedModel", label: str) -> list[DecodedAnswer]:
        """Return the decoded answer for each row, with a progress bar named `label`."""
        from train.loop.metrics_callback import show_progress

        prompts = world.shard(self.prompts)
        # FSDP's sharded weights are gathered once. Dequantized copies besides them would take the memory that FSDP
        # saves.
        is_sharded = fsdp.is_sharded(model)
        with (
            show_progress(label, len(prompts)) as advance,
            fsdp.unshard(model) if is_sharded else dequantize.dequantize_layers(model, self.on_fallback),
        ):
            answers = decode_answers(
                model,
                self.tokenizer,
                prompts,
                self.task.grammar(self.spec),
                max_new_tokens=self.max_answer_tokens,
                on_progress=advance,
                on_fallback=self.on_fallback,
            )
        return world.gather_in_order(answers, len(self.prompts))

    def parse(self, answers: Sequence[DecodedAnswer]) -> list[ParsedAnswer]:
        """Return the parsed answers. An incomplete answer has the problem TRUNCATED and counts as wrong."""
        return [
            self.task.parse(self.spec, answer.text) if answer.complete else ParsedAnswer(None, TRUNCATED)
            for answer in answers
        ]

    def resolve_targets(self, parsed: Sequence[ParsedAnswer]) -> list[object]:
        """Return the target of each answer: the row's target, or the nearest of several references."""
        return references.select_targets(self.task, self.spec, self.rows, parsed)

    def score(self, answers: Sequence[Any], base_outputs: Sequence[Any]) -> dict[str, Any]:
        """Return the score of the answers, see `score_with_slices`. The outputs of the untuned base are not used."""
        return score_with_slices(self.task, self.spec, self.rows, self.parse(answers))


@dataclass(frozen=True)
class PreferenceEvaluator:
    """Evaluation of a preference task by log-probabilities."""

    task: TaskKind
    spec: Any
    rows: Rows
    pairs: Sequence[TokenizedRow]
    plan: PackingPlan
    tokenizer: "PreTrainedTokenizerBase"
    on_fallback: Callable[[str], None] = lambda message: None
    """Called with a message if a part is computed by a slower method."""

    def predict(self, model: "PreTrainedModel", label: str) -> list[tuple[float, ...]]:
        """Return the log-probabilities of the chosen and the rejected answer of each row, with a progress bar."""
        from train.loop.metrics_callback import show_progress

        with show_progress(label, len(self.pairs)) as advance, fsdp.unshard(model):
            return log_likelihood.compute_log_likelihoods(
                model, self.pairs, self.plan, self.tokenizer.pad_token_id, advance, self.on_fallback
            )

    def score(self, outputs: Sequence[Any], base_outputs: Sequence[Any]) -> dict[str, Any]:
        """Return the task's score, see `score_with_slices`. Rewards are relative to the outputs of the untuned base."""
        parsed = [
            ParsedAnswer(
                {
                    "chosen": log_probs[0],
                    "rejected": log_probs[1],
                    "reference_chosen": base_log_probs[0],
                    "reference_rejected": base_log_probs[1],
                    "chosen_tokens": len(row.completions[0]),
                    "rejected_tokens": len(row.completions[1]),
                }
            )
            for row, log_probs, base_log_probs in zip(self.pairs, outputs, base_outputs, strict=True)
        ]
        return score_with_slices(self.task, self.spec, self.rows, parsed)


def score_with_slices(task: TaskKind, spec: Any, rows: Rows, parsed: Sequence[ParsedAnswer]) -> dict[str, object]:
    """Return the task's score, with the main metrics of each slice of the rows under "slices"."""
    targets = references.select_targets(task, spec, rows, parsed)
    indices_by_slice: dict[str, dict[str, list[int]]] = {}
    for index, row in enumerate(rows):
        for name, value in row.get("slices", {}).items():
            indices_by_slice.setdefault(name, {}).setdefault(slice_name(value), []).append(index)

    def score_slice(indices: list[int]) -> dict[str, object]:
        score = task.score(spec, [targets[index] for index in indices], [parsed[index] for index in indices])
        return {"n": len(indices), **select_metrics(task.NAME, score)}

    slices = {
        name: {value: score_slice(indices) for value, indices in sorted(values.items())}
        for name, values in indices_by_slice.items()
    }
    return {**task.score(spec, targets, parsed), "slices": slices}


def make_validation_function(
    evaluator: "GenerationEvaluator | PreferenceEvaluator", base_outputs: Sequence[object], model: "PreTrainedModel"
) -> Callable[[], dict[str, float]]:
    """Return a function that scores the current model, for validation during training."""

    def validate() -> dict[str, float]:
        score = evaluator.score(evaluator.predict(model, "validating"), base_outputs)
        return {name: float(value) for name, value in select_metrics(evaluator.task.NAME, score).items()}

    return validate
