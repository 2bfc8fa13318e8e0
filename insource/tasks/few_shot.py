"""A prompt with examples (shots): the usual alternative to training, and with `train.shots` the prompt of training.

user       Route the message ... Input: where is my refund     the complete prompt, with the first example as input
assistant  refund_status
user       Input: my parcel is late                            the row
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from insource.tasks.data_row import InputRows, RowInput, Rows
from insource.tasks.rendering import chat_template
from insource.tasks.task_kind import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INPUT_HEADER = "Input:\n"


def messages(module: TaskKind, spec: Any, examples: Rows, row_input: RowInput) -> list[dict[str, str]]:
    """Return the conversation up to the answer: task prompt, examples (data rows) as turns, row.

    Without examples it is the task's own prompt.
    """
    inputs = [*(example["input"] for example in examples), row_input]
    questions = [
        module.messages(spec, inputs[0]),
        *([{"role": "user", "content": f"{INPUT_HEADER}{turn_input['text']}"}] for turn_input in inputs[1:]),
    ]
    answers = [[{"role": "assistant", "content": module.answer_text(spec, example["target"])}] for example in examples]
    return [turn for question, answer in zip(questions, [*answers, []], strict=True) for turn in [*question, *answer]]


def build_conversations(
    module: TaskKind, spec: Any, rows: InputRows, examples: Sequence[Rows] = ()
) -> list[list[dict[str, str]]]:
    """Return the conversation of each row up to the answer. `examples` are those of each row; empty: no examples."""
    return [
        messages(module, spec, row_examples, row["input"])
        for row, row_examples in zip(rows, examples or [()] * len(rows), strict=True)
    ]


def fit_examples(
    module: TaskKind,
    spec: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: InputRows,
    examples: Sequence[Rows],
    max_prompt_tokens: int,
) -> list[Rows]:
    """Return the examples of each row without those that do not fit: a prompt has at most `max_prompt_tokens`.

    The least similar example, which is the first, is left out first. A prompt without examples may be longer.
    """
    fitted = list(examples)
    pending = [index for index, row_examples in enumerate(fitted) if row_examples]
    while pending:
        conversations = [messages(module, spec, fitted[index], rows[index]["input"]) for index in pending]
        lengths = map(len, chat_template.encode_prompts(tokenizer, conversations))
        pending = [index for index, length in zip(pending, lengths, strict=True) if length > max_prompt_tokens]
        for index in pending:
            fitted[index] = fitted[index][1:]
        pending = [index for index in pending if fitted[index]]
    return fitted
