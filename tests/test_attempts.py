"""A budget holds though the process that keeps it is killed: attempts are on disk before they are sent."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compare import answers, attempts, journal
from compare.spend import Budget
from tests.collecting import IDENTITY, Price, backend, collect, questions
from tests.conftest import ROOT
from tests.faulty_provider import Provider, tokens

ROWS, CAP_USD = 400, 0.03
SLOW = pytest.mark.slow(minutes=4)


def spend() -> None:
    """A comparison as it is started again and again: it goes on with what was spent."""
    address, path = sys.argv[1], Path(sys.argv[2])
    asked = questions(ROWS)
    spent = answers.known_usd(backend(address), IDENTITY, asked, path)
    collect(address, path, asked, budget=Budget(CAP_USD, spent))


@pytest.mark.parametrize(
    ("kills", "faults"), [(4, 0.0), (4, 0.1), pytest.param(50, 0.0, marks=SLOW), pytest.param(50, 0.1, marks=SLOW)]
)
def test_what_is_sent_never_costs_more_than_the_budget_whenever_it_is_killed(
    kills: int, faults: float, provider: Provider, address: str, tmp_path: Path
) -> None:
    provider.faults, provider.delay_seconds = faults, 0.0 if faults else 0.05
    chance, path = random.Random(kills), tmp_path / "provider.jsonl"
    words = [sys.executable, "-c", "from tests import test_attempts as here; here.spend()", address, str(path)]

    def sent_usd() -> float:
        """What a provider charges that takes money for all that it gets; one that refuses takes none for that."""
        return Price().of(provider.charged if faults else [tokens(body) for _, _, body in provider.seen])

    for _ in range(kills):
        seen, until = len(provider.seen), chance.randint(1, 40)
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
        while len(provider.seen) < seen + until and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(chance.choice((signal.SIGKILL, signal.SIGINT)))
        process.wait()
        known = answers.known_usd(backend(address), IDENTITY, questions(ROWS), path)
        assert sent_usd() <= known + 1e-9 and sent_usd() <= CAP_USD
    found = collect(address, path, questions(ROWS), budget=Budget(CAP_USD, known))
    assert not found.complete and 0 < sent_usd() <= CAP_USD


def test_where_every_attempt_has_its_answer_nothing_is_left_of_it(address: str, tmp_path: Path) -> None:
    path = tmp_path / "provider.jsonl"
    found = collect(address, path, questions(20), budget=Budget(1))
    assert found.complete and not attempts.file_of(path).exists()


def test_attempts_without_an_answer_count_beside_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "provider.jsonl"
    lines = [
        '{"key": "a", "process": "1", "usd": 0.5}',
        '{"key": "a", "process": "1", "usd": 0.25}',
        '{"key": "a", "process": "2", "usd": 1.0}',
        '{"key": "a", "process": "2", "usd": null}',
        '{"key": "b", "process": "2", "usd": 2.0}',
        '{"key": "c", "proc',
    ]
    attempts.file_of(path).write_text("\n".join(lines), encoding="utf-8")
    assert attempts.unsettled_usd(path) == {"a": 0.75, "b": 2.0}
    assert [(row.key, row.unsure_usd, row.final) for row in journal.read(path)] == [
        ("a", 0.75, False),
        ("b", 2.0, False),
    ]
