"""The pretraining data of the pocket model: the Schema-Guided Dialogue corpus, as conversations and as small tasks.

In: `dialogues.jsonl.gz`, one dialogue a line, and `schema.json`, its services, intents and slots:

    {"services": ["Restaurants_1"], "turns": [{"speaker": "user", "text": "I would like for it to be in San Jose.",
     "intents": ["FindRestaurants"], "slots": [{"slot": "city", "start": 29, "end": 37}]}, ...]}

Out: `Pack`s. A pack is one prompt opening shared by several completions, or no opening and one conversation:

    Pack("<|begin|><|user|>\\nWhat does the user want?\\n\\nLabels:\\n- find_bus: ...\\n\\nInput:\\n",
         (PackPart("I need to get to Fresno<|end|>\\n<|assistant|>\\n", "find_bus<|end|>\\n"), ...))

Source: Rastogi et al. 2020, arXiv:1909.05855, CC BY-SA 4.0. This module reads nothing of the demo data, of Banking77 or
of SROIE. `tests/pocket/test_pocket.py` checks that none of their labels and messages can be generated.
"""

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END, SYSTEM, USER, ASSISTANT, PAD = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
ANSWER_PREFIX = f"{END}\n{ASSISTANT}\n"


@dataclass(frozen=True)
class PackPart:
    """One branch of a pack: prompt and answer, special tokens included."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Pack:
    """One shared opening and the parts after it, which do not see each other."""

    opening: str
    parts: tuple[PackPart, ...]


@dataclass(frozen=True)
class SgdCorpus:
    """The corpus in memory, indexed by the keys that the tasks sample from."""

    dialogues: list[dict[str, Any]]
    by_intent: dict[str, list[str]]
    by_domain: dict[str, list[str]]
    by_slot: dict[str, list[str]]
    texts_with_values: list[tuple[str, dict[str, str]]]
    descriptions: dict[str, list[str]]


def load_corpus(folder: Path) -> SgdCorpus:
    """Return the corpus of `folder` (`dialogues.jsonl.gz`, `schema.json`). Raise OSError if a file is missing."""
    descriptions: dict[str, list[str]] = {}
    for service in json.loads((folder / "schema.json").read_text(encoding="utf-8")):
        descriptions.setdefault(_service_domain(service["service"]), []).append(service["description"])
        for entry in (*service["intents"], *service["slots"]):
            descriptions.setdefault(entry["name"], []).append(entry["description"])
    with gzip.open(folder / "dialogues.jsonl.gz", "rt", encoding="utf-8") as lines:
        dialogues = [json.loads(line) for line in lines]
    sgd = SgdCorpus(dialogues, {}, {}, {}, [], descriptions)
    for dialogue in dialogues:
        _index_dialogue(dialogue, sgd)
    return sgd


def _index_dialogue(dialogue: dict[str, Any], sgd: SgdCorpus) -> None:
    services = {_service_domain(name) for name in dialogue["services"]}
    active: list[str] = []
    for turn in dialogue["turns"]:
        text = turn["text"]
        values: dict[str, str] = {}
        for slot in turn["slots"]:
            values.setdefault(slot["slot"], text[slot["start"] : slot["end"]])
        if values:
            sgd.texts_with_values.append((text, values))
        if len(values) == 1:
            sgd.by_slot.setdefault(next(iter(values)), []).append(text)
        if turn["speaker"] != "user":
            continue
        # A turn with a new intent states the intent more clearly than a "yes, please" under an old one.
        if len(turn["intents"]) == 1 and (turn["intents"] != active or len(text) > 45):
            sgd.by_intent.setdefault(turn["intents"][0], []).append(text)
            if len(services) == 1:
                sgd.by_domain.setdefault(next(iter(services)), []).append(text)
        active = turn["intents"]


def generate_packs(sgd: SgdCorpus, rng: random.Random, mix: "Mapping[TaskGenerator, float]") -> Iterator[Pack]:
    """Yield packs endlessly: conversations, and tasks of five kinds, in the proportions of `mix`."""
    generators, weights = zip(*mix.items(), strict=True)
    while True:
        yield rng.choices(generators, weights)[0](sgd, rng)


def make_conversation(sgd: SgdCorpus, rng: random.Random) -> Pack:
    """Return a conversation from a random turn to its end."""
    turns = rng.choice(sgd.dialogues)["turns"]
    start = 2 * rng.randrange(max(1, len(turns) // 2))
    text = "".join(
        f"{USER if turn['speaker'] == 'user' else ASSISTANT}\n{turn['text']}{END}\n" for turn in turns[start:]
    )
    return Pack("", (PackPart(BEGIN, text),))


def make_intents(sgd: SgdCorpus, rng: random.Random) -> Pack:
    """Return a task that chooses the intent of a user's message."""
    return _make_choice("what the user wants", sgd.by_intent, sgd, rng)


def make_domains(sgd: SgdCorpus, rng: random.Random) -> Pack:
    """Return a task that chooses the service of a message."""
    return _make_choice("which service the message belongs to", sgd.by_domain, sgd, rng)


def make_slots(sgd: SgdCorpus, rng: random.Random) -> Pack:
    """Return a task that chooses the detail that a message gives or requests."""
    return _make_choice("which detail the message gives or asks for", sgd.by_slot, sgd, rng)


