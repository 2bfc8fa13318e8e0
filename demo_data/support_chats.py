"""Write the synthetic support conversations of `recipes/summarizer.yaml`: `python -m demo_data.support_chats`.

    {"conversation_id": "S00017", "channel": "chat", "text": "Customer: Hi, are you there?\\nAgent: I am. What is it?\\n
     Customer: the pet feeder will not turn on any more. ...", "summary": "Pet feeder, order 48213: no power. Wants a
     refund. Tried a reset."}

The conversations and the shop are invented: a seeded generator combines the phrases of `support_chat_phrases.py`. The
facts of a summary are spread over several turns, in other words than in the summary. Between them are greetings, a
second device that works, other orders, and abandoned wishes. The first sentence is therefore no summary.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from demo_data import support_chat_phrases as phrases

ROWS = 1200
SEED = 17
CHANNELS = {"chat": 0.6, "email": 0.4}


class Fact(NamedTuple):
    """A fact in the words of the summary, and in those of the customer."""

    summary: str
    customer: str


@dataclass(frozen=True)
class Case:
    """The subject of a conversation."""

    device: str
    order: str | None
    problem: Fact
    wish: Fact
    attempted_fix: Fact | None
    deadline: Fact | None
    distractor: str | None
    """A remark on another device, which is irrelevant."""

    def summary(self) -> str:
        """Return the one-line summary for an agent."""
        subject = self.device.capitalize() + (f", order {self.order}" if self.order else "")
        line = f"{subject}: {self.problem.summary}. Wants {self.wish.summary}."
        line += f" Tried {self.attempted_fix.summary}." if self.attempted_fix else ""
        return line + (f" Urgent: {self.deadline.summary}." if self.deadline else "")


def generate_conversations(rows: int = ROWS, seed: int = SEED) -> Iterator[dict[str, str]]:
    """Yield `rows` synthetic conversations with summaries, deterministic for the same arguments."""
    rng = random.Random(seed)
    for number in range(rows):
        channel = rng.choices(list(CHANNELS), list(CHANNELS.values()))[0]
        case = _make_case(rng)
        text = _write_chat(case, rng) if channel == "chat" else _write_email(case, rng)
        yield {"conversation_id": f"S{number:05d}", "channel": channel, "text": text, "summary": case.summary()}


def _make_case(rng: random.Random) -> Case:
    """Return a random case."""
    device, other_device, third_device = rng.sample(phrases.DEVICES, 3)
    group = rng.choice(list(phrases.PROBLEMS))
    slots = {
        "device": device,
        "other": other_device,
        "when": rng.choice(phrases.TIMES),
        "day": rng.choice(phrases.DAYS),
        "light": rng.choice(phrases.LIGHTS),
        "code": f"E{rng.randint(10, 99)}",
        "amount": f"{rng.randint(5, 240)} euros",
    }
    problem, wordings = rng.choice(list(phrases.PROBLEMS[group].items()))
    wish = rng.choice(phrases.WISHES_BY_PROBLEM[group])
    abandoned_wish = rng.choice([candidate for candidate in phrases.WISHES_BY_PROBLEM[group] if candidate != wish])
    wish_text = rng.choice(phrases.WISHES[wish])
    if rng.random() < 0.25:
        wish_text = rng.choice(phrases.CHANGED_WISHES).format(other=abandoned_wish, wish=wish_text)
    attempted_fix = (
        rng.choice(list(phrases.ATTEMPTED_FIXES.items())) if group == "fault" and rng.random() < 0.6 else None
    )
    deadline = rng.choice(list(phrases.DEADLINES.items())) if rng.random() < 0.3 else None
    return Case(
        device=device,
        order=_make_order_number(rng) if rng.random() < 0.8 else None,
        problem=Fact(problem.format(**slots), rng.choice(wordings).format(**slots)),
        wish=Fact(wish, wish_text),
        attempted_fix=attempted_fix and Fact(attempted_fix[0], rng.choice(attempted_fix[1])),
        deadline=deadline and Fact(deadline[0].format(**slots), rng.choice(deadline[1]).format(**slots)),
        distractor=rng.choice(phrases.ASIDES).format(other=third_device, order=_make_order_number(rng))
        if rng.random() < 0.5
        else None,
    )


def _make_order_number(rng: random.Random) -> str:
    """Return a random order number of five digits."""
    return str(rng.randint(10000, 99999))


def _write_chat(case: Case, rng: random.Random) -> str:
    """Return turns of customer and agent; the agent asks for missing facts."""
    order_text = case.order and rng.choice(phrases.ORDERS).format(order=case.order)
    lines = []
    if rng.random() < 0.5:
        lines = [f"Customer: {rng.choice(phrases.HELLOS)}", f"Agent: {rng.choice(phrases.WELCOMES)}"]
    early, late = (case.distractor, None) if rng.random() < 0.6 else (None, case.distractor)
    lines.append(f"Customer: {' '.join(_write_sentences(rng, case.problem.customer, early))}")
    lines.append(f"Agent: {rng.choice(phrases.ORDER_QUESTIONS)}")
    lines.append(f"Customer: {_capitalize(order_text or rng.choice(phrases.NO_ORDER))}.")
    lines.append(f"Agent: {rng.choice(phrases.WISH_QUESTIONS)}")
    final_sentences = _write_sentences(
        rng,
        case.attempted_fix and case.attempted_fix.customer,
        late,
        case.wish.customer,
        case.deadline and case.deadline.customer,
    )
    lines.append(f"Customer: {' '.join(final_sentences)}")
    text = "\n".join(lines)
    return text.lower().replace("customer:", "Customer:").replace("agent:", "Agent:") if rng.random() < 0.2 else text


def _write_email(case: Case, rng: random.Random) -> str:
    """Return one message with all facts in random order."""
    order_text = case.order and rng.choice(phrases.ORDERS).format(order=case.order)
    middle = [
        case.problem.customer,
        order_text,
        case.distractor,
        case.attempted_fix and case.attempted_fix.customer,
    ]
    rng.shuffle(middle)
    body = _write_sentences(rng, *middle, case.wish.customer, case.deadline and case.deadline.customer)
    if rng.random() < 0.5:
        body.insert(0, rng.choice(phrases.CHATTER))
    parts = [rng.choice(phrases.GREETINGS), " ".join(body), rng.choice(phrases.SIGN_OFFS)]
    return "\n".join(parts)


def _write_sentences(rng: random.Random, *parts: str | None) -> list[str]:
    """Return the parts that are not None as sentences."""
    return [_capitalize(part) + rng.choice((".", ".", ".", "!")) for part in parts if part]


def _capitalize(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def main() -> None:
    """Write the conversations as JSON Lines to standard output."""
    parser = argparse.ArgumentParser(
        description="Write synthetic support conversations as JSON Lines to standard output."
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for conversation in generate_conversations(arguments.rows, arguments.seed):
        print(json.dumps(conversation, ensure_ascii=False))


if __name__ == "__main__":
    main()
