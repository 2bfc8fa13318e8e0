"""What a task is: its prompt, its output constraint, its parser, its score. One module a kind, found by its name."""

from types import ModuleType

from tasks import classification

KINDS: dict[str, ModuleType] = {"classification": classification}
