"""What the pocket model learns from: the Schema-Guided Dialogue corpus, as conversations and as small tasks.

In: `dialogues.jsonl.gz`, one dialogue a line, and `schema.json`, its services, intents and slots:

    {"services": ["Restaurants_1"], "turns": [{"speaker": "user", "text": "I would like for it to be in San Jose.",
     "intents": ["FindRestaurants"], "slots": [{"slot": "city", "start": 29, "end": 37}]}, ...]}

Out: `Pack`s. A pack is one prompt opening that several completions share, or no opening and one conversation:

    Pack("<|begin|><|user|>\\nWhat does the user want?\\n\\nLabels:\\n- find_bus: ...\\n\\nInput:\\n",
         (Part("I need to get to Fresno<|end|>\\n<|assistant|>\\n", "find_bus<|end|>\\n"), ...))

Source: Rastogi et al. 2020, arXiv:1909.05855, CC BY-SA 4.0. Nothing of the demo data, of Banking77 or of SROIE
is read here; `tests/pocket/test_pocket.py` checks that none of their labels and messages can come out.
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
ANSWER = f"{END}\n{ASSISTANT}\n"


@dataclass(frozen=True)
class Part:
    """One branch of a pack: what is read and what is answered, special tokens included."""

    read: str
    answer: str


@dataclass(frozen=True)
class Pack:
    """One shared opening and the parts behind it, none of which sees another."""

    opening: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sgd:
    """The corpus in memory, indexed by what the tasks draw from."""

    dialogues: list[dict[str, Any]]
    by_intent: dict[str, list[str]]
    by_domain: dict[str, list[str]]
    by_slot: dict[str, list[str]]
    filled: list[tuple[str, dict[str, str]]]
    descriptions: dict[str, list[str]]


def load(folder: Path) -> Sgd:
    """Returns the corpus of `folder` (`dialogues.jsonl.gz`, `schema.json`). Raises OSError where it is not there."""
    descriptions: dict[str, list[str]] = {}
    for service in json.loads((folder / "schema.json").read_text(encoding="utf-8")):
        descriptions.setdefault(_domain(service["service"]), []).append(service["description"])
        for entry in (*service["intents"], *service["slots"]):
            descriptions.setdefault(entry["name"], []).append(entry["description"])
    with gzip.open(folder / "dialogues.jsonl.gz", "rt", encoding="utf-8") as lines:
        dialogues = [json.loads(line) for line in lines]
    sgd = Sgd(dialogues, {}, {}, {}, [], descriptions)
    for dialogue in dialogues:
        _index(dialogue, sgd)
    return sgd


def _index(dialogue: dict[str, Any], sgd: Sgd) -> None:
    services = {_domain(name) for name in dialogue["services"]}
    active: list[str] = []
    for turn in dialogue["turns"]:
        text = turn["text"]
        values: dict[str, str] = {}
        for slot in turn["slots"]:
            values.setdefault(slot["slot"], text[slot["start"] : slot["end"]])
        if values:
            sgd.filled.append((text, values))
        if len(values) == 1:
            sgd.by_slot.setdefault(next(iter(values)), []).append(text)
        if turn["speaker"] != "user":
            continue
        # A turn that names its intent anew says more about it than "yes, please" under an old one.
        if len(turn["intents"]) == 1 and (turn["intents"] != active or len(text) > 45):
            sgd.by_intent.setdefault(turn["intents"][0], []).append(text)
            if len(services) == 1:
                sgd.by_domain.setdefault(next(iter(services)), []).append(text)
        active = turn["intents"]


def packs(sgd: Sgd, rng: random.Random, mix: "Mapping[Maker, float]") -> Iterator[Pack]:
    """Yields packs without end: conversations, and tasks of five kinds, in the proportions of `mix`."""
    makers, weights = zip(*mix.items(), strict=True)
    while True:
        yield rng.choices(makers, weights)[0](sgd, rng)


def conversation(sgd: Sgd, rng: random.Random) -> Pack:
    turns = rng.choice(sgd.dialogues)["turns"]
    first = 2 * rng.randrange(max(1, len(turns) // 2))
    text = "".join(
        f"{USER if turn['speaker'] == 'user' else ASSISTANT}\n{turn['text']}{END}\n" for turn in turns[first:]
    )
    return Pack("", (Part(BEGIN, text),))


def intents(sgd: Sgd, rng: random.Random) -> Pack:
    return _choose("what the user wants", sgd.by_intent, sgd, rng)


def domains(sgd: Sgd, rng: random.Random) -> Pack:
    return _choose("which service the message belongs to", sgd.by_domain, sgd, rng)


def slots(sgd: Sgd, rng: random.Random) -> Pack:
    return _choose("which detail the message gives or asks for", sgd.by_slot, sgd, rng)


def mentioned(sgd: Sgd, rng: random.Random) -> Pack:
    """Which of the listed values stands in the text: reading and looking up, whatever the values mean."""
    drawn: dict[str, str] = {}
    while len(drawn) < rng.randint(4, 12):
        text, values = rng.choice(sgd.filled)
        value = rng.choice(list(values.values()))
        if not any(value.lower() in other.lower() for other in drawn.values()):
            drawn[value] = text
    names = list(drawn)
    rng.shuffle(names)
    opening = _opening("which of these the text mentions", [f"- {name}" for name in names], rng)
    return Pack(opening, tuple(Part(_input(text, rng) + ANSWER, f"{name}{END}\n") for name, text in drawn.items()))


def forms(sgd: Sgd, rng: random.Random) -> Pack:
    """Fill the listed fields from the text as JSON, null for what it does not say."""
    examples = [rng.choice(sgd.filled) for _ in range(rng.randint(3, 10))]
    asked = sorted({name for _, values in examples for name in values})
    rng.shuffle(asked)
    asked = asked[: rng.randint(2, 8)]
    lines = [
        f"- {name}: {rng.choice(sgd.descriptions[name])}" if name in sgd.descriptions else f"- {name}" for name in asked
    ]
    command = rng.choice(("Fill these fields from the text.", "Extract the fields as JSON.", "Return one JSON object."))
    opening = f"{BEGIN}{USER}\n{command}\n\nFields:\n" + "\n".join(lines) + "\n\nInput:\n"
    return Pack(
        opening,
        tuple(
            Part(text + ANSWER, json.dumps({name: values.get(name) for name in asked}, ensure_ascii=False) + f"{END}\n")
            for text, values in examples
        ),
    )


Maker = Callable[[Sgd, random.Random], Pack]
# Language first, then mostly tasks.
LANGUAGE: dict[Maker, float] = {
    conversation: 0.30, intents: 0.30, domains: 0.10, slots: 0.15, mentioned: 0.08, forms: 0.07,
}  # fmt: skip
TASKS: dict[Maker, float] = {
    conversation: 0.10, intents: 0.35, domains: 0.15, slots: 0.20, mentioned: 0.15, forms: 0.05,
}  # fmt: skip


def _choose(question: str, examples: dict[str, list[str]], sgd: Sgd, rng: random.Random) -> Pack:
    """Choose one label of a random list, under random names, with or without descriptions, in random order."""
    usable = sorted(name for name, texts in examples.items() if len(texts) >= 50)
    chosen = rng.sample(usable, min(len(usable), rng.randint(3, 16)))
    described = rng.random() < 0.7
    style = rng.choice(STYLES) if described else rng.choice(STYLES[:-1])
    names = {label: style(label, rng) for label in chosen}
    if len(set(names.values())) < len(chosen):
        names = {label: label for label in chosen}
    lines = [
        f"- {names[label]}: {rng.choice(sgd.descriptions[label])}"
        if described and label in sgd.descriptions
        else f"- {names[label]}"
        for label in chosen
    ]
    drawn = rng.choices(chosen, k=rng.randint(8, 24))
    return Pack(
        _opening(question, lines, rng),
        tuple(Part(_input(rng.choice(examples[label]), rng) + ANSWER, f"{names[label]}{END}\n") for label in drawn),
    )


def _snake(label: str, rng: random.Random) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", label).lower()


def _words(label: str, rng: random.Random) -> str:
    return _snake(label, rng).replace("_", " ")


def _as_is(label: str, rng: random.Random) -> str:
    return label


def _part(label: str, rng: random.Random) -> str:
    return rng.choice(_snake(label, rng).split("_")) + rng.choice(("", "_q", "_desk", "_team"))


def _code(label: str, rng: random.Random) -> str:
    return f"{rng.choice('ABCDEFGHKLMNPQRSTUVWXYZ')}{rng.randrange(1, 99)}"


STYLES: tuple[Callable[[str, random.Random], str], ...] = (_snake, _snake, _words, _as_is, _part, _code)


def _opening(question: str, lines: list[str], rng: random.Random) -> str:
    asked = rng.choice((f"Say {question}.", f"Decide {question}.", f"Find out {question}.", f"Tell {question}."))
    heading = rng.choice(("Labels:", "Labels:", "Options:", "Choose one:", "Classes:"))
    order = rng.choice(("", "Answer with one of them.", "Answer with exactly one label.", "Reply with the name only."))
    marker = rng.choice(("Input:", "Input:", "Text:", "Message:"))
    body = "\n\n".join(part for part in (asked, heading + "\n" + "\n".join(lines), order) if part)
    return f"{BEGIN}{USER}\n{body}\n\n{marker}\n"


def _input(text: str, rng: random.Random) -> str:
    """The text as people type it: mostly as it is, sometimes in lower case or with a slip of the finger."""
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.15 and len(text) > 3:
        at = rng.randrange(len(text) - 1)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def _domain(service: str) -> str:
    return service.partition("_")[0]
