"""The probability of every label of a task, from a few next-token distributions behind one shared prompt.

labels          delivery_delay   delivery_lost   refund          the tree    {(): [12, 40], (12, 7): [9, 31]}
their tokens    12 7 9 STOP      12 7 31 STOP    40 STOP

Only where labels part is there a choice: there the next token's probabilities are asked for, of the tokens that lead on
to a label, and made to sum to one. The probability of a label is the product over its way, as if the answer were
decoded with nothing but labels allowed, each in the tokens that training taught it.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insource.tasks.rendering import chat_template
from insource.tasks.task_kind import TaskKind

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class LabelTree:
    """The labels of a task as tokens."""

    paths: Mapping[str, TokenIds]
    """Of each label, the stop last."""
    choices: Mapping[TokenIds, Sequence[int]]
    """Where labels part: the tokens before, and those that may come next."""

    def probabilities(self, log_probabilities: Mapping[TokenIds, Mapping[int, float]]) -> dict[str, float]:
        """Returns the probability of each label; `log_probabilities` has the log-probabilities of the tokens at each
        choice."""
        distributions = {
            prefix: _softmax([log_probabilities[prefix][token] for token in tokens])
            for prefix, tokens in self.choices.items()
        }
        steps = {
            prefix: dict(zip(self.choices[prefix], distribution, strict=True))
            for prefix, distribution in distributions.items()
        }
        return {
            label: math.prod(steps[path[:index]][path[index]] for index in range(len(path)) if path[:index] in steps)
            for label, path in self.paths.items()
        }


def build_tree(paths: Mapping[str, TokenIds]) -> LabelTree:
    """Returns the tree of labels. Raises ValueError where two of them have the same tokens."""
    if len(set(paths.values())) < len(paths):
        raise ValueError("two labels have the same tokens")
    next_tokens: dict[TokenIds, dict[int, None]] = {}
    for path in paths.values():
        for index, token in enumerate(path):
            next_tokens.setdefault(path[:index], {})[token] = None
    return LabelTree(paths, {prefix: list(tokens) for prefix, tokens in next_tokens.items() if len(tokens) > 1})


class TaskTokens:
    """The tokenizer of a task and its labels as tokens, read when they are first needed."""

    def __init__(self, folder: Path, module: TaskKind, spec: Any) -> None:
        self._folder, self._module, self._spec = folder, module, spec
        self._lock = threading.Lock()
        self._read: tuple[Any, LabelTree] | None = None

    def of(self, text: str) -> tuple[list[int], LabelTree]:
        """Returns the ids of the task's prompt for an input, and the labels. For a thread: the first call imports the
        tokenizer's library."""
        with self._lock:
            self._read = self._read or self._found()
        tokenizer, tree = self._read
        (ids,) = chat_template.prompt_ids(tokenizer, [self._module.messages(self._spec, {"text": text})])
        return ids, tree

    def _found(self) -> tuple[Any, LabelTree]:
        tokenizer, labels = chat_template.load_saved_tokenizer(str(self._folder)), list(self._spec.labels)
        conversation = self._module.messages(self._spec, {"text": "x"})
        examples = chat_template.render_examples(tokenizer, [conversation] * len(labels), labels)
        return tokenizer, build_tree(
            {label: tuple(example.completion_ids) for label, example in zip(labels, examples, strict=True)}
        )


def _softmax(log_probabilities: Sequence[float]) -> list[float]:
    highest = max(log_probabilities)
    if highest == -math.inf:
        return [1 / len(log_probabilities)] * len(log_probabilities)
    weights = [math.exp(value - highest) for value in log_probabilities]
    return [weight / sum(weights) for weight in weights]
