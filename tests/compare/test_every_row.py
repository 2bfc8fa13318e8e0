"""Every row once, by chat, decisions and batch: faults, kill -9, a key revoked in the middle, and the same scores."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest

from compare.eval_dataset import EvalDataset
from compare.records import SystemAnswer
from compare.scoring import predictions
from insource.backends import failures, response_cache
from insource.backends.collection import CollectResult
from insource.backends.types import ApiFormat
from insource.tasks import TASKS, classification
from insource.tracking.prompt_spec import PromptSpec
from tests.helpers.api_requests import (
    collect,
    collect_and_kill,
    make_backend,
    make_requests,
    outputs_by_row,
    read_cache_lines,
    read_pending_batch,
)
from tests.helpers.provider.faulty_provider import FAULT_KINDS, Provider, run_provider
from tests.helpers.provider.provider_answers import LABELS, correct_label

FULL, SOME = 3080, 250
AT_ONCE = 16
Mode = Literal["live", "batch"]
WAYS: list[tuple[ApiFormat, Mode]] = [
    ("openai", "live"),
    ("anthropic", "live"),
    ("decisions", "live"),
    ("systemone", "live"),
    ("openai", "batch"),
    ("anthropic", "batch"),
]


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are real, and short."""
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


def asked(address: str, path: Path, rows: int, wire: ApiFormat, mode: Mode) -> CollectResult:
    endpoint = make_backend(address, wire, timeout_seconds=60.0 if mode == "batch" else 5.0)
    return collect(address, path, make_requests(rows), wire, mode=mode, backend=endpoint)


def scores(result: CollectResult, rows: int) -> dict[str, Any]:
    """The figures of a comparison: two of three rows have a right answer."""
    spec = classification.Spec("Say what happened.", dict.fromkeys(LABELS, ""))
    material = EvalDataset(TASKS["classification"], spec, PromptSpec(max_answer_tokens=16), [], [], [])
    ids = [f"T{index:06}" for index in range(rows)]
    targets = [LABELS[0] if index % 3 == 0 else correct_label(f"row {index}") for index in range(rows)]
    answers = [SystemAnswer(row_id, result.answers[row_id, 0].output) for row_id in ids]
    scored_rows: Any = [{"id": row_id, "target": target} for row_id, target in zip(ids, targets, strict=True)]
    parsed = predictions.score_answers(material, scored_rows, answers)
    return classification.score(spec, targets, parsed.parsed)


def kill_and_revoke(
    provider: Provider, address: str, path: Path, rows: int, wire: ApiFormat, mode: Mode
) -> CollectResult:
    """A process that is killed, and one whose key is revoked in the middle."""
    if mode == "batch":
        provider.batches_ended = False
        collect_and_kill(
            address, path, wire, mode, rows, should_kill=lambda: bool((read_pending_batch(path) or {}).get("id"))
        )
        provider.batches_ended = True
        provider.is_key_revoked = lambda batch, index: batch is provider.batches[0] and index % 7 == 3
    else:
        provider.hang_after = rows // 3
        collect_and_kill(address, path, wire, mode, rows, should_kill=lambda: len(read_cache_lines(path)) >= rows // 4)
        provider.hang_after = None
        provider.refuse = lambda prompt, attempts: (401, {}) if provider.delivered.total() >= rows // 2 else None
    result = asked(address, path, rows, wire, mode)
    provider.refuse = lambda prompt, attempts: None
    return result


@pytest.mark.parametrize(
    ("wire", "mode", "rows"),
    [
        *((*way, SOME) for way in WAYS),
        *(pytest.param(*way, FULL, marks=pytest.mark.nightly) for way in WAYS if way[0] != "systemone"),
    ],
)
def test_none_is_lost_none_is_paid_twice_and_the_scores_are_those_of_a_provider_that_never_fails(
    tmp_path: Path, wire: ApiFormat, mode: Mode, rows: int
) -> None:
    path = tmp_path / "provider.jsonl"
    provider = Provider(fault_rate=0.2, batch_fault_rate=0.3)
    with run_provider(provider) as address:
        interrupted = kill_and_revoke(provider, address, path, rows, wire, mode)
        assert not interrupted.complete and "HTTP 401" in (interrupted.why_incomplete or "")
        succeeded = [answer for answer in interrupted.answers.values() if answer.error is None]
        assert rows // 3 <= len(succeeded) < rows
        assert all(answer.refused and not answer.final for answer in interrupted.answers.values() if answer.error)
        resumed = asked(address, path, rows, wire, mode)
    assert resumed.complete and resumed.n_reused == len(succeeded)
    with run_provider(Provider()) as address:
        expected = asked(address, tmp_path / "plain.jsonl", rows, wire, "live")
    assert outputs_by_row(resumed) == outputs_by_row(expected) and len(outputs_by_row(resumed)) == rows
    assert scores(resumed, rows) == scores(expected, rows) and 0.6 < scores(resumed, rows)["accuracy"] < 0.9
    assert {answer.key for answer in response_cache.read_responses(path)} == {
        answer.key for answer in resumed.answers.values()
    }
    assert not provider.rule_violations
    if mode == "batch":
        answered = Counter(prompt for _, prompt in provider.batch_answers)
        assert len(answered) == rows and set(answered.values()) == {1}
        assert len(provider.batches) == 2 and provider.batch_fault_counts.total() >= 3
    else:
        # But for what was on its way when the process was killed: nobody knows of it.
        assert len(provider.delivered) == rows and provider.delivered.total() - rows <= AT_ONCE
        assert rows < FULL or provider.fault_counts.keys() == set(FAULT_KINDS)
