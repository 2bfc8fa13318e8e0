"""Write the synthetic pairs of replies of `recipes/preference.yaml`: `python -m demo_data.reply_pairs`.

    {"message_id": "M00017", "broken_rule": "promises", "message": "Hello, how long is the warranty on the fan?",
     "chosen": "Thank you for asking. It is two years from the day of purchase.",
     "rejected": "It is two years from the day of purchase. I promise that the fan will never fail before that."}

The texts and the shop are invented: a seeded generator combines the phrases of `reply_phrases.py`. The chosen reply
follows the company style: short, friendly, with an answer, without a promise. The rejected reply answers the same
message and breaks one rule. In one row of three it is the shorter of the two, so that length is not sufficient.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator

from demo_data import reply_phrases as phrases

ROWS = 800
SEED = 17


def generate_pairs(rows: int = ROWS, seed: int = SEED) -> Iterator[dict[str, str]]:
    """Yield `rows` synthetic messages with two replies each, deterministic for the same arguments."""
    rng = random.Random(seed)
    for number in range(rows):
        device = rng.choice(phrases.DEVICES)
        questions, facts = rng.choice(phrases.TOPICS)
        message = _write_message(rng.choice(questions).format(device=device), rng)
        rule = rng.choice(list(STYLE_BREAKS))
        fact, other_fact = rng.sample(facts, 2)
        yield {
            "message_id": f"M{number:05d}",
            "broken_rule": rule,
            "message": message,
            "chosen": _join(*_write_friendly(fact, rng)).format(device=device),
            # Mostly in other words, so that the shared text does not reveal the rule.
            "rejected": _join(*STYLE_BREAKS[rule](other_fact if rng.random() < 0.7 else fact, rng)).format(
                device=device
            ),
        }


def _write_message(question: str, rng: random.Random) -> str:
    """Return a message with the question, and random greetings and chatter."""
    parts = [rng.choice(phrases.GREETINGS)] if rng.random() < 0.6 else []
    parts += [rng.choice(phrases.CHATTER)] if rng.random() < 0.6 else []
    parts += [question[:1].upper() + question[1:]]
    parts += [rng.choice(phrases.THANKS)] if rng.random() < 0.4 else []
    text = " ".join(parts)
    return text.lower() if rng.random() < 0.2 else text


def _write_friendly(fact: str, rng: random.Random) -> list[str]:
    """Return a reply in the company style: thanks before the answer, an offer after it, or both."""
    with_opener, with_closer = rng.choice(((True, False), (False, True), (True, True)))
    return [
        *([rng.choice(phrases.OPENERS)] if with_opener else []),
        fact,
        *([rng.choice(phrases.CLOSERS)] if with_closer else []),
    ]


def _write_promise(fact: str, rng: random.Random) -> list[str]:
    """Return a reply with a promise."""
    opener = [rng.choice(phrases.OPENERS)] if rng.random() < 0.5 else []
    return [*opener, fact, rng.choice(phrases.PROMISES)]


def _write_impolite(fact: str, rng: random.Random) -> list[str]:
    """Return an impolite reply."""
    rude = rng.choice(phrases.RUDE)
    return [rude, fact] if rng.random() < 0.6 else [fact, rude]


def _write_evasive(fact: str, rng: random.Random) -> list[str]:
    """Return a reply without an answer."""
    return [rng.choice(phrases.OPENERS), *rng.sample(phrases.EVASIONS, rng.randint(1, 2))]


def _write_rambling(fact: str, rng: random.Random) -> list[str]:
    """Return a reply with filler sentences."""
    filler = rng.sample(phrases.FILLER, 3)
    return [rng.choice(phrases.OPENERS), *filler[:2], fact, filler[2]]


STYLE_BREAKS: dict[str, Callable[[str, random.Random], list[str]]] = {
    "promises": _write_promise,
    "impolite": _write_impolite,
    "evades": _write_evasive,
    "rambles": _write_rambling,
}


def _join(*sentences: str) -> str:
    """Return the sentences as one text."""
    return " ".join(sentences)


def main() -> None:
    """Write the pairs as JSON Lines to standard output."""
    parser = argparse.ArgumentParser(description="Write synthetic pairs of replies as JSON Lines to standard output.")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for pair in generate_pairs(arguments.rows, arguments.seed):
        print(json.dumps(pair, ensure_ascii=False))


if __name__ == "__main__":
    main()
