"""A call of `make predict`: which rows, by which model, into which file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.readers.source_row import SourceFile
from deploy import registry
from deploy.answers import task
from deploy.answers.task import Task
from deploy.gateway.paths import decisions
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
    """A call: which rows, by which model, into which file."""

    here: Run
    name: str
    recipe: Recipe
    """Of the run; its source, columns, serve, compare and route as the recipe says now."""
    output: Path
    engine: str
    base_url: str | None
    probabilities: bool
    fresh: bool
    force: bool
    about: dict[str, Any]
    """What is said about the output that is there; {} where none is."""
    source: Source
    files: list[SourceFile]
    survey: InputSurvey

    def served(self, variant: str) -> ServedModel:
        """Returns what answers in a form of the run."""
        return ServedModel(self.name, self.here, self.recipe, variant)

    def task(self, variant: str, routing: Routing | None = None) -> Task:
        """Returns the task of the run, with scale and threshold of a form. Raises RecipeError where the run does not
        state it."""
        version = registry.compute_version(self.here.folder / "adapter")
        run_task = task.build_task(self.served("adapter"), version, self.recipe, routing or Routing())
        if run_task is None:
            raise RecipeError(f"run {self.here.id} was trained by an earlier version, and its prompt.json has no task")
        if routing is None:
            return self.task(variant, threshold.load_run_routing(self.here, run_task.material, variant, self.recipe))
        return run_task

    def labels(self, task: Task) -> list[str]:
        """Returns the labels whose probabilities are asked for. Raises RecipeError where there are none to ask for."""
        if not self.probabilities:
            return []
        if task.recipe.task.variant != "classification":
            raise RecipeError(f"PROBABILITIES: {self.name} chooses no label: it is of kind {task.recipe.task.variant}")
        labels = list(task.material.spec.labels)
        if self.engine == "gateway" and len(labels) > decisions.CHOICES_RANGE[1]:
            raise RecipeError(
                f"PROBABILITIES: a gateway gives those of {decisions.CHOICES_RANGE[1]} labels, and there are "
                f"{len(labels)}; "
                "leave ENGINE and BASE_URL out"
            )
        return labels


def merge_recipes(trained: Recipe, current: Recipe) -> Recipe:
    """Returns the recipe of a run with what the recipe says now of reading rows, serving and routing. What the run
    redacts is redacted, and data may leave where both say so."""
    data = trained.data.model_copy(update={"source": current.data.source, "columns": current.data.columns})
    data_may_leave = trained.privacy.data_may_leave and current.privacy.data_may_leave
    privacy = current.privacy.model_copy(update={"data_may_leave": data_may_leave, "redact": trained.privacy.redact})
    sections = {name: getattr(current, name) for name in task.GATEWAY_SECTIONS}
    return trained.model_copy(update={**sections, "data": data, "privacy": privacy})


def info_path(path: Path) -> Path:
    """Returns the file that says how an output was made."""
    return path.with_name(f"{path.name}.about.json")


def read_output_info(path: Path) -> dict[str, Any]:
    """Returns how an output was made; {} where it is not there, or is not as it was written."""
    if not path.is_file() or not info_path(path).is_file():
        return {}
    info: dict[str, Any] = atomic_files.read_json(info_path(path))
    return info if info.get("output_sha256") == atomic_files.sha256(path) else {}
