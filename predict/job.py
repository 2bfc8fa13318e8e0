"""A call of `make predict`: its rows, its model and its output file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.readers.source_row import SourceFile
from deploy import registry
from deploy.answers import task
from deploy.answers.task import Task
from deploy.gateway.paths.label_questions import CHOICES_RANGE
from deploy.routing import Routing
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.source import Source
from insource.system import atomic_files
from insource.tracking.run import Run
from predict import threshold
from predict.rows.inputs import InputSurvey
from serve.vllm.launch_plan import ServedModel


@dataclass(frozen=True)
class Job:
    """One call: its rows, model, engine and output."""

    run: Run
    name: str
    recipe: Recipe
    """The run's recipe, with source, columns, serve, compare and route of the current recipe."""
    output: Path
    engine: str
    base_url: str | None
    workers: int | None
    """Workers of the engine ray; None: as many as its cluster has GPUs, or nodes without GPUs."""
    probabilities: bool
    fresh: bool
    force: bool
    output_info: dict[str, object]
    """How the existing output was made (`read_output_info`); {} if there is none."""
    source: Source
    files: list[SourceFile]
    survey: InputSurvey

    def served_model(self, variant: str) -> ServedModel:
        """Return the served model of a variant of the run: adapter, merged or quantized/<scheme>."""
        return ServedModel(self.name, self.run, self.recipe, variant)

    def task(self, variant: str, routing: Routing | None = None) -> Task:
        """Return the run's task with the scale and threshold of a variant; `routing` replaces them.

        Raise RecipeError if prompt.json of the run contains no task.
        """
        version = registry.compute_version(self.run.folder / "adapter")
        run_task = task.build_task(self.served_model("adapter"), version, self.recipe, routing or Routing())
        if run_task is None:
            raise RecipeError(
                f"run {self.run.id} was trained by an earlier version, and its prompt.json has no task", code="INS-R014"
            )
        if routing is None:
            return self.task(variant, threshold.load_run_routing(self.run, run_task.dataset, variant, self.recipe))
        return run_task

    def requested_labels(self, task: Task) -> list[str]:
        """Return the labels whose probabilities are requested; [] without PROBABILITIES.

        Raise RecipeError if the task has no labels, or more labels than a gateway returns.
        """
        if not self.probabilities:
            return []
        if task.recipe.task.task_name != "classification":
            raise RecipeError(
                f"PROBABILITIES: {self.name} has no labels to choose from: its kind is {task.recipe.task.task_name}",
                code="INS-P004",
            )
        labels = list(task.dataset.spec.labels)
        if self.engine == "gateway" and len(labels) > CHOICES_RANGE[1]:
            raise RecipeError(
                f"PROBABILITIES: a gateway supports at most {CHOICES_RANGE[1]} labels, and the task has "
                f"{len(labels)}; leave ENGINE and BASE_URL out",
                code="INS-P004",
            )
        return labels


def merge_recipes(trained: Recipe, current: Recipe) -> Recipe:
    """Return a run's recipe with the current recipe's settings for reading rows, serving and routing.

    Redaction is that of the run. Data may leave only if both recipes allow it.
    """
    data = trained.data.model_copy(update={"source": current.data.source, "columns": current.data.columns})
    data_may_leave = trained.privacy.data_may_leave and current.privacy.data_may_leave
    privacy = current.privacy.model_copy(update={"data_may_leave": data_may_leave, "redact": trained.privacy.redact})
    sections = {name: getattr(current, name) for name in task.GATEWAY_SECTIONS}
    return trained.model_copy(update={**sections, "data": data, "privacy": privacy})


def info_path(path: Path) -> Path:
    """Return the path of the file that describes how an output was made."""
    return path.with_name(f"{path.name}.about.json")


def read_output_info(path: Path) -> dict[str, Any]:
    """Return how an output was made; {} if the output is missing or was changed since."""
    if not path.is_file() or not info_path(path).is_file():
        return {}
    info: dict[str, Any] = atomic_files.read_json(info_path(path))
    return info if info.get("output_sha256") == atomic_files.sha256(path) else {}