def make_value_lookup(sgd: SgdCorpus, rng: random.Random) -> Pack:
    """Return a task that finds which listed value occurs in the text, independent of the values' meaning."""
    texts_by_value: dict[str, str] = {}
    while len(texts_by_value) < rng.randint(4, 12):
        text, values = rng.choice(sgd.texts_with_values)
        value = rng.choice(list(values.values()))
        if not any(value.lower() in other_text.lower() for other_text in texts_by_value.values()):
            texts_by_value[value] = text
    names = list(texts_by_value)
    rng.shuffle(names)
    opening = _choice_prompt("which of these the text mentions", [f"- {name}" for name in names], rng)
    return Pack(
        opening,
        tuple(
            PackPart(_add_noise(text, rng) + ANSWER_PREFIX, f"{name}{END}\n") for name, text in texts_by_value.items()
        ),
    )


def make_json_extraction(sgd: SgdCorpus, rng: random.Random) -> Pack:
    """Return a task that extracts the listed fields from the text as JSON, null for missing ones."""
    examples = [rng.choice(sgd.texts_with_values) for _ in range(rng.randint(3, 10))]
    fields = sorted({name for _, values in examples for name in values})
    rng.shuffle(fields)
    fields = fields[: rng.randint(2, 8)]
    lines = [
        f"- {name}: {rng.choice(sgd.descriptions[name])}" if name in sgd.descriptions else f"- {name}"
        for name in fields
    ]
    instruction = rng.choice(
        ("Fill these fields from the text.", "Extract the fields as JSON.", "Return one JSON object.")
    )
    opening = f"{BEGIN}{USER}\n{instruction}\n\nFields:\n" + "\n".join(lines) + "\n\nInput:\n"
    return Pack(
        opening,
        tuple(
            PackPart(
                text + ANSWER_PREFIX,
                json.dumps({name: values.get(name) for name in fields}, ensure_ascii=False) + f"{END}\n",
            )
            for text, values in examples
        ),
    )


TaskGenerator = Callable[[SgdCorpus, random.Random], Pack]
# Language first, then mostly tasks (`pretrain.curriculum_stage`).
LANGUAGE_MIX: dict[TaskGenerator, float] = {
    make_conversation: 0.30,
    make_intents: 0.30,
    make_domains: 0.10,
    make_slots: 0.15,
    make_value_lookup: 0.08,
    make_json_extraction: 0.07,
}
TASK_MIX: dict[TaskGenerator, float] = {
    make_conversation: 0.10,
    make_intents: 0.35,
    make_domains: 0.15,
    make_slots: 0.20,
    make_value_lookup: 0.15,
    make_json_extraction: 0.05,
}


def _make_choice(question: str, examples: dict[str, list[str]], sgd: SgdCorpus, rng: random.Random) -> Pack:
    """Return a task that chooses one label of a random list.

    The labels have random names, random order, and descriptions in 70% of the tasks.
    """
    usable = sorted(name for name, texts in examples.items() if len(texts) >= 50)
    labels = rng.sample(usable, min(len(usable), rng.randint(3, 16)))
    with_descriptions = rng.random() < 0.7
    # Without a description a random code, the last style, cannot be predicted.
    style = rng.choice(LABEL_STYLES) if with_descriptions else rng.choice(LABEL_STYLES[:-1])
    names = {label: style(label, rng) for label in labels}
    if len(set(names.values())) < len(labels):
        names = {label: label for label in labels}
    lines = [
        f"- {names[label]}: {rng.choice(sgd.descriptions[label])}"
        if with_descriptions and label in sgd.descriptions
        else f"- {names[label]}"
        for label in labels
    ]
    sampled_labels = rng.choices(labels, k=rng.randint(8, 24))
    return Pack(
        _choice_prompt(question, lines, rng),
        tuple(
            PackPart(_add_noise(rng.choice(examples[label]), rng) + ANSWER_PREFIX, f"{names[label]}{END}\n")
            for label in sampled_labels
        ),
    )


def _snake_case(label: str, rng: random.Random) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", label).lower()


def _space_separated(label: str, rng: random.Random) -> str:
    return _snake_case(label, rng).replace("_", " ")


def _unchanged(label: str, rng: random.Random) -> str:
    return label


def _partial_label(label: str, rng: random.Random) -> str:
    return rng.choice(_snake_case(label, rng).split("_")) + rng.choice(("", "_q", "_desk", "_team"))


def _random_code(label: str, rng: random.Random) -> str:
    return f"{rng.choice('ABCDEFGHKLMNPQRSTUVWXYZ')}{rng.randrange(1, 99)}"


LABEL_STYLES: tuple[Callable[[str, random.Random], str], ...] = (
    _snake_case,
    _snake_case,
    _space_separated,
    _unchanged,
    _partial_label,
    _random_code,
)


def _choice_prompt(question: str, lines: list[str], rng: random.Random) -> str:
    instruction = rng.choice((f"Say {question}.", f"Decide {question}.", f"Find out {question}.", f"Tell {question}."))
    heading = rng.choice(("Labels:", "Labels:", "Options:", "Choose one:", "Classes:"))
    answer_format = rng.choice(
        ("", "Answer with one of them.", "Answer with exactly one label.", "Reply with the name only.")
    )
    marker = rng.choice(("Input:", "Input:", "Text:", "Message:"))
    body = "\n\n".join(part for part in (instruction, heading + "\n" + "\n".join(lines), answer_format) if part)
    return f"{BEGIN}{USER}\n{body}\n\n{marker}\n"


def _add_noise(text: str, rng: random.Random) -> str:
    """Return the text with typical noise: mostly unchanged, sometimes in lower case or with a typo."""
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.15 and len(text) > 3:
        index = rng.randrange(len(text) - 1)
        text = text[:index] + text[index + 1] + text[index] + text[index + 2 :]
    return text


def _service_domain(service: str) -> str:
    return service.partition("_")[0]
