"""A prompt with examples: what people put before a question when they cannot train a model.

user       Route the message ... Input: where is my refund     the whole prompt, around the first example
assistant  refund_status
user       Input: my parcel is late                            the row itself
"""

from collections.abc import Mapping, Sequence
from typing import Any

from insource.tasks.task_kind import TaskKind

INPUT_HEADER = "Input:\n"


def messages(
    module: TaskKind, spec: Any, examples: Sequence[Mapping[str, Any]], row_input: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Returns the conversation up to the answer: the task, the examples (data rows) as turns, the row. Without examples
    it is the task's own prompt."""
    inputs = [*(example["input"] for example in examples), row_input]
    questions = [
        module.messages(spec, inputs[0]),
        *([{"role": "user", "content": f"{INPUT_HEADER}{turn_input['text']}"}] for turn_input in inputs[1:]),
    ]
    answers = [[{"role": "assistant", "content": module.answer_text(spec, example["target"])}] for example in examples]
    return [turn for question, answer in zip(questions, [*answers, []], strict=True) for turn in [*question, *answer]]
