"""Turn recipes and their runs into the plan of one vLLM process, and find all problems before it starts.

adapter          the base that it was trained on, with the adapter loaded; several recipes may share the base
merged           a full model that `make export` wrote
quantized/int8   the same, quantized

The base is either the dequantized base of the training (`serve.base: trained`,
insource/tracking/base_models/base_store.py) or the published one.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from insource.config import base_models
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files, environment
from insource.tracking.base_models import base_store
from insource.tracking.prompt_spec import PROMPT_FILE, PromptSpec, TrainedBase
from insource.tracking.run import Run
from serve import artifact_checks
from serve.vllm.server_process import Address, LaunchPlan

API_KEY_VARIABLE = "INSOURCE_API_KEY"
# bfloat16: measured on the pocket classifier, 0.03 at the median, 0.085 at the 95th percentile, 0.22 at most. float16
# has 8 times its precision. In float32 all answers were equal, so no difference is allowed.
ROUNDING_BY_DTYPE = {"float32": 0.0, "float16": 0.03, "bfloat16": 0.25}
# Rounding changes few rows; another model differs on most of them.
MAX_ROUNDING_FRACTION = 0.1


@dataclass(frozen=True)
class ServedModel:
    """A trained task in the variant that is served."""

    name: str
    """The recipe's name, which is the model name in requests."""
    run: Run
    recipe: Recipe
    """The recipe of the run. The serve settings may come from a later version of the recipe."""
    variant: str
    """"adapter", "merged" or "quantized/<scheme>"."""

    @property
    def folder(self) -> Path:
        """Folder of the served variant."""
        return self.run.folder / self.variant

    @property
    def prompt(self) -> PromptSpec:
        """Contents of prompt.json: messages, constraint, labels and base of the task."""
        return PromptSpec.read(self.folder)


def available_variants(run: Run, recipe: Recipe) -> list[str]:
    """Return the variants of a run that are on disk and can be served."""
    variants = [] if recipe.lora.unservable_reason else ["adapter"]
    variants += ["merged"] if (run.folder / "merged").is_dir() else []
    return variants + [f"quantized/{path.name}" for path in sorted((run.folder / "quantized").glob("[!.]*"))]


def rank_variants(run: Run, recipe: Recipe, serve: Serve, shared: bool = False) -> list[str]:
    """Return the variants that may be served, best first: the one in the recipe, or all for `auto`.

    `auto` prefers the adapter on a GPU, or if several recipes share a server. On a CPU it prefers the merged model,
    which answers 3 to 5 times as fast there. Both have the same weights; quantized variants come last. Raise
    RecipeError if none of them is on disk.
    """
    available = available_variants(run, recipe)
    if serve.model == "auto":
        preferred = ["merged", "adapter"] if recipe.accelerate.use_cpu and not shared else ["adapter", "merged"]
        ranked = [variant for variant in preferred if variant in available] + [
            variant for variant in available if variant not in preferred
        ]
        ranked = [variant for variant in ranked if variant == "adapter"] if shared else ranked
    else:
        ranked = [variant for variant in available if variant == serve.model]
    if not ranked:
        variant = "adapter to share a server" if shared else serve.model.replace("auto", "form that can be served")
        raise RecipeError(
            f"run {run.id} has no {variant}; it has {', '.join(available) or 'none'}. "
            f"`make export RECIPE={run.recipe_name}` writes merged and quantized models",
            code="INS-E001",
        )
    return ranked


def has_trained_weights(served: ServedModel, serve: Serve) -> bool:
    """Return whether a variant has the trained weights, so that it must give the same answers.

    Quantized variants do not have them, nor variants on the published base if training used a quantized one. Runs with
    LLM.int8 do not either, because it also rounds activations during training.
    """
    if served.variant.startswith("quantized"):
        return False
    quantization = served.recipe.model.quantization
    return quantization == "none" or (quantization == "nf4" and find_trained_base(served, serve) is not None)


def rounding_tolerance(served: ServedModel, serve: Serve) -> float:
    """Return the allowed difference (natural logarithm) between two kernels in the gap of the two most probable tokens.

    It is that of the less precise data type: the one training decoded in, or the one that is served.
    """
    served_dtype = LaunchPlan(str(served.folder), served.name, serve, served.recipe.accelerate.use_cpu).dtype
    trained_dtype = "float32" if served.recipe.accelerate.use_cpu else "bfloat16"
    return max(ROUNDING_BY_DTYPE[served_dtype], ROUNDING_BY_DTYPE[trained_dtype])


