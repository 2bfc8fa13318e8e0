"""Write the synthetic support tickets of `recipes/classifier.yaml`: `python -m demo_data.support_tickets`.

    ticket_id,created_at,channel,customer_id,message,queue
    T000017,2026-03-09T14:02:11Z,chat,C01294,"my thermostat wont stop beeping. the refund is here now",device_fault

No customer wrote these: a seeded generator combines the phrases of `support_phrases.py`. The difficulties are those of
real tickets. A matter has many phrasings, and other matters are mentioned only as settled or not meant. Some messages
have two requests of which one is urgent. There are typing errors, chatter, and several tickets of one customer. A
fraction of tickets has a wrong queue (`LABEL_NOISE`), which no model can predict.
"""

import argparse
import csv
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta

from demo_data.support_phrases import GREETINGS, NOISE, QUEUES, SIGN_OFFS, SIGNATURES, SLOTS

ROWS = 8000
SEED = 17
LABEL_NOISE = 0.03
CHANNELS = {"email": 0.45, "chat": 0.35, "web form": 0.2}
QUEUE_WEIGHTS = {
    "delivery_delay": 1.6, "device_fault": 1.5, "refund_status": 1.2, "billing_dispute": 1.1, "device_setup": 1.1,
    "return_exchange": 1.0, "account_access": 1.0, "plan_change": 0.9, "damaged_item": 0.9, "product_question": 0.8,
    "account_details": 0.7, "privacy_request": 0.5,
}  # fmt: skip
# A wrong label is that of a similar queue, as with human mistakes, not of a random one.
CONFUSED_QUEUES = {
    "billing_dispute": "refund_status", "refund_status": "return_exchange", "return_exchange": "refund_status",
    "delivery_delay": "damaged_item", "damaged_item": "return_exchange", "device_setup": "device_fault",
    "device_fault": "device_setup", "account_access": "account_details", "plan_change": "billing_dispute",
    "account_details": "account_access", "product_question": "device_setup", "privacy_request": "account_details",
}  # fmt: skip

RESOLVED_TEMPLATES = (
    "{other}. {core}", "{other}, but {core}", "{core}. By the way, {other}", "{core} ({other})",
    "first of all {other}. Something else: {core}",
)  # fmt: skip
DENIED_TEMPLATES = (
    "this is not about {topic}: {core}", "{core}. No question about {topic}",
    "I do not write because of {topic}. {core}",
    "forget {topic}, {core}", "{core}, {topic} is not the problem", "no need to look at {topic}. {core}",
)  # fmt: skip
TWO_REQUEST_TEMPLATES = (
    "{core}. That is urgent. {topic} can wait", "{core}. Later on I will also ask about {topic}",
    "I also have something about {topic}, but first: {core}", "{core}! {second}, but only when that is solved",
    "{second}, though that is for another day. What matters now: {core}", "{core}. {second} too, in a separate ticket",
)  # fmt: skip
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"<(\w+)>")
QUESTION = re.compile(
    r"(where|when|why|what|which|who|how|is|are|do|does|did|can|could|will|would|have you|has) ", re.IGNORECASE
)
KEYBOARD_NEIGHBORS = {
    "a": "s", "e": "r", "i": "o", "n": "m", "o": "p", "r": "t", "s": "d", "t": "y", "l": "k", "c": "v",
}  # fmt: skip


@dataclass(frozen=True)
class Ticket:
    """One row of the file; the fields are its columns."""

    ticket_id: str
    created_at: str
    channel: str
    customer_id: str
    message: str
    queue: str


def generate_tickets(rows: int = ROWS, seed: int = SEED) -> Iterator[Ticket]:
    """Yield `rows` synthetic tickets in order of time, deterministic for the same arguments."""
    rng = random.Random(seed)
    now = datetime(2026, 1, 5, 7, 0, tzinfo=UTC)
    step_seconds = 200 * 86400 / rows
    for number in range(rows):
        now += timedelta(seconds=rng.expovariate(1 / step_seconds))
        queue = rng.choices(list(QUEUE_WEIGHTS), list(QUEUE_WEIGHTS.values()))[0]
        channel = rng.choices(list(CHANNELS), list(CHANNELS.values()))[0]
        message = write_message(queue, channel, rng)
        yield Ticket(
            ticket_id=f"T{number:06d}",
            created_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            channel=channel,
            customer_id=f"C{int(rows * 0.6 * rng.random() ** 1.5):05d}",
            message=message,
            queue=CONFUSED_QUEUES[queue] if rng.random() < LABEL_NOISE else queue,
        )


