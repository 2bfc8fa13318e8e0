"""The examples in the prompts of training and validation (`train.shots`): the most similar train rows.

    train row T000017         the rows T000230, T000911 of the rows that are trained on, neither itself nor of its group
    validation row T000404    the rows T000105, T000017

The retriever and the prompt are those of the comparison (insource/tasks/tfidf.py, few_shot.py). So the model learns to
answer prompts as the comparison sends them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from insource.config.recipe import Recipe
from insource.tasks import few_shot, tfidf
from insource.tasks.data_row import Rows
from insource.tasks.task_kind import TaskKind
from insource.tracking.prompt_spec import PromptExamples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


WITHOUT_EXAMPLES = "tuned_without_examples"
"""Key of the trained model's score on prompts without examples, beside "tuned" and "base"."""


@dataclass(frozen=True)
class RowExamples:
    """The examples of each row."""

    setting: PromptExamples
    """As prompt.json records it."""
    train: Sequence[Rows]
    validation: Sequence[Rows]

    def log(self, log: Callable[[str], None], log_fallback: Callable[[str], None]) -> None:
        """Log the number of examples. Prompts with fewer of them are a fallback, which the manifest records."""
        shots, counts = self.setting.shots, [len(examples) for examples in (*self.train, *self.validation)]
        log(f"examples  {shots} similar train rows in each prompt (train.shots)")
        if fewer := sum(count < shots for count in counts):
            log_fallback(
                f"train.shots: {fewer:,} of {len(counts):,} prompts have fewer than {shots} examples, because more do "
                f"not fit {self.setting.max_prompt_tokens:,} tokens, or there are no more train rows of other groups"
            )


def choose_examples(
    recipe: Recipe,
    task: TaskKind,
    spec: Any,
    tokenizer: "PreTrainedTokenizerBase",
    train_rows: Rows,
    validation_rows: Rows,
    max_answer_tokens: int,
) -> RowExamples | None:
    """Return the examples of each row, chosen among `train_rows`; None without `train.shots`.

    Examples that do not fit `train.max_length` and `serve.max_model_len` beside the longest answer are left out.
    """
    shots = recipe.train.shots
    if not shots:
        return None
    max_prompt_tokens = max(0, min(recipe.train.max_length, recipe.serve.max_model_len) - max_answer_tokens)

    def fit(rows: Rows, nearest: Sequence[Sequence[int]]) -> list[Rows]:
        examples = [[train_rows[index] for index in indices] for indices in nearest]
        return few_shot.fit_examples(task, spec, tokenizer, rows, examples, max_prompt_tokens)

    return RowExamples(
        PromptExamples(shots=shots, max_prompt_tokens=max_prompt_tokens),
        fit(train_rows, tfidf.nearest_other_rows(train_rows, shots)),
        fit(validation_rows, tfidf.nearest_rows(train_rows, validation_rows, shots)),
    )