def find_trained_base(served: ServedModel, serve: Serve) -> TrainedBase | None:
    """Return the record of the base as it was in training, None if the published base is served."""
    return served.prompt.base.trained if serve.base == "trained" else None


def plan_launch(served: Sequence[ServedModel], serve: Serve) -> LaunchPlan:
    """Return the plan of one vLLM process. Raise RecipeError with all problems that prevent serving."""
    adapters = [served_model for served_model in served if served_model.variant == "adapter"]
    if len(adapters) < len(served) and len(served) > 1:
        details = ", ".join(f"{served_model.name} ({served_model.variant})" for served_model in served)
        raise RecipeError(f"several recipes can share one server only as adapters; given {details}", code="INS-E002")
    problems = [problem for served_model in served for problem in _find_problems(served_model, serve)]
    if not problems and len({locate_base(served_model, serve)[0] for served_model in served}) > 1:
        details = ", ".join(f"{served_model.name}: {served_model.recipe.model.base}" for served_model in served)
        problems.append(f"recipes that share a server must have the same base; {details}")
    prompts = [served_model.prompt for served_model in served] if not problems else []
    if len({(prompt.chat_template_sha256, prompt.stop) for prompt in prompts}) > 1:
        problems.append(
            "recipes that share a server must have the same chat template and stop token; these have different ones"
        )
    if problems:
        raise RecipeError(
            "this cannot be served:\n" + "\n".join(f"  {problem}" for problem in problems), code="INS-E002"
        )
    first, use_cpu = served[0], served[0].recipe.accelerate.use_cpu
    if not adapters:
        template = first.folder / "chat_template.jinja"
        return LaunchPlan(str(first.folder), first.name, serve, use_cpu, chat_template=template)
    folders = {served_model.name: served_model.folder for served_model in adapters}
    model, revision = locate_base(first, serve)
    return LaunchPlan(
        model=model,
        name=_unique_base_name(base_name(first.prompt), folders),
        serve=serve,
        use_cpu=use_cpu,
        revision=revision,
        chat_template=first.folder / "chat_template.jinja",
        tokenizer=first.folder,
        adapters=folders,
        max_lora_rank=artifact_checks.max_lora_rank(folders),
    )


def plan_base_launch(served: ServedModel, serve: Serve) -> LaunchPlan:
    """Return the plan for the untuned base of a run, with the chat template of the training."""
    adapter = replace(served, variant="adapter")
    model, revision = locate_base(adapter, serve)
    return LaunchPlan(
        model=model,
        name=base_name(adapter.prompt),
        serve=serve,
        use_cpu=served.recipe.accelerate.use_cpu,
        revision=revision,
        chat_template=adapter.folder / "chat_template.jinja",
        tokenizer=adapter.folder,
    )


def locate_base(served: ServedModel, serve: Serve) -> tuple[str, str | None]:
    """Return the base of an adapter as vLLM loads it, a folder or a name on the hub, and its revision there.

    Raise RecipeError if the run was trained on a folder that does not exist (another machine, an emptied cache).
    """
    if record := find_trained_base(served, serve):
        return str(base_store.store_path(served.run.folder) / record.digest), None
    if (folder := Path(served.recipe.model.base)).is_absolute() and not folder.is_dir():
        hint = ""
        if folder.parent.name == base_store.BASES_FOLDER:
            hint = " (`make train` dequantizes the GGUF file again)"
        elif folder.name == base_models.smollm2_dir().name:
            hint = " (`make train` downloads smollm2 again)"
        raise RecipeError(
            f"model.base: {served.name} was trained on {folder}, and there is no such folder{hint}", code="INS-E003"
        )
    return served.recipe.model.base, served.recipe.model.revision or served.prompt.base.commit


def find_adapter_problems(served: ServedModel, serve: Serve) -> list[str]:
    """Return the problems that prevent serving an adapter on its base, each with its fix."""
    if not (served.folder / PROMPT_FILE).is_file():
        return artifact_checks.check_adapter(served.folder, None, {})
    record = find_trained_base(served, serve)
    if record is None:
        return artifact_checks.check_adapter(served.folder, base_folder(served.recipe), served.prompt.base.sha256 or {})
    path = base_store.find(served.run.folder, record.digest)
    if path is None:
        return [
            f"there is no {base_store.store_path(served.run.folder) / record.digest}, the base that the adapter was "
            "trained on; `make export` writes it again, or take SET=serve.base=published"
        ]
    return artifact_checks.check_adapter(served.folder, path, record.sha256)