def write_message(queue: str, channel: str, rng: random.Random) -> str:
    """Return a message with a request for `queue`, in the style of `channel`."""
    text = _capitalize(_write_content(queue, rng))
    if rng.random() < 0.35:
        noise = rng.choice(NOISE)
        text = f"{_capitalize(noise)}. {text}" if rng.random() < 0.6 else f"{text}. {_capitalize(noise)}"
    text = _punctuate(text, rng)
    if channel == "email":
        line_break = rng.choice(("\n", " "))
        if rng.random() < 0.7:
            text = f"{rng.choice(GREETINGS)}{line_break}{text}"
        if rng.random() < 0.6:
            text = f"{text}{line_break}{_expand(rng.choice(SIGN_OFFS), rng)}"
    if channel == "chat" and rng.random() < 0.6:
        text = text.lower().replace("'", "")
    if rng.random() < (0.5 if channel == "chat" else 0.2):
        text = _add_typos(text, rng)
    return text


def _write_content(queue: str, rng: random.Random) -> str:
    """Return the request, with or without another matter that must not decide the queue."""
    core = _expand(rng.choice(QUEUES[queue].core), rng)
    other_queue = QUEUES[rng.choice([name for name in QUEUES if name != queue])]
    templates = rng.choices(
        (None, RESOLVED_TEMPLATES, DENIED_TEMPLATES, TWO_REQUEST_TEMPLATES), (0.48, 0.18, 0.14, 0.2)
    )[0]
    if templates is None:
        return core
    return rng.choice(templates).format(
        core=core,
        other=_expand(rng.choice(other_queue.resolved), rng),
        topic=_expand(rng.choice(other_queue.topic), rng),
        second=_expand(rng.choice(other_queue.core), rng),
    )


def _expand(pattern: str, rng: random.Random) -> str:
    """Resolve `[a|b]` from the inside out, and `<slot>`, until the text has neither."""
    while True:
        pattern, choices = CHOICE.subn(lambda match: rng.choice(match[1].split("|")), pattern)
        pattern, slots = SLOT.subn(lambda match: _fill_slot(match[1], rng), pattern)
        if not choices and not slots:
            return re.sub(r" +(?=[ ,.:!?])", "", pattern).strip()


def _fill_slot(name: str, rng: random.Random) -> str:
    """Return a random value of a slot."""
    if name == "signature":
        return rng.choice(SIGNATURES)
    if name == "phone":
        return f"+1 555 01{rng.randrange(100):02d}"
    if name == "email":
        first_name = rng.choice(SIGNATURES).split()[0].strip(".").lower()
        return f"{first_name}{rng.randrange(1000)}@example.{rng.choice(('com', 'org', 'net'))}"
    return rng.choice(SLOTS[name])


def _add_typos(text: str, rng: random.Random) -> str:
    """Add one to three typos: a letter swapped, dropped, doubled or replaced by its keyboard neighbor."""
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(text) - 1)
        if not (text[index].isalpha() and text[index + 1].isalpha()):
            continue
        typo = rng.choice(("swap", "drop", "double", "replace"))
        if typo == "swap":
            text = text[:index] + text[index + 1] + text[index] + text[index + 2 :]
        elif typo == "drop":
            text = text[:index] + text[index + 1 :]
        elif typo == "double":
            text = text[:index] + text[index] + text[index:]
        else:
            text = text[:index] + KEYBOARD_NEIGHBORS.get(text[index].lower(), text[index]) + text[index + 1 :]
    return text


def _punctuate(text: str, rng: random.Random) -> str:
    """Add capitals and question marks as often as people do."""
    sentences = re.split(r"(?<=[.!]) ", text)
    for index, sentence in enumerate(sentences):
        stop = "?" if QUESTION.match(sentence) else rng.choice((".", ".", ".", "!", ""))
        if rng.random() < 0.8 and sentence[-1] not in "!?)":
            sentences[index] = _capitalize(sentence.rstrip(".") + stop)
    return " ".join(sentences)


def _capitalize(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def main() -> None:
    """Write the tickets as CSV to standard output."""
    parser = argparse.ArgumentParser(description="Write synthetic support tickets as CSV to standard output.")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Ticket)], lineterminator="\n")
    writer.writeheader()
    for ticket in generate_tickets(arguments.rows, arguments.seed):
        writer.writerow(asdict(ticket))


if __name__ == "__main__":
    main()
