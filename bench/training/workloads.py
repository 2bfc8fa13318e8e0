"""Workloads of the training bench as token ids: prompt and answer of each row.

    load_workload("banking77", ...)   727 shared tokens (instruction and 77 labels), then 31 of the row's own question
    load_workload("no_prefix", ...)   free text of 30 to 300 tokens without a common beginning

Ids are made once, here, and every system trains on them unchanged. Banking77 is real (Casanueva et al. 2020, CC BY 4.0)
and not part of the project. The demo's tickets and documents are SYNTHETIC. The labels of `labels_12` to `labels_300`
are synthetic names, to measure the cost by their number, and are assigned at random.

The pocket tokenizer has 4,096 tokens and a large model's has 150,000, so a prompt is longer here. Banking77's labels
are written as words ("card arrival"), which makes 727 shared tokens and 31 own ones. This is the proportion of 600 and
25 under a large model's tokenizer. The bound on the savings from sharing is the same: 10 times at 16 rows, 18 at 64.
"""

import argparse
import csv
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from demo_data.support_tickets import generate_tickets
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.tasks import classification, extraction
from insource.tasks.rendering import chat_template
from insource.tasks.rendering.chat_template import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED = 17
LABEL_COUNTS = (12, 77, 150, 300)
LABEL_SUBJECTS = (
    "card payment", "bank transfer", "top up", "refund", "account", "order", "device", "parcel", "invoice", "contract",
    "password", "address", "delivery", "guarantee", "subscription",
)  # fmt: skip
LABEL_ISSUES = (
    "not received", "was declined", "takes too long", "cannot be changed", "shows a wrong amount", "charged twice",
    "needs a new name", "is still pending", "was cancelled", "does not work", "must be confirmed", "is too expensive",
    "in another country", "for someone else", "lost or stolen", "not recognised", "how to begin", "how to end it",
    "limit reached", "with a discount",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Rows of one shape in the order of training; `held_out` rows are never trained on."""

    name: str
    examples: list[Example]
    held_out: list[Example]

    @property
    def prefix_tokens(self) -> int:
        """Return the number of tokens with which all prompts begin."""
        return chat_template.shared_prefix_length([example.prompt_ids for example in self.examples])

    @property
    def row_tokens(self) -> float:
        """Return the mean tokens of a row, prompt and answer."""
        return sum(map(count_tokens, self.examples)) / len(self.examples)


def add_banking77_option(parser: argparse.ArgumentParser) -> None:
    """Add --banking77, by default $BANKING77, else the folder to which the recipe refers."""
    folder = Path(os.environ.get("BANKING77") or machine.ROOT / "recipes" / "data" / "banking77")
    parser.add_argument("--banking77", type=Path, default=folder, help="the folder of its train.csv (or $BANKING77)")


def count_tokens(example: Example) -> int:
    """Return the number of tokens of a row."""
    return len(example.prompt_ids) + len(example.completion_ids)


def load_workload(
    name: str, tokenizer: "PreTrainedTokenizerBase", rows: int, held_out: int, banking77: Path
) -> Workload:
    """Return `rows` rows for training and `held_out` others. Raise RecipeError if the data is missing."""
    examples = WORKLOADS[name](tokenizer, rows + held_out, banking77)
    return Workload(name, examples[:rows], examples[rows:])


def banking77_examples(tokenizer: "PreTrainedTokenizerBase", count: int, folder: Path) -> list[Example]:
    """Return real questions, each after the 77 intents."""
    spec, rows = read_banking77(folder)
    return _classification_examples(tokenizer, spec, _sample(rows, count))


def read_banking77(folder: Path) -> tuple[classification.Spec, list[tuple[str, str]]]:
    """Return Banking77 as a task, and its questions with their intents. Raise RecipeError if it is missing."""
    path = folder / "train.csv"
    if not path.exists():
        raise RecipeError(
            f"there is no Banking77 at {path}; give the folder of its train.csv: --banking77 FOLDER, or "
            "BANKING77=FOLDER",
            code="INS-X010",
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"].strip(), row["category"].replace("_", " ")) for row in csv.DictReader(file)]
    labels = dict.fromkeys(sorted({label for _, label in rows}), "")
    return classification.Spec("Name the intent of the bank customer's question.", labels), rows


def demo_ticket_examples(tokenizer: "PreTrainedTokenizerBase", count: int, _: Path) -> list[Example]:
    """Return the demo's messages, each after its twelve queues, as in `make train RECIPE=classifier`."""
    return _classification_examples(
        tokenizer, demo_classifier_task(), [(ticket.message, ticket.queue) for ticket in generate_tickets(count, SEED)]
    )


def demo_classifier_task() -> classification.Spec:
    """Return the task of the demo classifier."""
    task = load("classifier", hardware_name="cpu").recipe.task
    return classification.make_spec(task, task.labels if isinstance(task.labels, dict) else {})


def demo_document_examples(tokenizer: "PreTrainedTokenizerBase", count: int, _: Path) -> list[Example]:
    """Return the demo's orders and invoices: a short beginning, long texts, long answers."""
    recipe, spec = load("extractor", hardware_name="cpu").recipe, demo_extractor_task()
    lines = Path(str(recipe.data.source.path)).read_text(encoding="utf-8").splitlines()
    rows = _sample([json.loads(line) for line in lines], count)
    conversations = [extraction.messages(spec, {"text": row["text"]}) for row in rows]
    return chat_template.render_examples(
        tokenizer, conversations, [extraction.answer_text(spec, row["target"]) for row in rows]
    )


def demo_extractor_task() -> extraction.Spec:
    """Return the task of the demo extractor."""
    return extraction.make_spec(load("extractor", hardware_name="cpu").recipe.task, {})


def free_text_examples(tokenizer: "PreTrainedTokenizerBase", count: int, _: Path) -> list[Example]:
    """Return one to six messages in a row and the queue of the last, without instruction or template."""
    rng = random.Random(SEED)
    source = list(generate_tickets(6 * count, SEED))
    examples = []
    for _number in range(count):
        tickets = [source.pop() for _ in range(rng.randint(1, 6))]
        text = "\n".join(ticket.message for ticket in tickets)
        ids = tokenizer([f"{text}\n", tickets[-1].queue], add_special_tokens=False)["input_ids"]
        examples.append(Example(ids[0], [*ids[1], tokenizer.eos_token_id]))
    return examples


def synthetic_labels(count: int, rng: random.Random) -> list[str]:
    """Return the names of this many synthetic labels, drawn by `rng`."""
    names = [f"{subject} {issue}" for subject in LABEL_SUBJECTS for issue in LABEL_ISSUES]
    return rng.sample(names, count)


def label_task(labels: Sequence[str]) -> classification.Spec:
    """Return a task with these labels."""
    return classification.Spec("Choose the queue for the customer's message.", dict.fromkeys(labels, ""))


def many_label_examples(labels: int) -> Callable[[object, int, Path], list[Example]]:
    """Return a function that makes rows with this many synthetic labels before each message."""

    def make_examples(tokenizer: "PreTrainedTokenizerBase", count: int, _: Path) -> list[Example]:
        rng = random.Random(SEED)
        chosen_names = synthetic_labels(labels, rng)
        rows = [(ticket.message, rng.choice(chosen_names)) for ticket in generate_tickets(count, SEED)]
        return _classification_examples(tokenizer, label_task(chosen_names), rows)

    return make_examples


WORKLOADS: dict[str, Callable[[object, int, Path], list[Example]]] = {
    "banking77": banking77_examples,
    "classifier": demo_ticket_examples,
    "extractor": demo_document_examples,
    "no_prefix": free_text_examples,
    **{f"labels_{count}": many_label_examples(count) for count in LABEL_COUNTS},
}


def _classification_examples(
    tokenizer: "PreTrainedTokenizerBase", spec: classification.Spec, rows: Sequence[tuple[str, str]]
) -> list[Example]:
    conversations = [classification.messages(spec, {"text": text}) for text, _ in rows]
    return chat_template.render_examples(tokenizer, conversations, [label for _, label in rows])


def _sample(rows: Sequence[object], count: int) -> list[Any]:
    """Return `count` rows in a seeded order. Raise RecipeError if there are fewer."""
    if count > len(rows):
        raise RecipeError(f"{count} rows are needed, but the data set has {len(rows)}", code="INS-X010")
    return random.Random(SEED).sample(rows, count)
