"""Answers on disk: one line each, appended and flushed before it counts, never written twice, never lost.

{"key": "5d41...", "id": "T000017", "repeat": 0, "request_sha256": "9f2c...", "output": "delivery_delay",
 "model_id": "gpt-6-luna-2026-09-12", "finish_reason": "stop", "log_probability": null, "input_tokens": 231,
 "output_tokens": 5, "reasoning_tokens": 0, "cached_tokens": 208, "latency_seconds": 0.61,
 "attempt_latencies_seconds": [0.61], "error": null, "final": true, "usd": 0.000013, "unsure_usd": 0.0,
 "batch": false, "asked": "2026-11-21T10:00:00Z", "refused": false, "probabilities": null,
 "field_log_probability": null}

The key is the hash of who is asked, of the whole body and of the repeat: an answer is used again for that alone. Of
several lines with one key the last counts. A process that is killed while it writes leaves a torn last line, which is
cut off when the journal is opened again.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from insource.backends import attempt_log
from insource.backends.types import Completion, Usage
from insource.config.errors import StageError


@dataclass(frozen=True, kw_only=True)
class CachedResponse:
    """What became of a question: a line of the journal."""

    key: str
    id: str
    repeat: int
    request_sha256: str
    output: str | None
    """None where there is no answer."""
    model_id: str | None
    finish_reason: str | None
    log_probability: float | None
    input_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    latency_seconds: float | None
    """As it was when it was asked; None in a batch."""
    attempt_latencies_seconds: tuple[float, ...]
    error: str | None
    final: bool
    """False: an error that another invocation may try to get an answer for."""
    usd: float | None
    """What the answer cost by its tokens; None where there is none, or nobody knows a price."""
    unsure_usd: float = 0.0
    """The most that attempts can have cost which brought nothing, but may have been paid for."""
    batch: bool
    asked: str
    refused: bool = False
    """Whether it was refused for how it was asked: no answer, and no wrong one either."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, where the provider tells them."""
    field_log_probability: float | None = None
    reused: bool = False
    """Whether it was not asked for here: an earlier invocation was, or another row with the same request."""


class ResponseCache:
    """An open journal: its lines by key, the last of each, and where to append."""

    def __init__(self, path: Path, file: BinaryIO, responses: dict[str, CachedResponse]) -> None:
        self.path = path
        self.rows: Mapping[str, CachedResponse] = responses
        self._file = file
        self._rows = responses

    def append(self, responses: Sequence[CachedResponse]) -> None:
        """Writes lines and flushes them to disk. Raises StageError where they cannot be written."""
        lines = "".join(to_json_line(response) for response in responses)
        try:
            remaining = memoryview(lines.encode("utf-8", "surrogatepass"))
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StageError(f"{self.path}: answers cannot be written: {error.strerror or error}") from None
        self._rows.update((response.key, response) for response in responses)


