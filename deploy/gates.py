"""Checks that a run must pass before its adapter is deployed."""

from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking.manifest import StageRecord
from insource.tracking.run import Run


def find_failures(run: Run, recipe: Recipe) -> list[str]:
    """Return the failed checks of a run, each with its fix; an empty list if its adapter may be deployed."""
    rerun_hint = f"`make parity RECIPE={run.recipe_name} RUN={run.id}`"
    if run.stage("train").state != "done" or not (run.folder / "adapter" / atomic_files.CHECKSUMS).is_file():
        return [f"run {run.id} has not finished training; `make train RECIPE={run.recipe_name}` resumes it"]
    if reason := recipe.lora.unservable_reason:
        return [f"lora.{reason}, and adapters are deployed unmerged; serve the merged model by `make serve`"]
    parity, failures = run.stage("parity"), []
    if parity.state is None:
        failures.append(f"parity was not measured, so it is unknown whether vLLM answers as trained; {rerun_hint}")
    elif not run.used_current_adapter("parity"):
        failures.append(f"parity was measured on another adapter than this one; {rerun_hint}")
    elif failure := _adapter_failure(parity):
        failures.append(f"parity of the adapter failed: {failure}")
    compare = run.stage("compare")
    if compare.state and not compare.metrics.get("passed", False):
        failures.append(f"the comparison's check failed: {compare.exit_reason}")
    return failures


def _adapter_failure(parity: StageRecord) -> str | None:
    """Return why the adapter failed parity, whichever variant the recipe serves.

    Older records contain only the result of the served variant.
    """
    metrics = parity.metrics
    if "form_failures" in metrics:
        return "; ".join(metrics["form_failures"].get("adapter", ["it was not measured"])) or None
    return None if metrics.get("passed") else str(parity.exit_reason)
