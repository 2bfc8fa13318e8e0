"""The pools of rows on which the rule of `make label` was chosen. No held-out row of a data set is in them.

    banking77         train rows of Banking77
    demo tickets      rows of demo_data/support_tickets.csv (synthetic)
    near-copies       train rows of Banking77, each with edited copies that deduplication at 0.85 keeps
    useless cluster   train rows of Banking77, and similar rows without a topic, whose labels are random

A part of the rows, by a keyed hash, is held out from the pool to score the models.
"""

import csv
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from data_prep.selection.repeated_rows import find_repeats
from insource.text.split_hash import hash_texts
from insource.text.text_keys import clean, duplicate_key

Rows = Sequence[tuple[str, str]]
"""(text, label) of each row."""

SEED = 20_261_130
SCORED_SHARE = 0.3
DEMO_ROWS = 5_000
ORIGINALS, COPIES = 2_000, 4
USELESS_ROWS = 1_500
OPENINGS = (
    *("hello", "hi team", "quick question", "good morning"),
    *("sorry to bother you", "i need help", "one more thing"),
)
ENDINGS = ("thanks", "thank you in advance", "please advise", "it is urgent", "any idea", "many thanks", "kind regards")
NAMES = ("miller", "okafor", "lindqvist", "tanaka", "garcia", "novak", "haddad", "rossi", "dubois", "petrov")
PARTS = ("attachment", "invoice scan", "screen recording", "voice message", "photo", "signed form", "old thread")


@dataclass(frozen=True)
class Pool:
    """Rows to choose from, and rows on which the models are scored."""

    name: str
    rows: Rows
    origins: Sequence[int | None]
    """Which original each row is, or is a copy of; None for a useless row."""
    scored: Rows
    start_rows: int
    round_rows: int
    rounds: int = 3


def read_banking77(train: Rows) -> Pool:
    """Return the pool of train rows."""
    rows, scored = _hold_out(_deduplicate(train))
    return Pool("banking77", rows, range(len(rows)), scored, start_rows=400, round_rows=200)


def read_demo(train: Rows) -> Pool:
    """Return the pool of demo tickets."""
    del train
    path = Path(machine.ROOT) / "demo_data" / "support_tickets.csv"
    with path.open(encoding="utf-8", newline="") as file:
        tickets = [(clean(row["message"]), row["queue"]) for row in csv.DictReader(file)]
    hashes = hash_texts((text for text, _ in tickets), SEED)
    rows, scored = _hold_out(_deduplicate([tickets[row] for row in sorted(hashes.argsort()[:DEMO_ROWS].tolist())]))
    return Pool("demo tickets", rows, range(len(rows)), scored, start_rows=100, round_rows=100)


def add_near_copies(train: Rows) -> Pool:
    """Return a pool in which every row has edited copies."""
    rows, scored = _hold_out(_deduplicate(train))
    rng = random.Random(SEED)
    sample = rng.sample(range(len(rows)), min(ORIGINALS, len(rows)))
    copied: list[tuple[str, str]] = []
    origins: dict[str, int] = {}
    for origin in sample:
        text, label = rows[origin]
        for version in [text, *(_edit(text, rng) for _ in range(COPIES))]:
            if origins.setdefault(version, origin) == origin:
                copied.append((version, label))
    kept = _deduplicate(copied)
    return Pool("near-copies", kept, [origins[text] for text, _ in kept], scored, start_rows=400, round_rows=200)


def add_useless_cluster(train: Rows) -> Pool:
    """Return a pool with similar rows that have no topic; a label of such a row is random."""
    rows, scored = _hold_out(_deduplicate(train))
    rng = random.Random(SEED)
    labels = sorted({label for _, label in train})
    useless = _deduplicate([(_write_useless(rng), rng.choice(labels)) for _ in range(USELESS_ROWS)])
    origins = [*range(len(rows)), *[None] * len(useless)]
    return Pool("useless cluster", [*rows, *useless], origins, scored, start_rows=400, round_rows=200)


POOLS: dict[str, Callable[[Rows], Pool]] = {
    "banking77": read_banking77,
    "demo tickets": read_demo,
    "near-copies": add_near_copies,
    "useless cluster": add_useless_cluster,
}


def _hold_out(rows: Rows) -> tuple[Rows, Rows]:
    """Return (rows of the pool, rows to score on), by a keyed hash of their duplicate keys."""
    limit = int(SCORED_SHARE * 2**64)
    is_scored = [number < limit for number in hash_texts([duplicate_key(text) for text, _ in rows], SEED).tolist()]
    pool = [row for row, scored in zip(rows, is_scored, strict=True) if not scored]
    return pool, [row for row, scored in zip(rows, is_scored, strict=True) if scored]


def _deduplicate(rows: Rows) -> Rows:
    repeats = find_repeats([text for text, _ in rows], [])
    return [row for index, row in enumerate(rows) if index not in repeats]


def _edit(text: str, rng: random.Random) -> str:
    """Return the text with one word less, if it has more than four, and with an opening and an ending."""
    words = text.split()
    if len(words) > 4:
        del words[rng.randrange(len(words))]
    return f"{rng.choice(OPENINGS)}, {' '.join(words)} {rng.choice(ENDINGS)}"


def _write_useless(rng: random.Random) -> str:
    number, hour, minute = rng.randrange(10**7), rng.randrange(24), rng.randrange(60)
    return (
        f"fwd: case {number} {rng.choice(NAMES)} to {rng.choice(NAMES)}, {rng.choice(PARTS)} and {rng.choice(PARTS)}, "
        f"{hour:02}:{minute:02}, ref {rng.randrange(16**6):06x}"
    )