@contextmanager
def open_cache(path: Path) -> Iterator[ResponseCache]:
    """Yields a journal that this process alone writes to; the lock goes with the process, however that ends.

    Raises StageError where another process holds it, and for a broken line that is not the last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: closing a file writes its buffer once more, and on a full disk fails once more.
    with path.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{path} is being written by another process; wait for it, or end it") from None
        file.seek(0)
        data = file.read()
        responses, complete_bytes = _parse_lines(data, path)
        if complete_bytes < len(data):
            print(f"{path}: cut off a torn last line of {len(data) - complete_bytes} bytes", file=sys.stderr)
            file.truncate(complete_bytes)
        elif complete_bytes > len(data):
            # All of it was written but the end of the line.
            file.write(b"\n")
        yield ResponseCache(path, file, {response.key: response for response in responses})


def read_responses(path: Path) -> list[CachedResponse]:
    """Returns the lines of a journal that may be open elsewhere, in order; none where there is no file. What attempts
    can have cost whose answer is not known stands in `unsure_usd`, of a line without an answer where there is none."""
    responses = _parse_lines(path.read_bytes(), path)[0] if path.is_file() else []
    last_index = {response.key: index for index, response in enumerate(responses)}
    for key, usd in attempt_log.read_unsettled_usd(path).items():
        if (index := last_index.get(key)) is not None:
            responses[index] = replace(responses[index], unsure_usd=responses[index].unsure_usd + usd)
        else:
            responses.append(_make_unanswered_response(key, usd))
    return responses


def batch_file_path(path: Path) -> Path:
    """Returns the file that names the batch which is on its way to a journal
    (insource/backends/batch_collection.py)."""
    return path.with_suffix(".batch.json")


def compute_cache_key(identity: Any, body: Mapping[str, Any], repeat: int) -> str:
    """Returns the hash by which an answer is found again: 64 hex digits, also the custom id in a batch. `identity`: any
    JSON that says who answers."""
    payload = json.dumps([identity, body, repeat], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()


def make_cached_response(
    key: str,
    row_id: str,
    repeat: int,
    request_sha256: str,
    completion: Completion | None,
    *,
    requested_at: str,
    error: str | None = None,
    final: bool = True,
    usd: float | None = None,
    unsure_usd: float = 0.0,
    batch: bool = False,
    refused: bool = False,
    latency_seconds: float | None = None,
    attempt_latencies_seconds: tuple[float, ...] = (),
) -> CachedResponse:
    """Returns the line of the journal for what became of a question about a row."""
    usage = completion.usage if completion else Usage()
    return CachedResponse(
        key=key,
        id=row_id,
        repeat=repeat,
        request_sha256=request_sha256,
        output=completion.output if completion else None,
        model_id=completion.model_id if completion else None,
        finish_reason=completion.finish_reason if completion else None,
        log_probability=completion.log_probability if completion else None,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cached_tokens=usage.cached_tokens,
        latency_seconds=latency_seconds,
        attempt_latencies_seconds=attempt_latencies_seconds,
        error=error,
        final=final,
        usd=usd,
        unsure_usd=unsure_usd,
        batch=batch,
        asked=requested_at,
        refused=refused,
        probabilities=completion.probabilities if completion else None,
        field_log_probability=completion.field_log_probability if completion else None,
    )


def to_json_line(response: CachedResponse) -> str:
    """Returns an answer as its line."""
    payload = {name: value for name, value in asdict(response).items() if name != "reused"}
    return json.dumps(payload, ensure_ascii=False) + "\n"


def _make_unanswered_response(key: str, usd: float) -> CachedResponse:
    """A question that was sent, and of which nothing is known."""
    error = "the process that asked ended before an answer was written down"
    return make_cached_response(key, key, 0, "", None, requested_at="", error=error, final=False, unsure_usd=usd)


def _parse_lines(data: bytes, path: Path) -> tuple[list[CachedResponse], int]:
    """Returns the lines, and how many bytes they take with the end of the last one."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    responses, complete_bytes = [], 0
    for number, line in enumerate(lines, 1):
        try:
            responses.append(_parse_response(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):
                break
            raise StageError(
                f"{path}:{number}: this line is no answer: {line[:60]!r} ({error}). Only a last line can be torn by a "
                "process that was killed; something else changed the file. Remove the line, and its question is asked "
                "again"
            ) from None
        complete_bytes += len(line) + 1
    return responses, complete_bytes


def _parse_response(payload: Any) -> CachedResponse:
    """Raises TypeError where it is no row."""
    if not isinstance(payload, dict) or not {"key", "id", "repeat", "final"} <= payload.keys():
        raise TypeError("it lacks what an answer has")
    field_names = {field.name for field in fields(CachedResponse)}
    values = {name: value for name, value in payload.items() if name in field_names}
    return CachedResponse(**{**values, "attempt_latencies_seconds": tuple(values.get("attempt_latencies_seconds", ()))})
