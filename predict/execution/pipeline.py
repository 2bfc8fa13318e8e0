"""Rows to predictions: read ahead, queried with bounded concurrency, journaled before they count, written by segments.

    reader thread -> MAX_OPEN_SEGMENTS segments -> queue of requests -> workers -> writer: one flush for all arrivals
                                                                            -> part of the output, once complete

A segment's requests are sorted by text, so that inputs with a common beginning meet in the engine's prefix cache. The
task's own prompt precedes all of them. Equal inputs are queried once. The next segment starts while the last answers of
the previous one are in flight. Memory holds MAX_OPEN_SEGMENTS segments, independent of the number of rows.
"""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

from insource.config.errors import StageError
from predict.execution.journal import Journal
from predict.execution.state import PredictionState
from predict.prediction import NO_ANSWER_CODE, Prediction
from predict.rows import inputs
from predict.rows.inputs import InputRow, Segment

MAX_OPEN_SEGMENTS = 2
MAX_CONSECUTIVE_FAILURES = 16
"""This many consecutive rows without an answer are an outage, even if the server reports that it is healthy."""
PredictRow = Callable[[InputRow], Awaitable[Prediction]]
KeyedPredictions = list[tuple[str, Prediction]]
"""Predictions with the keys of their rows."""


class OpenSegment:
    """A segment in progress, and its journal."""

    def __init__(self, segment: Segment, path: Path) -> None:
        self.segment, self.journal = segment, Journal(path)
        self.keys = [_input_key(row) for row in segment.rows]
        cached = self.journal.predictions
        self.failed_before = {
            key for key, prediction in cached.items() if (prediction.refused or "").startswith(NO_ANSWER_CODE)
        }
        """Keys of rows that got no answer in an earlier call: queried once more, then refused."""
        self.failed: KeyedPredictions = []
        """Predictions that failed in this call for the first time."""
        self.predictions = {key: prediction for key, prediction in cached.items() if key not in self.failed_before}
        rows: dict[str, list[InputRow]] = {}
        for key, row in zip(self.keys, segment.rows, strict=True):
            if row.task_input is not None and key not in self.predictions:
                rows.setdefault(key, []).append(row)
        self.missing = rows
        """{key: rows} without an answer; equal inputs have one key."""

    @property
    def pending_rows(self) -> list[tuple[str, InputRow]]:
        """Return one row of each missing key, sorted by text."""
        return sorted(((key, rows[0]) for key, rows in self.missing.items()), key=lambda item: item[1].task_input.text)  # type: ignore[union-attr]

    @property
    def n_settled(self) -> int:
        """Return the number of rows that need no query: answered before, or refused."""
        return len(self.segment.rows) - sum(map(len, self.missing.values()))

    def is_final(self, key: str, prediction: Prediction) -> bool:
        """Return whether a prediction belongs in the output: an answer, a refusal, or a second failure."""
        return prediction.final or key in self.failed_before

    def record(self, predictions: KeyedPredictions) -> None:
        """Append the final ones of these predictions to the journal. Raise StageError if that fails."""
        if final := [entry for entry in predictions if self.is_final(*entry)]:
            self.journal.append(final)

    def close_unfinished(self) -> None:
        """Record the rows without an answer and close the journal; the next call queries them again."""
        self.journal.append(self.failed)
        self.journal.close()

    def finish(self, state: PredictionState) -> None:
        """Write the segment's part of the output."""
        predicted_rows = [
            (row.columns, Prediction(refused=row.refusal) if row.task_input is None else self.predictions[key])
            for key, row in zip(self.keys, self.segment.rows, strict=True)
        ]
        self.journal.close()
        state.write_segment(self.segment.number, predicted_rows)


ArrivedPrediction = tuple[OpenSegment, str, Prediction]


