"""Turn deployed versions on disk into the plan of one vLLM process, and report why one cannot be served."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ruamel.yaml.error import YAMLError

from deploy import registry
from insource.config.errors import RecipeError, join_errors
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run
from serve import artifact_checks
from serve.vllm import launch_plan, server_process
from serve.vllm.launch_plan import ServedModel

MIN_LORA_RANK = 64
"""Later versions may have larger ranks than the first one. A rank above this requires a restart of the gateway."""


def iter_candidates(registry_dir: Path, rejected: Collection[str] = ()) -> Iterator[str]:
    """Yield the versions that may answer: the current one, then earlier ones, without the rejected ones."""
    version, seen = registry.current_version(registry_dir), set[str]()
    while version is not None and version not in seen:
        seen.add(version)
        if version not in rejected:
            yield version
        version = registry.previous_version(registry_dir, version)


def plan_backend(registry_dirs: Sequence[Path], serve: Serve) -> server_process.LaunchPlan:
    """Return the plan of the vLLM behind the gateway.

    If the current version of a model cannot be served, an earlier one is used, and the gateway logs that. Raise
    RecipeError if no version of a model can be served.
    """
    plan = launch_plan.plan_launch([_find_servable(registry_dir, serve) for registry_dir in registry_dirs], serve)
    rank = max(MIN_LORA_RANK, plan.max_lora_rank)
    # During a change the old and the new version of a model are both loaded.
    return replace(plan, adapters={}, max_lora_rank=rank, runtime_adapters=2 * len(registry_dirs))


def require_deployed(registry_dirs: Sequence[Path]) -> None:
    """Raise RecipeError if a model has no deployed version."""
    for registry_dir in registry_dirs:
        if registry.current_version(registry_dir) is None:
            raise RecipeError(_nothing_deployed(registry_dir), code="INS-G001")


def load_version(registry_dir: Path, version: str) -> ServedModel:
    """Return a deployed version as a served model. Raise RecipeError if it is incomplete or cannot be read."""
    run = Run(registry_dir / "versions" / version)
    try:
        if not registry.is_complete(run.folder):
            raise RecipeError(f"version {version} below {registry_dir} is incomplete", code="INS-G003")
        return ServedModel(registry_dir.name, run, run.recipe(), "adapter")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, YAMLError) as error:
        message = f"version {version} below {registry_dir} cannot be read: {_format_error(error)}"
        raise RecipeError(message, code="INS-G003") from None


def find_incompatibility(running: server_process.LaunchPlan, served: ServedModel) -> str | None:
    """Return why a version cannot be loaded into the running vLLM, None if it can."""
    try:
        if problems := launch_plan.find_adapter_problems(served, running.serve):
            return "; ".join(problems)
        model, _ = launch_plan.locate_base(served, running.serve)
        rank = artifact_checks.max_lora_rank({served.name: served.folder})
        template = running.chat_template and atomic_files.sha256(running.chat_template)
        stop = running.tokenizer and PromptSpec.read(running.tokenizer).stop
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        return f"its files cannot be read: {_format_error(error)}"
    if model != running.model:
        return f"its base is {model}, and {running.model} is served; start the gateway again"
    if template and template != served.prompt.chat_template_sha256:
        return "its chat template is another than the one that is served; start the gateway again"
    if running.tokenizer and stop != served.prompt.stop:
        return "its answers end in another stop token than those that are served; start the gateway again"
    if rank > running.max_lora_rank:
        return f"its rank needs {rank}, and vLLM was started for {running.max_lora_rank}; start the gateway again"
    return None


def _find_servable(registry_dir: Path, serve: Serve) -> ServedModel:
    """Return the newest version of a model that can be read and served."""
    problems: list[RecipeError] = []
    for version in iter_candidates(registry_dir):
        try:
            served = load_version(registry_dir, version)
            launch_plan.plan_launch([served], serve)
            return served
        except RecipeError as error:
            problems.append(error)
    if problems:
        raise join_errors(problems)
    raise RecipeError(_nothing_deployed(registry_dir), code="INS-G001")


def _nothing_deployed(registry_dir: Path) -> str:
    return f"nothing is deployed below {registry_dir}; `make deploy RECIPE={registry_dir.name}` deploys"


def _format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"
