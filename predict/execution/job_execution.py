"""A job with what answers it: the folder of what is done, and the steps that all engines share."""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from deploy.answers.task import Task
from insource.config.errors import RecipeError, StageError
from insource.system import atomic_files, progress_bar
from insource.tracking import run
from predict.execution.pipeline import Pipeline, PredictRow
from predict.execution.state import PredictionState, RowCounts
from predict.job import Job, info_path
from predict.rows import column_types, inputs, output
from predict.rows.output import Layout

# Raised when the same rows would be predicted into something else.
SCHEMA_VERSION = 1


class JobExecution:
    """A job with what answers: its folder, and the steps that all engines share."""

    def __init__(self, job: Job, asked: Task, who: Sequence[Any], answers: str) -> None:
        """`who` identifies what answers, `answers` names it for people."""
        self.job, self.task, self.who, self.answers = job, asked, who, answers
        self.labels = job.labels(asked)
        self.layout = self._layout()
        self.digest = atomic_files.digest(self._depends_on())
        folder = job.here.folder.parent / ".predict" / self.digest
        self.state, self.started = PredictionState(folder, self.layout), run.utc_timestamp()

    def held(self) -> AbstractContextManager[None]:
        """Returns the lock on the prediction's folder, as a context. Raises RecipeError where the output is a file that
        this stage has not written as it is."""
        path = self.job.output
        if path.exists() and not self.job.about and not self.job.force and not self.state.has_written(path):
            raise RecipeError(f"OUTPUT: {path} is there already, and is not as predict wrote it; FORCE=1 replaces it")
        return self.state.locked(self.job.fresh)

    def is_written(self) -> bool:
        """Returns whether the output is there, by the same model, with the same rows and columns."""
        anew = self.job.fresh or self.state.is_fresh()
        return not anew and self.job.about.get("digest") == self.digest

    def is_asked(self) -> bool:
        """Returns whether nothing is left to be asked; says where the threshold and the engine are from."""
        if self.is_written():
            return True
        routing, done = self.task.routing, self.state.counts().rows
        log_step("engine", f"{self.answers}; up to {self.job.recipe.compare.concurrency} requests at once")
        if routing.threshold is None:
            log_step("threshold", f"none, `abstain` is left empty: {routing.why_none}")
        else:
            log_step("threshold", f"abstains below a confidence of {routing.threshold:.4f} (routing.json)")
        if self.layout.names["answer"] != "answer":
            log_step("columns", f"INPUT has one of our names: ours begin with {output.COLUMN_PREFIX}")
        if done:
            log_step("resumed", f"{done:,} of {self.job.survey.rows:,} rows are on disk")
        return done == self.job.survey.rows

    async def ask(self, ask: PredictRow) -> None:
        """Asks all rows that have no answer on disk, with progress."""
        job, done = self.job, self.state.counts().rows
        began, first = time.monotonic(), done
        with progress_bar.show_progress("predicted", job.survey.rows, done) as advance:

            def on_rows(rows: int) -> None:
                nonlocal done
                done += rows
                advance(done, f"{(done - first) / max(time.monotonic() - began, 1e-3):,.1f} rows/s")

            found = inputs.iter_segments(job.files, job.source, self.task, job.recipe, self.state.is_done)
            await Pipeline(ask, self.state, job.recipe.compare.concurrency, on_rows).run(found)

    def conclude(self) -> None:
        """Writes the output and what is said about it, whole, and removes what it was made of."""
        if self.is_written():
            log_step("unchanged", f"{self.job.output} has these rows (FRESH=1 asks anew)")
            self.state.remove()
            return
        counts, survey = self.state.counts(), self.job.survey
        if counts.rows != survey.rows or not inputs.is_unchanged(survey, self.job.files, self.job.source):
            self.state.remove()
            raise StageError(
                "INPUT was changed while it was read, so that answers may stand beside other rows; call again"
            )
        path = self.job.output
        output.join_parts(
            self.state.parts(), self.layout, path, self.digest, lambda whole: self.state.will_write(path, whole)
        )
        atomic_files.write_json(info_path(self.job.output), self._summary(counts))
        self.state.remove()
        refused, routed = counts.refused.total(), self.task.routing.threshold is not None
        abstains = f", abstains in {counts.abstained:,} of them" if routed else ""
        log_step("answered", f"{counts.rows - refused:,} of {counts.rows:,} rows{abstains}")
        if refused:
            reasons = ", ".join(f"{code} {rows:,}" for code, rows in counts.refused.most_common())
            log_step("refused", f"{refused:,} rows: {reasons}")

    def _layout(self) -> Layout:
        material = self.task.material
        answer = column_types.answer_type(material.module, material.spec)
        kind = output.output_format(self.job.output)
        return output.make_layout(kind, self.job.survey.types, answer, self.labels)

    def _depends_on(self) -> list[Any]:
        job, routing = self.job, self.task.routing
        recipe = job.recipe.model_dump(mode="json", include={"privacy": {"redact"}, "data": {"columns"}})
        scale = routing.scale.json() if routing.scale else None
        options = job.source.model_dump(mode="json", exclude={"paths"})
        asked = [self.layout.kind, self.labels, job.recipe.serve.structured_output, routing.threshold, scale]
        return [SCHEMA_VERSION, list(self.who), job.survey.files, recipe, options, asked]

    def _summary(self, counts: RowCounts) -> dict[str, Any]:
        job, routing = self.job, self.task.routing
        return {
            "schema_version": SCHEMA_VERSION,
            "digest": self.digest,
            "output_sha256": atomic_files.sha256(job.output),
            "recipe": job.name,
            "run_id": job.here.id,
            "answered_by": self.answers,
            "engine": list(self.who),
            "input": job.survey.files,
            "columns": dict(self.layout.names),
            "threshold": routing.threshold,
            "why_no_threshold": None if routing.threshold is not None else routing.why_none,
            **counts.json(),
            "started": self.started,
            "ended": run.utc_timestamp(),
        }


def log_step(what: str, words: str) -> None:
    """Prints a line of progress."""
    print(f"{what:<9} {words}", file=sys.stderr, flush=True)
