"""A prompt with examples (shots), the usual alternative to training.

user       Route the message ... Input: where is my refund     the complete prompt, with the first example as input
assistant  refund_status
user       Input: my parcel is late                            the row
"""

from typing import Any

from insource.tasks.data_row import RowInput, Rows
from insource.tasks.task_kind import TaskKind

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
