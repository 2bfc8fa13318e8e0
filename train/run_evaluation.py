"""How a run is scored: the evaluator that decides, and the one that decodes the reference answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from insource.config.recipe import Recipe
from insource.tasks import few_shot
from insource.tasks.rendering import chat_template
from insource.tracking.run import Run
from train.device import precision
from train.evaluate import reference_answers, untuned_answers
from train.evaluate.constrained_decoding import DecodedAnswer
from train.evaluate.log_likelihood import BATCH_ROWS
from train.evaluate.validation import GenerationEvaluator, PreferenceEvaluator
from train.packing import dataset, packing_plan
from train.packing.packing_plan import PackingPlan
from train.prompt_examples import WITHOUT_EXAMPLES
from train.run_data import PreparedRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Evaluation:
    """The evaluators of a run, and the outputs of its untuned base."""

    generation: GenerationEvaluator
    """Decodes answers. It also answers the reference rows."""
    deciding: GenerationEvaluator | PreferenceEvaluator
    """The one whose score counts: `generation`, but for preference tuning."""
    base_outputs: list[Any]
    without_examples: GenerationEvaluator | None = None
    """`generation` without the examples in its prompts, None without `train.shots`."""

    def predict_tuned(self, model: "PreTrainedModel") -> tuple[list[Any], dict[str, dict[str, Any]]]:
        """Return the outputs of the trained model, and its score without examples in the prompt.

        The score is {} without `train.shots`.
        """
        outputs: list[Any] = self.deciding.predict(model, "tuned")
        if self.without_examples is None:
            return outputs, {}
        plain = self.without_examples
        return outputs, {WITHOUT_EXAMPLES: plain.score(plain.predict(model, "zero-shot"), ())}

    def answer_references(
        self, model: "PreTrainedModel", tuned_outputs: Sequence[Any]
    ) -> tuple[GenerationEvaluator, Sequence[DecodedAnswer]]:
        """Return the evaluator of the reference rows, and the answers of the trained weights to them."""
        reference_evaluator = self.generation.head(reference_answers.REFERENCE_ROWS)
        if self.deciding is self.generation:
            return reference_evaluator, tuned_outputs[: len(reference_evaluator.rows)]
        return reference_evaluator, reference_evaluator.predict(model, "probes")

    def score(self, tuned_outputs: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """Return the scores of the trained model ("tuned") and of the untuned base ("base")."""
        return {
            "tuned": self.deciding.score(tuned_outputs, self.base_outputs),
            "base": self.deciding.score(self.base_outputs, self.base_outputs),
        }


def evaluate_base(
    recipe: Recipe,
    run: Run,
    data: PreparedRows,
    model: "PreTrainedModel",
    plan: PackingPlan,
    log_fallback: Callable[[str], None],
) -> Evaluation:
    """Return the evaluation of a run, with the outputs of its base before training."""
    generation = build_generation_evaluator(data, log_fallback)
    deciding = build_preference_evaluator(data, plan, log_fallback) if data.task.OBJECTIVE == "prefer" else generation
    plain = build_generation_evaluator(replace(data, examples=None), log_fallback) if data.examples else None
    return Evaluation(generation, deciding, untuned_answers.predict_untuned(run, recipe, deciding, model), plain)


def build_generation_evaluator(data: PreparedRows, log_fallback: Callable[[str], None]) -> GenerationEvaluator:
    """Return the evaluator that decodes an answer to each validation row."""
    tokenizer, examples = data.rendering.tokenizer, data.examples.validation if data.examples else ()
    conversations = few_shot.build_conversations(data.task, data.spec, data.validation_rows, examples)
    return GenerationEvaluator(
        task=data.task,
        spec=data.spec,
        rows=data.validation_rows,
        prompts=chat_template.encode_prompts(tokenizer, conversations),
        tokenizer=tokenizer,
        max_answer_tokens=data.max_answer_tokens,
        example_ids=[[example["id"] for example in row_examples] for row_examples in examples],
        on_fallback=log_fallback,
    )


def build_preference_evaluator(
    data: PreparedRows, plan: PackingPlan, log_fallback: Callable[[str], None]
) -> PreferenceEvaluator:
    """Return the evaluator of the log-probabilities of the validation pairs."""
    tokenizer = data.rendering.tokenizer
    pairs = dataset.tokenize_rows(data.task, data.spec, tokenizer, data.validation_rows)
    pair_plan = packing_plan.plan_for_rows(plan, pairs, BATCH_ROWS)
    return PreferenceEvaluator(data.task, data.spec, data.validation_rows, pairs, pair_plan, tokenizer, log_fallback)


def add_reference_log_probabilities(
    recipe: Recipe,
    data: PreparedRows,
    model: "PreTrainedModel",
    plan: PackingPlan,
    log_fallback: Callable[[str], None],
) -> PreparedRows:
    """Return the rows with the log-probabilities of the train pairs under the untuned base."""
    evaluator = PreferenceEvaluator(
        data.task, data.spec, data.train_rows, data.tokenized, plan, data.rendering.tokenizer, log_fallback
    )
    with precision.training_autocast(recipe):
        log_probabilities = evaluator.predict(model, "reference")
    tokenized = [
        replace(row, reference=row_log_probabilities)
        for row, row_log_probabilities in zip(data.tokenized, log_probabilities, strict=True)
    ]
    return replace(data, tokenized=tokenized)
