"""A job with its engine: the folder of its progress, and the steps that all engines share."""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from deploy.answers.task import Task
from insource.config.errors import RecipeError, StageError
from insource.system import atomic_files, progress_bar
from insource.system.timestamps import utc_timestamp
from predict.execution.pipeline import Pipeline, PredictRow
from predict.execution.state import PredictionState, RowCounts
from predict.job import Job, info_path
from predict.rows import column_types, inputs, output
from predict.rows.output import Layout

# Increased when the same rows would give another output.
SCHEMA_VERSION = 1


class JobExecution:
    """A job with its engine, its layout and the folder of its progress."""

    def __init__(self, job: Job, task: Task, engine_identity: Sequence[Any], engine_name: str) -> None:
        """Set up the execution; `engine_identity` goes into the digest, `engine_name` into messages."""
        self.job, self.task, self.engine_identity, self.engine_name = job, task, engine_identity, engine_name
        self.labels = job.requested_labels(task)
        self.layout = self._layout()
        self.digest = atomic_files.digest(self._digest_inputs())
        folder = job.run.folder.parent / ".predict" / self.digest
        self.state, self.started_at = PredictionState(folder, self.layout), utc_timestamp()

    def lock(self) -> AbstractContextManager[None]:
        """Return the lock on the prediction's folder, as a context.

        Raise RecipeError if the output exists and is not as this stage wrote it.
        """
        path = self.job.output
        if path.exists() and not self.job.output_info and not self.job.force and not self.state.is_pending_output(path):
            raise RecipeError(
                f"OUTPUT: {path} exists already and was not written by predict; FORCE=1 replaces it", code="INS-R015"
            )
        return self.state.lock(self.job.fresh)

    def is_written(self) -> bool:
        """Return whether the output exists, by the same model, with the same rows and columns."""
        must_rerun = self.job.fresh or self.state.has_unfinished_fresh_call()
        return not must_rerun and self.job.output_info.get("digest") == self.digest

    def is_complete(self) -> bool:
        """Return whether no row is left to query."""
        return self.is_written() or self.state.counts().rows == self.job.survey.rows

    def log_start(self) -> None:
        """Log the engine, the source of the threshold, and how many rows are on disk; nothing if the output exists."""
        if self.is_written():
            return
        routing, n_done = self.task.routing, self.state.counts().rows
        log_step("engine", f"{self.engine_name}; up to {self.job.recipe.compare.concurrency} requests at once")
        if routing.threshold is None:
            log_step("threshold", f"none, `abstain` is left empty: {routing.no_threshold_reason}")
        else:
            log_step("threshold", f"abstains below a confidence of {routing.threshold:.4f} (routing.json)")
        if self.layout.names["answer"] != "answer":
            log_step("columns", f"INPUT has one of our names: ours begin with {output.COLUMN_PREFIX}")
        if n_done:
            log_step("resumed", f"{n_done:,} of {self.job.survey.rows:,} rows are on disk")

    async def predict_all(self, predict_row: PredictRow, concurrency: int) -> None:
        """Query all rows without an answer on disk, with progress. `concurrency`: rows in flight."""
        job, n_done = self.job, self.state.counts().rows
        started_at, n_resumed = time.monotonic(), n_done
        with progress_bar.show_progress("predicted", job.survey.rows, n_done) as advance:

            def on_rows(rows: int) -> None:
                nonlocal n_done
                n_done += rows
                advance(n_done, f"{(n_done - n_resumed) / max(time.monotonic() - started_at, 1e-3):,.1f} rows/s")

            segments = inputs.iter_segments(job.files, job.source, self.task, job.recipe, self.state.is_done)
            await Pipeline(predict_row, self.state, concurrency, on_rows).run(segments)

    def finish(self) -> None:
        """Write the output and its description, each atomically, and remove the progress.

        Raise StageError if INPUT changed since the survey.
        """
        if self.is_written():
            log_step("unchanged", f"{self.job.output} has these rows (FRESH=1 requests them again)")
            self.state.remove()
            return
        counts, survey = self.state.counts(), self.job.survey
        if counts.rows != survey.rows or not inputs.is_unchanged(survey, self.job.files, self.job.source):
            self.state.remove()
            raise StageError(
                "INPUT was changed while it was read, so answers may belong to other rows; run the same command again",
                code="INS-P005",
            )
        path = self.job.output

        def before_replace(temp_path: Path) -> None:
            self.state.record_pending_output(path, temp_path)

        output.join_parts(self.state.parts(), self.layout, path, self.digest, before_replace)
        atomic_files.write_json(info_path(path), self._summary(counts))
        self.state.remove()
        refused, has_threshold = counts.refused.total(), self.task.routing.threshold is not None
        abstain_note = f", abstains in {counts.abstained:,} of them" if has_threshold else ""
        log_step("answered", f"{counts.rows - refused:,} of {counts.rows:,} rows{abstain_note}")
        if refused:
            reasons = ", ".join(f"{code} {rows:,}" for code, rows in counts.refused.most_common())
            log_step("refused", f"{refused:,} rows: {reasons}")

    def _layout(self) -> Layout:
        dataset = self.task.dataset
        answer_type = column_types.answer_type(dataset.task, dataset.spec)
        file_format = output.output_format(self.job.output)
        return output.make_layout(file_format, self.job.survey.types, answer_type, self.labels)

    def _digest_inputs(self) -> list[Any]:
        job, routing = self.job, self.task.routing
        recipe = job.recipe.model_dump(mode="json", include={"privacy": {"redact"}, "data": {"columns"}})
        scale = routing.scale.json() if routing.scale else None
        options = job.source.model_dump(mode="json", exclude={"paths"})
        settings = [self.layout.format, self.labels, job.recipe.serve.structured_output, routing.threshold, scale]
        return [SCHEMA_VERSION, list(self.engine_identity), job.survey.files, recipe, options, settings]

    def _summary(self, counts: RowCounts) -> dict[str, Any]:
        job, routing = self.job, self.task.routing
        return {
            "schema_version": SCHEMA_VERSION,
            "digest": self.digest,
            "output_sha256": atomic_files.sha256(job.output),
            "recipe": job.name,
            "run_id": job.run.id,
            "answered_by": self.engine_name,
            "engine": list(self.engine_identity),
            "input": job.survey.files,
            "columns": dict(self.layout.names),
            "threshold": routing.threshold,
            "why_no_threshold": None if routing.threshold is not None else routing.no_threshold_reason,
            **counts.to_json(),
            "started": self.started_at,
            "ended": utc_timestamp(),
        }


def log_step(label: str, message: str) -> None:
    """Print a line of progress to stderr."""
    print(f"{label:<9} {message}", file=sys.stderr, flush=True)
