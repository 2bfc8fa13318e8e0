"""The rows of a run as training and evaluation get them: read, checked, tokenized and packed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tasks import TASKS, train_subset
from insource.tasks.data_row import DataRow, Rows
from insource.tasks.rendering import chat_template
from insource.tasks.rendering.chat_template import Rendering
from insource.tasks.task_kind import TaskKind
from insource.tracking.base_models import base_store, gguf_model
from insource.tracking.data_report import DataReport
from insource.tracking.run import Run
from train import prompt_examples
from train.evaluate import decodability, packing_check
from train.model import base
from train.packing import dataset
from train.packing.dataset import TrainingSet
from train.packing.packing_plan import PackingPlan, TokenizedRow
from train.prompt_examples import RowExamples
from train.report import preflight
from train.run_log import log

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedRows:
    """The rows of a run, as training and evaluation get them."""

    task: TaskKind
    spec: Any
    rendering: Rendering
    train_rows: Sequence[DataRow]
    """The rows to train on: all, or those that `train.max_train_rows` selects."""
    tokenized: Sequence[TokenizedRow]
    """Token ids of `train_rows`."""
    validation_rows: Sequence[DataRow]
    max_answer_tokens: int
    """The limit of an answer, of all train rows."""
    trained_labels: frozenset[str]
    """The targets of all train rows."""
    examples: RowExamples | None = None
    """The examples in the prompts, None without `train.shots`."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the rendering."""
        return self.rendering.tokenizer

    def build_training_set(self, recipe: Recipe, plan: PackingPlan) -> TrainingSet:
        """Return the rows, weighted by the recipe, in the order of their updates."""
        targets = [str(row["target"]) for row in self.train_rows]
        return dataset.build_training_set(
            recipe, self.tokenized, targets, plan, self.task.OBJECTIVE, self.trained_labels
        )


def prepare_rows(
    recipe: Recipe, run: Run, hashes: Mapping[str, str], log_fallback: Callable[[str], None]
) -> PreparedRows:
    """Return the rows of train and validation, checked and tokenized. Log the chat template.

    Raise RecipeError if they cannot be trained on, StageError if a file is not the prepared one.
    """
    train_rows, validation_rows = read_rows(run, "train", hashes), read_rows(run, "validation", hashes)
    task, report = TASKS[recipe.task.task_name], DataReport.read(run.folder / "data")
    spec = task.make_spec(recipe.task, report.label_descriptions, report.may_be_empty)
    if hasattr(spec, "normalize_labels"):
        spec = replace(spec, normalize_labels=recipe.data.normalize_labels)
    rendering = chat_template.load_rendering(recipe.model)
    tokenizer = rendering.tokenizer
    log(*rendering.summary_lines())
    if rendering.own_suffix_reason:
        log_fallback(
            f"{rendering.own_suffix_reason}; training, decoding and serving use the same text: the open prompt, the "
            "answer, the stop token"
        )
    for note in gguf_model.read_notes(recipe.model.base):
        log_fallback(note)
    config = base.load_config(recipe.model)

    def tokenize(data: Rows, examples: Sequence[Rows] = ()) -> list[TokenizedRow]:
        tokenized = dataset.tokenize_rows(task, spec, tokenizer, data, examples)
        preflight.check_training_rows(tokenized, tokenizer, recipe, config)
        vocabulary_size = config.get_text_config().vocab_size
        decodability.check_answers_decodable(task, spec, data, tokenized, tokenizer, vocabulary_size)
        return tokenized

    rows = tokenize(train_rows)
    selected = train_subset.select_train_rows(train_rows, recipe)
    selected_rows = [train_rows[index] for index in selected]
    answer_tokens = max_answer_tokens(rows)
    examples = prompt_examples.choose_examples(
        recipe, task, spec, tokenizer, selected_rows, validation_rows, answer_tokens
    )
    if examples:
        examples.log(log, log_fallback)
    train_examples = examples.train if examples else ()
    tokenized = tokenize(selected_rows, train_examples) if examples else [rows[index] for index in selected]
    if recipe.train.soft_labels:
        tokenized = dataset.apply_soft_labels(task, spec, tokenizer, tokenized, selected_rows, train_examples)
    return PreparedRows(
        task=task,
        spec=spec,
        rendering=rendering,
        train_rows=selected_rows,
        tokenized=tokenized,
        validation_rows=validation_rows,
        max_answer_tokens=answer_tokens,
        trained_labels=frozenset(str(row["target"]) for row in train_rows),
        examples=examples,
    )


def read_rows(run: Run, split: str, hashes: Mapping[str, str]) -> list[DataRow]:
    """Return the rows of train or validation. Raise StageError if the file is not the prepared one."""
    path = run.folder / "data" / f"{split}.jsonl"
    if hashes[split] != DataReport.read(path.parent).sha256[path.name]:
        raise StageError(
            f"{path} was changed after data preparation; remove its folder, and the next run prepares the data again",
            code="INS-D033",
        )
    return list(atomic_files.read_jsonl(path))


def max_answer_tokens(rows: Sequence[TokenizedRow]) -> int:
    """Return the limit of answer tokens, for validation and for serving."""
    return chat_template.max_answer_tokens(max(len(answer) for row in rows for answer in row.completions))


def plan_packs(
    recipe: Recipe, run: Run, model: "PreTrainedModel", data: PreparedRows, log_fallback: Callable[[str], None]
) -> PackingPlan:
    """Return the packing plan of the train rows, whose packs have the loss of separate rows."""
    plan = dataset.plan_packing(recipe, data.tokenized, model.config, log_fallback)
    runs_folder, pad_token_id = base_store.store_path(run.folder).parent, data.rendering.tokenizer.pad_token_id
    return packing_check.verify_packing(recipe, runs_folder, model, data.tokenized, plan, pad_token_id, log_fallback)
