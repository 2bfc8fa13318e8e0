"""The monthly cap of the gateway: on disk before a call, for all processes, whoever is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.answers.spending import Ledger, MonthlyBudget
from insource.backends.pricing import TokenPrice
from insource.backends.types import Completion, Request, Usage
from insource.config.errors import StageError
from tests.conftest import ROOT
from tests.helpers.errors import raises_error

SPENDER = """
import sys, time
from pathlib import Path
from deploy.answers.spending import Ledger
ledger, made = Ledger(Path(sys.argv[1]), 1.005), 0
while (at := ledger.reserve(0.01)) is not None:
    made += 1
    if sys.argv[2] == "settles" and made % 2:
        ledger.settle(at, 0.005)
    if sys.argv[2] == "stays" and made == 10:
        print("ready", flush=True)
        time.sleep(60)
print(made, flush=True)
"""


def spender(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(folder), mode], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def lines(folder: Path) -> list[dict[str, object]]:
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def test_processes_side_by_side_share_one_cap(tmp_path: Path) -> None:
    processes = [spender(tmp_path, "all") for _ in range(3)]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) == 100
    assert len(lines(tmp_path)) == 100
    assert Ledger(tmp_path, 1.005).reserve(0.01) is None
    assert Ledger(tmp_path, 1.1).reserve(0.01) is not None


def test_what_a_call_did_cost_takes_the_place_of_what_it_may_cost(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1.0)
    first, second = ledger.reserve(0.4), ledger.reserve(0.4)
    assert first and second and ledger.reserve(0.4) is None
    ledger.settle(first, 0.1)
    assert ledger.spent_usd() == pytest.approx(0.5) == Ledger(tmp_path, 1.0).spent_usd()
    assert ledger.reserve(0.4) is not None
    ledger.settle(second, 0.0)
    assert ledger.spent_usd() == pytest.approx(0.5)


def test_calls_of_a_process_that_was_killed_count_in_full(tmp_path: Path) -> None:
    process = spender(tmp_path, "stays")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert Ledger(tmp_path, 1.0).spent_usd() == pytest.approx(0.1)


def test_a_torn_line_was_not_sent_and_hides_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1.0)
    ledger.reserve(0.2)
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"attempt": "x", "us')
    assert ledger.reserve(0.3)
    assert ledger.spent_usd() == pytest.approx(0.5) == Ledger(tmp_path, 1.0).spent_usd()


def test_threads_of_one_process_share_it_too(tmp_path: Path) -> None:
    ledger, reserved = Ledger(tmp_path, 0.505), list[bool]()
    threads = [
        threading.Thread(target=lambda: reserved.extend(bool(ledger.reserve(0.01)) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(reserved) == 50


def test_where_nothing_can_be_written_nothing_is_sent(tmp_path: Path) -> None:
    (tmp_path / "spend").write_text("", encoding="utf-8")
    with raises_error(StageError, "INS-X002", match="cannot be written"):
        Ledger(tmp_path / "spend", 1.0).reserve(0.1)


def test_texts_with_more_tokens_than_those_before_stay_within_the_cap(tmp_path: Path) -> None:
    price = TokenPrice(1_000_000.0, 0.0, None, None, None, "recipe", None)  # a dollar a token
    ledger = Ledger(tmp_path, 3000.0)
    budget = MonthlyBudget(ledger, price)

    def request(number: int, text: str) -> Request:
        return Request(str(number), [{"role": "user", "content": text}], 8)

    async def count_reserved(requests: list[Request], tokens: int) -> int:
        """Asks all at once, each of which has so many tokens; returns how many were made."""
        reserved = [item for item in requests if await budget.reserve(item)]
        for item in reserved:
            budget.settle(item, Completion("a", "m", Usage(tokens, 1), "stop"), possibly_charged=False)
        await asyncio.gather(*budget._write_tasks)
        return len(reserved)

    async def main() -> tuple[int, int]:
        plain = [request(index, "where is my parcel, please") for index in range(30)]
        few = 0
        for item in plain:
            few += await count_reserved([item], 6)
        return few, await count_reserved([request(100 + index, "!?" * 100) for index in range(40)], 190)

    few, dense = asyncio.run(main())
    assert few == 30 and 0 < dense < 40
    assert ledger.spent_usd() <= 3000.0
