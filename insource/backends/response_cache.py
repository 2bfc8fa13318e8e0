"""Cache of responses on disk: one JSON line each, appended and flushed before it counts.

{"key": "5d41...", "id": "T000017", "repeat": 0, "request_sha256": "9f2c...", "output": "delivery_delay",
 "model_id": "gpt-6-luna-2026-09-12", "finish_reason": "stop", "log_probability": null, "input_tokens": 231,
 "output_tokens": 5, "reasoning_tokens": 0, "cached_tokens": 208, "latency_seconds": 0.61,
 "attempt_latencies_seconds": [0.61], "error": null, "final": true, "usd": 0.000013, "unsure_usd": 0.0,
 "batch": false, "asked": "2026-11-21T10:00:00Z", "refused": false, "probabilities": null,
 "field_log_probability": null}

The key is the hash of model identity, request body and repeat. Of several lines with one key the last counts. A process
that is killed during a write leaves a torn last line, which is cut off when the cache is opened again.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO

from insource.backends import attempt_log
from insource.backends.types import Completion, Usage
from insource.config.errors import StageError
from insource.system import append_only

# Fields whose key in the file has another name.
_FILE_KEYS = {"possibly_charged_usd": "unsure_usd", "requested_at": "asked"}


@dataclass(frozen=True, kw_only=True)
class CachedResponse:
    """The outcome of a row request: a line of the cache."""

    key: str
    id: str
    repeat: int
    request_sha256: str
    output: str | None
    """None without an answer."""
    model_id: str | None
    finish_reason: str | None
    log_probability: float | None
    input_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    latency_seconds: float | None
    """Latency of the original request; None in a batch."""
    attempt_latencies_seconds: tuple[float, ...]
    error: str | None
    final: bool
    """False: a transient error, for which another invocation may retry."""
    usd: float | None
    """Cost of the answer by its tokens; None without an answer or a known price."""
    possibly_charged_usd: float = 0.0
    """Upper bound of attempts without a response that may have been charged."""
    batch: bool
    requested_at: str
    refused: bool = False
    """Whether it was refused because of its configuration: no answer, and not a wrong one either."""
    probabilities: Mapping[str, float] | None = None
    """Of every label, if the provider returns them."""
    field_log_probability: float | None = None
    reused: bool = False
    """Whether this invocation did not send it: an earlier one did, or another row has the same request."""

    @property
    def total_usd(self) -> float:
        """The cost of the answer, and of attempts that may have been charged."""
        return (self.usd or 0.0) + self.possibly_charged_usd


class ResponseCache:
    """An open cache: its last response of each key, and the file to append to."""

    def __init__(self, path: Path, file: BinaryIO, responses: dict[str, CachedResponse]) -> None:
        self.path = path
        self.responses: Mapping[str, CachedResponse] = responses
        self._file = file
        self._responses = responses

    def append(self, responses: Sequence[CachedResponse]) -> None:
        """Append responses and flush them to disk. Raise StageError if they cannot be written."""
        lines = "".join(to_json_line(response) for response in responses)
        try:
            append_only.append_bytes(self._file, lines.encode("utf-8", "surrogatepass"))
        except OSError as error:
            raise StageError(
                f"{self.path}: answers cannot be written: {error.strerror or error}", code="INS-X002"
            ) from None
        self._responses.update((response.key, response) for response in responses)


@contextmanager
def open_cache(path: Path) -> Iterator[ResponseCache]:
    """Open a cache for exclusive writing; the lock ends with the process, however that ends.

    Raise StageError if another process holds it, or if a line before the last is malformed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: closing a buffered file writes its buffer again, and on a full disk fails again.
    with path.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{path} is in use by another process; wait for it, or end it", code="INS-X003") from None
        file.seek(0)
        data = file.read()
        responses, complete_bytes = _parse_lines(data, path)
        if complete_bytes < len(data):
            append_only.cut_torn_line(file, path, len(data), complete_bytes)
        elif complete_bytes > len(data):
            # The last line is complete except for its newline.
            file.write(b"\n")
        yield ResponseCache(path, file, {response.key: response for response in responses})


def read_responses(path: Path) -> list[CachedResponse]:
    """Return the lines of a cache that may be open elsewhere, in order; none if there is no file.

    Possible charges of attempts without a known response are added to `possibly_charged_usd`. If the key has no line,
    that is a line without an answer.
    """
    responses = _parse_lines(path.read_bytes(), path)[0] if path.is_file() else []
    last_index = {response.key: index for index, response in enumerate(responses)}
    for key, usd in attempt_log.read_unsettled_usd(path).items():
        if (index := last_index.get(key)) is not None:
            responses[index] = replace(
                responses[index], possibly_charged_usd=responses[index].possibly_charged_usd + usd
            )
        else:
            responses.append(_make_unanswered_response(key, usd))
    return responses


def batch_file_path(path: Path) -> Path:
    """Return the file that records the batch in flight of a cache (insource/backends/batch_collection.py)."""
    return path.with_suffix(".batch.json")


def compute_cache_key(identity: object, body: Mapping[str, object], repeat: int) -> str:
    """Return the cache key: 64 hex digits, also the custom id in a batch.

    `identity` is any JSON value that identifies the model.
    """
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
    possibly_charged_usd: float = 0.0,
    batch: bool = False,
    refused: bool = False,
    latency_seconds: float | None = None,
    attempt_latencies_seconds: tuple[float, ...] = (),
) -> CachedResponse:
    """Return the cache line for the outcome of a row request."""
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
        possibly_charged_usd=possibly_charged_usd,
        batch=batch,
        requested_at=requested_at,
        refused=refused,
        probabilities=completion.probabilities if completion else None,
        field_log_probability=completion.field_log_probability if completion else None,
    )


def to_json_line(response: CachedResponse) -> str:
    """Return a response as its JSON line."""
    payload = {_FILE_KEYS.get(name, name): value for name, value in asdict(response).items() if name != "reused"}
    return json.dumps(payload, ensure_ascii=False) + "\n"


def _make_unanswered_response(key: str, usd: float) -> CachedResponse:
    """Return the line for a request that was sent and has no known response."""
    error = "the process ended before it wrote an answer"
    return make_cached_response(
        key, key, 0, "", None, requested_at="", error=error, final=False, possibly_charged_usd=usd
    )


def _parse_lines(data: bytes, path: Path) -> tuple[list[CachedResponse], int]:
    """Return the lines, and their size in bytes with the end of the last one."""
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
                f"{path}:{number}: this line is not a recorded answer: {line[:60]!r} ({error}). A killed process can "
                "damage only the last line, so another program changed the file. Remove the line; the next call "
                "requests its answer again",
                code="INS-A010",
            ) from None
        complete_bytes += len(line) + 1
    return responses, complete_bytes


def _parse_response(payload: object) -> CachedResponse:
    """Return the response of a line. Raise TypeError if it is malformed."""
    if not isinstance(payload, dict) or not {"key", "id", "repeat", "final"} <= payload.keys():
        raise TypeError("it lacks what an answer has")
    names = {_FILE_KEYS.get(field.name, field.name): field.name for field in fields(CachedResponse)}
    values = {names[key]: value for key, value in payload.items() if key in names}
    return CachedResponse(**{**values, "attempt_latencies_seconds": tuple(values.get("attempt_latencies_seconds", ()))})
