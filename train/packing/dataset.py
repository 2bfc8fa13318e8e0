"""From data rows to the training set: token ids, weights, packs and the order of updates."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.tasks import few_shot
from insource.tasks.data_row import DataRow, Rows
from insource.tasks.rendering import chat_template
from insource.tasks.task_kind import TaskKind
from train.distributed import world
from train.packing import model_support, packing_plan, sampler
from train.packing.packing_plan import PackingPlan, TokenizedRow, UpdateShards

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MIN_PROBABILITY = 0.01
"""Soft labels of a lower probability are not learnt: each costs as many tokens as an answer."""


@dataclass(frozen=True)
class TrainingSet:
    """The tokenized rows, their packing plan, and their order."""

    rows: Sequence[TokenizedRow]
    plan: PackingPlan
    updates: Sequence[Sequence[int]]
    """For each optimizer update the numbers of its rows."""
    objective: str
    """imitate | prefer | classify, the keys of `OBJECTIVES` in loop/losses.py."""

    @property
    def update_shards(self) -> UpdateShards:
        return UpdateShards(self.rows, self.plan, self.updates, world.world_size())


def tokenize_rows(
    task: TaskKind, spec: Any, tokenizer: "PreTrainedTokenizerBase", rows: Rows, examples: Sequence[Rows] = ()
) -> list[TokenizedRow]:
    """Return the rows as token ids: prompt and answer, or for a preference task prompt, chosen and rejected answer.

    `examples` are those in the prompt of each row; empty: none. Raise RecipeError if the template renders a
    conversation with an answer differently from one without.
    """
    conversations = few_shot.build_conversations(task, spec, rows, examples)
    answers = [task.training_answers(spec, row["target"]) for row in rows]
    rendered = [
        chat_template.render_examples(tokenizer, conversations, list(column)) for column in zip(*answers, strict=True)
    ]
    return [
        TokenizedRow(row["id"], branches[0].prompt_ids, tuple(branch.completion_ids for branch in branches))
        for row, branches in zip(rows, zip(*rendered, strict=True), strict=True)
    ]


def apply_soft_labels(
    task: TaskKind,
    spec: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[TokenizedRow],
    data: Rows,
    examples: Sequence[Rows] = (),
) -> list[TokenizedRow]:
    """Return the rows with an answer for each probable label where `data` has probabilities of labels.

    Labels below MIN_PROBABILITY are left out, and the probabilities of the others have the sum 1. The label of the data
    comes first. `rows` are those of `data` in order, `examples` those in the prompt of each.
    """
    numbers = [number for number, data_row in enumerate(data) if data_row.get("probabilities")]
    if not numbers:
        return list(rows)
    answers = [_probable_labels(data[number]) for number in numbers]
    labels = [label for by_label in answers for label in by_label]
    prompts = few_shot.build_conversations(task, spec, data, examples)
    conversations = [prompts[number] for number, by_label in zip(numbers, answers, strict=True) for _ in by_label]
    texts = [task.answer_text(spec, label) for label in labels]
    rendered = iter(chat_template.render_examples(tokenizer, conversations, texts))
    soft_rows = list(rows)
    for number, by_label in zip(numbers, answers, strict=True):
        completions = tuple(next(rendered).completion_ids for _ in by_label)
        total = sum(by_label.values())
        probabilities = tuple(probability / total for probability in by_label.values())
        soft_rows[number] = replace(rows[number], completions=completions, probabilities=probabilities)
    return soft_rows


def _probable_labels(data_row: DataRow) -> dict[str, float]:
    """Return {label: probability} of the labels of a row that are learnt, its own label first."""
    probabilities: Mapping[str, float] = data_row["probabilities"]
    others = {label: value for label, value in probabilities.items() if value >= MIN_PROBABILITY}
    own_label = data_row["target"]
    return {own_label: max(probabilities.get(own_label, 0.0), MIN_PROBABILITY)} | {
        label: value for label, value in others.items() if label != own_label
    }


def apply_class_weights(
    rows: Sequence[TokenizedRow],
    classes: Sequence[str],
    class_weight: str | Mapping[str, float],
    all_classes: Collection[str] = (),
) -> list[TokenizedRow]:
    """Return the rows with the weights of their classes.

    "balanced" gives n / (number of classes * rows of the class), as scikit-learn does. `all_classes` are those of all
    train rows, if `rows` is a subset of them. Raise RecipeError if a label of `class_weight` does not occur.
    """
    import numpy as np
    from sklearn.utils.class_weight import compute_class_weight

    names = np.array(sorted(set(classes)))
    if not isinstance(class_weight, str) and (unknown := sorted(set(class_weight) - {*classes, *all_classes})):
        raise RecipeError(f"train.class_weight: no train row has the label {', '.join(unknown)}", code="INS-T014")
    if isinstance(class_weight, str):
        weights = dict(zip(names, compute_class_weight("balanced", classes=names, y=np.array(classes)), strict=True))
    else:
        weights = {name: class_weight.get(name, 1.0) for name in names}
    return [replace(row, weight=float(weights[label])) for row, label in zip(rows, classes, strict=True)]


def plan_packing(
    recipe: Recipe, rows: Sequence[TokenizedRow], config: "PretrainedConfig", on_fallback: Callable[[str], None]
) -> PackingPlan:
    """Return the packing plan for a model of this config.

    A packing other than the recipe's is passed to `on_fallback`.
    """
    mode, reason = model_support.supported_packing(
        recipe.train.packing, config, max(row.longest_sequence_tokens for row in rows)
    )
    if reason:
        on_fallback(f"train.packing: {mode}, not {recipe.train.packing}: {reason}")
    rows_per_process = max(1, recipe.train.batch_size // world.world_size())
    cost = model_support.pack_cost(config, on_gpu=not recipe.accelerate.use_cpu)
    return packing_plan.build_packing_plan(rows, mode, recipe.train.pack_tokens, rows_per_process, cost)


def build_training_set(
    recipe: Recipe,
    rows: Sequence[TokenizedRow],
    classes: Sequence[str],
    plan: PackingPlan,
    objective: str,
    all_classes: Collection[str] = (),
) -> TrainingSet:
    """Return the rows, weighted by the recipe, in the order of their updates.

    `classes` are their targets, `all_classes` those of all train rows if `rows` is a subset of them.
    """
    train = recipe.train
    if train.class_weight is not None:
        rows = apply_class_weights(rows, classes, train.class_weight, all_classes)
    updates = sampler.batch_indices(
        len(rows),
        train.batch_size,
        train.num_train_epochs,
        train.max_steps,
        train.seed,
        classes if train.balanced_sampling else None,
    )
    return TrainingSet(rows, plan, updates, objective)
