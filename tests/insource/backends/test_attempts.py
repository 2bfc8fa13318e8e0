"""A budget holds though the process that keeps it is killed: attempts are on disk before they are sent."""

from pathlib import Path

import pytest

from bench import budget
from insource.backends import attempt_log, response_cache
from insource.backends.budgets import Budget
from tests.helpers.api_requests import collect, make_requests


@pytest.mark.parametrize(
    ("kills", "faults"),
    [
        (4, 0.0),
        (4, 0.1),
        pytest.param(50, 0.0, marks=pytest.mark.nightly),
        pytest.param(50, 0.1, marks=pytest.mark.nightly),
    ],
)
def test_what_is_sent_never_costs_more_than_the_budget_whenever_it_is_killed(
    kills: int, faults: float, tmp_path: Path
) -> None:
    result = budget.run_with_kills(kills, faults, rows=400, cap_usd=0.03, path=tmp_path / "provider.jsonl", seed=kills)
    assert result["over_cap"] == 0 and result["over_known"] == 0
    assert not result["complete"] and 0 < result["sent_usd"] <= result["cap_usd"]


def test_where_every_attempt_has_its_answer_nothing_is_left_of_it(address: str, tmp_path: Path) -> None:
    path = tmp_path / "provider.jsonl"
    result = collect(address, path, make_requests(20), budget=Budget(1))
    assert result.complete and not attempt_log.attempt_log_path(path).exists()


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
    attempt_log.attempt_log_path(path).write_text("\n".join(lines), encoding="utf-8")
    assert attempt_log.read_unsettled_usd(path) == {"a": 0.75, "b": 2.0}
    assert [(row.key, row.possibly_charged_usd, row.final) for row in response_cache.read_responses(path)] == [
        ("a", 0.75, False),
        ("b", 2.0, False),
    ]
