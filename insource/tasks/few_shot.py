"""A prompt with examples: what people put before a question when they cannot train a model.

user       Route the message ... Input: where is my refund     the whole prompt, around the first example
assistant  refund_status
user       Input: my parcel is late                            the row itself
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

INPUT_HEADER = "Input:\n"


def messages(
    module: ModuleType, spec: Any, examples: Sequence[Mapping[str, Any]], row_input: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Returns the conversation up to the answer: the task, the examples (data rows) as turns, the row. Without examples
    it is the task's own prompt."""
    inputs = [*(one["input"] for one in examples), row_input]
    asked = [
        module.messages(spec, inputs[0]),
        *([{"role": "user", "content": f"{INPUT_HEADER}{one['text']}"}] for one in inputs[1:]),
    ]
    answered = [[{"role": "assistant", "content": module.answer_text(spec, one["target"])}] for one in examples]
    return [turn for question, answer in zip(asked, [*answered, []], strict=True) for turn in [*question, *answer]]