def _find_problems(served: ServedModel, serve: Serve) -> list[str]:
    """Return the problems that prevent serving a variant, each with the model's name."""
    if served.variant == "adapter":
        return [f"{served.name}: {problem}" for problem in find_adapter_problems(served, serve)]
    if not served.folder.is_dir():
        return [f"{served.name}: there is no {served.folder}; `make export RECIPE={served.name}` writes it"]
    if problem := _export_mismatch(served, serve):
        return [f"{served.name}: {problem}"]
    if served.variant == "quantized/w4a16" and served.recipe.accelerate.use_cpu and not environment.cpu_serves_w4a16():
        return [f"{served.name}: vLLM has no kernel for w4a16 on this CPU, which lacks AVX-512; use quantized/int8"]
    if served.variant == "quantized/int8" and served.recipe.serve.dtype == "float32" and environment.cpu_has_amx():
        return [f"{served.name}: vLLM's int8 kernel for CPUs with AMX takes no float32: leave serve.dtype=auto"]
    return [f"{served.name}: {problem}" for problem in artifact_checks.check_model(served.folder)]


def _export_mismatch(served: ServedModel, serve: Serve) -> str | None:
    """Return why an exported model is not of the run's adapter and the base of `serve.base`, None if it is."""
    path = served.folder / "export.json"
    export = atomic_files.read_json(path) if path.is_file() else {}
    if export.get("adapter") != atomic_files.sha256(served.run.folder / "adapter" / atomic_files.CHECKSUMS):
        return f"{served.variant} was made of another adapter than the run has now; `make export` writes it again"
    record, export_base = find_trained_base(served, serve), export.get("base", "published")
    if export_base == (record.digest if record else "published"):
        return None
    display = "the published base" if export_base == "published" else "the base as it was trained on"
    return f"{served.variant} was made of {display}, and serve.base is {serve.base}; `make export` writes it again"


def base_name(prompt: PromptSpec) -> str:
    """Return the name of the base in requests. For a folder it is the last part of the path."""
    name = prompt.base.name
    return Path(name).name if Path(name).is_absolute() else name


def _unique_base_name(name: str, adapters: Mapping[str, Path]) -> str:
    """Return the base's name, with a suffix if an adapter has it: vLLM does not start with duplicate names."""
    while name in adapters:
        name += "-base"
    return name


def base_folder(recipe: Recipe) -> Path | None:
    """Return the folder of a recipe's base, None for a base from the hub."""
    folder = POCKET if recipe.model.base == "pocket" else Path(recipe.model.base)
    return folder if folder.is_dir() else None


def require_api_key(address: Address) -> str | None:
    """Return the API key that requests must have, None if none is set.

    Raise RecipeError if other machines can reach the address and there is no key.
    """
    api_key = os.environ.get(API_KEY_VARIABLE) or None
    if api_key is None and not address.is_local:
        raise RecipeError(
            f"serve.host: {address.host} can be reached from other machines, and there is no key: set "
            f"{API_KEY_VARIABLE} in the environment, or serve on 127.0.0.1",
            code="INS-E004",
        )
    return api_key


def required_memory_bytes(plan: LaunchPlan) -> int | None:
    """Return the bytes of main memory that weights and cache take on a CPU, None if unknown."""
    folder = Path(plan.model)
    if not plan.use_cpu or not folder.is_dir():
        return None
    weights = artifact_checks.weight_bytes(folder, 4 if plan.dtype == "float32" else 2)
    return weights + int(plan.serve.cpu_cache_gib * 2**30)


def memory_problem(plan: LaunchPlan, available_bytes: int) -> str | None:
    """Return why a model does not fit into the available main memory, None if it fits or the size is unknown."""
    required_bytes = required_memory_bytes(plan)
    if required_bytes is None or required_bytes <= available_bytes:
        return None
    cache = int(plan.serve.cpu_cache_gib * 2**30)
    return (
        f"not enough memory: weights ({(required_bytes - cache) / 2**30:.1f} GiB in {plan.dtype}) and cache "
        f"({plan.serve.cpu_cache_gib:g} GiB) need {required_bytes / 2**30:.1f} GiB, and "
        f"{available_bytes / 2**30:.1f} GiB are free; set serve.model=quantized/int8, serve.dtype=bfloat16 or a "
        "smaller serve.cpu_cache_gib"
    )
