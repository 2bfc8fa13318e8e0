"""Probabilities of all labels of a task, from a few next-token distributions after one shared prompt.

labels          delivery_delay   delivery_lost   refund          the tree    {(): [12, 40], (12, 7): [9, 31]}
their tokens    12 7 9 STOP      12 7 31 STOP    40 STOP

A choice exists only at the prefixes where labels diverge. There the probabilities of the tokens that continue a label
are requested and normalized to sum to one. The probability of a label is the product along its path. This equals
decoding with a constraint that allows only labels, each in the tokens used in training.
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
    """{label: its tokens, the stop token last}."""
    choices: Mapping[TokenIds, Sequence[int]]
    """{prefix where labels diverge: possible next tokens}."""

    def probabilities(self, log_probabilities: Mapping[TokenIds, Mapping[int, float]]) -> dict[str, float]:
        """Return the probability of each label.

        `log_probabilities` has the log-probabilities (natural logarithm) of the tokens at each prefix.
        """
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
    """Return the tree of labels. Raise ValueError if two of them have the same tokens."""
    if len(set(paths.values())) < len(paths):
        raise ValueError("two labels have the same tokens")
    next_tokens: dict[TokenIds, dict[int, None]] = {}
    for path in paths.values():
        for index, token in enumerate(path):
            next_tokens.setdefault(path[:index], {})[token] = None
    return LabelTree(paths, {prefix: list(tokens) for prefix, tokens in next_tokens.items() if len(tokens) > 1})


# Of all tasks: if two threads are the first to import from transformers 5.19, one of them gets an ImportError.
_LOAD_LOCK = threading.Lock()


class TaskTokens:
    """The tokenizer of a task and its labels as tokens, loaded on first use."""

    def __init__(self, folder: Path, module: TaskKind, spec: Any) -> None:
        self._folder, self._module, self._spec = folder, module, spec
        self._loaded: tuple[object, LabelTree] | None = None

    def encode(self, text: str) -> tuple[list[int], LabelTree]:
        """Return the token ids of the prompt for an input, and the label tree.

        Call it in a thread: the first call imports the tokenizer's library.
        """
        if self._loaded is None:
            with _LOAD_LOCK:
                self._loaded = self._loaded or self._load()
        tokenizer, tree = self._loaded
        (ids,) = chat_template.encode_prompts(tokenizer, [self._module.messages(self._spec, {"text": text})])
        return ids, tree

    def _load(self) -> tuple[object, LabelTree]:
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