class Pipeline:
    """One pass over the rows."""

    def __init__(
        self, predict_row: PredictRow, state: PredictionState, concurrency: int, on_rows: Callable[[int], None]
    ) -> None:
        """Set up the pass; `on_rows` receives the number of rows that were just settled."""
        self._predict_row, self._state, self._concurrency, self._on_rows = predict_row, state, concurrency, on_rows
        self._requests: asyncio.Queue[tuple[OpenSegment, str, InputRow] | None] = asyncio.Queue(2 * concurrency)
        # Bounded: answers that wait for the disk are requested again after a kill -9.
        self._answers: asyncio.Queue[ArrivedPrediction | None] = asyncio.Queue(4 * concurrency)
        # Many workers take more rows at once than a segment has.
        self._segment_slots = asyncio.Semaphore(
            max(MAX_OPEN_SEGMENTS, 1 + math.ceil(concurrency / inputs.SEGMENT_ROWS))
        )
        self._open_segments: set[OpenSegment] = set()
        self._n_consecutive_failures, self._n_answered, self._n_failed = 0, 0, 0

    async def run(self, segments: Iterator[Segment | None]) -> None:
        """Query all rows without an answer on disk.

        Raise the first exception of reading, querying and writing, and StageError if rows got no answer.
        """
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self._predict_rows()) for _ in range(self._concurrency)]
                group.create_task(self._write(group))
                await self._read(segments, group)
                for _ in workers:
                    await self._requests.put(None)
                await asyncio.gather(*workers)
                await self._answers.put(None)
        except ExceptionGroup as errors:
            raise first_error(errors) from None
        finally:
            for open_segment in self._open_segments:
                open_segment.journal.close()
        if self._n_failed:
            raise StageError(
                f"{self._n_failed:,} rows got no answer after all retries, so OUTPUT was not written; finished "
                "answers are kept. Run the same command: it requests only these rows, and refuses those that fail "
                "again",
                code="INS-P006",
            )

    async def _read(self, segments: Iterator[Segment | None], group: asyncio.TaskGroup) -> None:
        while True:
            await self._segment_slots.acquire()
            # None: a segment that is done; (): the end.
            segment = await asyncio.to_thread(next, segments, ())
            if isinstance(segment, tuple):
                return
            if segment is None:
                self._segment_slots.release()
                continue
            path = self._state.journal_path(segment.number)
            open_segment = await asyncio.to_thread(OpenSegment, segment, path)
            self._open_segments.add(open_segment)
            self._on_rows(open_segment.n_settled)
            if not open_segment.missing:
                group.create_task(self._finish(open_segment))
            for key, row in open_segment.pending_rows:
                await self._requests.put((open_segment, key, row))

    async def _predict_rows(self) -> None:
        while (request := await self._requests.get()) is not None:
            open_segment, key, row = request
            await self._answers.put((open_segment, key, await self._predict_row(row)))

    async def _write(self, group: asyncio.TaskGroup) -> None:
        """Journal the answers that have arrived, in a thread.

        A flush to disk takes as long as many answers, and must not block the requests. If the pass fails, the answers
        that arrived before are journaled too.
        """
        is_last, pending = False, dict[OpenSegment, KeyedPredictions]()
        try:
            while not is_last:
                batch = [await self._answers.get(), *self._take_answers()]
                is_last = None in batch
                pending = _group_by_segment(batch)
                for open_segment in [*pending]:
                    predictions = pending.pop(open_segment)
                    await _run_to_completion(open_segment.record, predictions)
                    self._settle(open_segment, predictions, group)
        finally:
            for open_segment, predictions in [*pending.items(), *_group_by_segment(self._take_answers()).items()]:
                open_segment.record(predictions)

    def _take_answers(self) -> list[ArrivedPrediction | None]:
        """Return all answers that have arrived, without waiting."""
        return [self._answers.get_nowait() for _ in range(self._answers.qsize())]

    def _settle(self, open_segment: OpenSegment, predictions: KeyedPredictions, group: asyncio.TaskGroup) -> None:
        open_segment.predictions.update(predictions)
        for key, prediction in predictions:
            n_rows = len(open_segment.missing.pop(key))
            self._on_rows(n_rows)
            if prediction.final:
                self._n_consecutive_failures, self._n_answered = 0, self._n_answered + 1
            elif key not in open_segment.failed_before:
                self._n_consecutive_failures, self._n_failed = self._n_consecutive_failures + 1, self._n_failed + n_rows
                open_segment.failed.append((key, prediction))
                self._check_outage(prediction)
        if not open_segment.missing:
            group.create_task(self._finish(open_segment))

    def _check_outage(self, prediction: Prediction) -> None:
        """Raise StageError if too many consecutive rows, `prediction` the last, got no answer."""
        if self._n_consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            raise StageError(
                f"{self._n_consecutive_failures} consecutive rows got no answer, although the server reports that "
                f"it is healthy ({prediction.refused}); finished answers are kept: run the same command to resume",
                code="INS-P006",
            )

    async def _finish(self, open_segment: OpenSegment) -> None:
        if not open_segment.failed:
            await asyncio.to_thread(open_segment.finish, self._state)
        elif self._n_answered:
            await asyncio.to_thread(open_segment.close_unfinished)
        else:  # No row got an answer: the engine may be the cause, so no failure is recorded.
            open_segment.journal.close()
        self._open_segments.discard(open_segment)
        self._segment_slots.release()


def _input_key(row: InputRow) -> str:
    """Return the key of a row's answer: a hash of the input as the file contains it."""
    return hashlib.sha256(row.raw_input.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _group_by_segment(arrivals: Iterable[ArrivedPrediction | None]) -> dict[OpenSegment, KeyedPredictions]:
    groups: dict[OpenSegment, KeyedPredictions] = {}
    for arrival in arrivals:
        if arrival is not None:
            open_segment, key, prediction = arrival
            groups.setdefault(open_segment, []).append((key, prediction))
    return groups


async def _run_to_completion(write: Callable[[KeyedPredictions], None], predictions: KeyedPredictions) -> None:
    """Write in a thread, and wait for its end even if the task is cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(write, predictions))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception of a group, also of a group in a group."""
    error = errors.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
