"""From recipes and their runs to what one vLLM process serves, with everything that can be wrong found before.

adapter          the base that it was trained on, with the adapter beside it; several recipes may share the base
merged           a whole model, which `make export` wrote
quantized/int8   the same, quantized

The base is what quantization left of it in training (`serve.base: trained`,
insource/tracking/base_models/base_store.py) or the published one.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from insource.config import base_models
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files, environment
from insource.tracking.base_models import base_store
from insource.tracking.run import Run
from serve import artifact_checks
from serve.vllm.server_process import Address, LaunchPlan

API_KEY_VARIABLE = "INSOURCE_API_KEY"
# bfloat16: measured on the pocket classifier, 0.03 at the median, 0.085 at 95%, 0.22 at most; float16 has 8 times its
# precision. In float32 all answers were equal, so that none is let pass.
ROUNDING_BY_DTYPE = {"float32": 0.0, "float16": 0.03, "bfloat16": 0.25}
# Another model differs on most rows, and rounding on few.
MAX_ROUNDING_FRACTION = 0.1


@dataclass(frozen=True)
class ServedModel:
    """A trained task, as clients ask for it."""

    name: str
    """The recipe's name, which is the model's name in requests."""
    run: Run
    recipe: Recipe
    """Of the run; how it is served may have been said later."""
    which: str
    """adapter, merged or quantized/<scheme>."""

    @property
    def folder(self) -> Path:
        """Returns the folder of what is served."""
        return self.run.folder / self.which

    @property
    def prompt(self) -> dict[str, Any]:
        """Returns prompt.json: how the model is asked."""
        return atomic_files.read_json(self.folder / "prompt.json")  # type: ignore[no-any-return]


def available_variants(run: Run, recipe: Recipe) -> list[str]:
    """Returns the forms of a run that are on disk and can be served."""
    variants = [] if recipe.lora.unservable else ["adapter"]
    variants += ["merged"] if (run.folder / "merged").is_dir() else []
    return variants + [f"quantized/{path.name}" for path in sorted((run.folder / "quantized").glob("[!.]*"))]


def rank_variants(run: Run, recipe: Recipe, serve: Serve, shared: bool = False) -> list[str]:
    """Returns the forms that may be served, the first choice first: the one that the recipe names, or for `auto` all.

    auto takes the adapter where several recipes share a server and on a GPU; on a CPU the merged model, which answers 3
    to 5 times as fast there. Adapter and merged model are the same weights; a quantized form is the last choice. Raises
    RecipeError where nothing of it is on disk.
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
            f"`make export RECIPE={run.recipe_name}` writes merged and quantized models"
        )
    return ranked


def has_trained_weights(served: ServedModel, serve: Serve) -> bool:
    """Returns whether what is served has the weights that were trained, so that the same answers are due from it.

    Not so: quantized forms, what is built on the published base although training had a quantized one, and LLM.int8,
    which rounds activations too while it trains.
    """
    if served.which.startswith("quantized"):
        return False
    quantization = served.recipe.model.quantization
    return quantization == "none" or (quantization == "nf4" and find_trained_base(served, serve) is not None)


def rounding_tolerance(served: ServedModel, serve: Serve) -> float:
    """Returns by how much (natural logarithm) two kernels may move the gap between the two best tokens, in the less
    precise of the types that training decoded in and that this is served in."""
    served_in = LaunchPlan(str(served.folder), served.name, serve, served.recipe.accelerate.use_cpu).dtype
    trained_in = "float32" if served.recipe.accelerate.use_cpu else "bfloat16"
    return max(ROUNDING_BY_DTYPE[served_in], ROUNDING_BY_DTYPE[trained_in])


def find_trained_base(served: ServedModel, serve: Serve) -> Mapping[str, Any] | None:
    """Returns the record of the base that this is served on as training had it, None for the published one."""
    return base_store.get_trained_record(served.prompt) if serve.base == "trained" else None


def plan_launch(served: Sequence[ServedModel], serve: Serve) -> LaunchPlan:
    """Returns what one process serves. Raises RecipeError naming everything that stands against it."""
    adapters = [served_model for served_model in served if served_model.which == "adapter"]
    if len(adapters) < len(served) and len(served) > 1:
        details = ", ".join(f"{served_model.name} ({served_model.which})" for served_model in served)
        raise RecipeError(f"several recipes can share one server as adapters alone; asked for {details}")
    problems = [problem for served_model in served for problem in _problems(served_model, serve)]
    if not problems and len({locate_base(served_model, serve)[0] for served_model in served}) > 1:
        details = ", ".join(f"{served_model.name}: {served_model.recipe.model.base}" for served_model in served)
        problems.append(f"recipes that share a server share their base; {details}")
    if (
        not problems
        and len(
            {(served_model.prompt["chat_template_sha256"], served_model.prompt.get("stop")) for served_model in served}
        )
        > 1
    ):
        problems.append("recipes that share a server share chat template and stop token; these have different ones")
    if problems:
        raise RecipeError("this cannot be served:\n" + "\n".join(f"  {problem}" for problem in problems))
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
    """Returns what serves the untuned base of a run, under the chat template that the run was trained with."""
    adapter = replace(served, which="adapter")
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
    """Returns the base of an adapter as vLLM loads it: a folder or a name on the hub, and the revision there. Raises
    RecipeError where the run was trained on a folder that is not there (another machine, an emptied cache)."""
    if record := find_trained_base(served, serve):
        return str(base_store.store_path(served.run.folder) / record["digest"]), None
    if (folder := Path(served.recipe.model.base)).is_absolute() and not folder.is_dir():
        hint = " (`make train` fetches smollm2 anew)" if folder.name == base_models.smollm2_dir().name else ""
        hint = (
            " (`make train` dequantizes the GGUF file again)" if folder.parent.name == base_store.BASES_FOLDER else hint
        )
        raise RecipeError(f"model.base: {served.name} was trained on {folder}, and there is no such folder{hint}")
    return served.recipe.model.base, served.recipe.model.revision or served.prompt["base"]["commit"]


def adapter_problems(served: ServedModel, serve: Serve) -> list[str]:
    """Returns what stands against serving an adapter, its base included, each with what to do."""
    if not (served.folder / "prompt.json").is_file():
        return artifact_checks.check_adapter(served.folder, None, {})
    record = find_trained_base(served, serve)
    if record is None:
        return artifact_checks.check_adapter(
            served.folder, base_folder(served.recipe), served.prompt["base"].get("sha256") or {}
        )
    path = base_store.find(served.run.folder, record["digest"])
    if path is None:
        return [
            f"there is no {base_store.store_path(served.run.folder) / record['digest']}, the base that the adapter "
            "was trained "
            "on; `make export` writes it again, or take SET=serve.base=published"
        ]
    return artifact_checks.check_adapter(served.folder, path, record["sha256"])


def _problems(served: ServedModel, serve: Serve) -> list[str]:
    if served.which == "adapter":
        return [f"{served.name}: {problem}" for problem in adapter_problems(served, serve)]
    if not served.folder.is_dir():
        return [f"{served.name}: there is no {served.folder}; `make export RECIPE={served.name}` writes it"]
    if problem := _export_mismatch(served, serve):
        return [f"{served.name}: {problem}"]
    if served.which == "quantized/w4a16" and served.recipe.accelerate.use_cpu and not environment.cpu_serves_w4a16():
        return [f"{served.name}: vLLM has no kernel for w4a16 on this CPU, which lacks AVX-512; take quantized/int8"]
    if served.which == "quantized/int8" and served.recipe.serve.dtype == "float32" and environment.cpu_has_amx():
        return [f"{served.name}: vLLM's int8 kernel for CPUs with AMX takes no float32: leave serve.dtype=auto"]
    return [f"{served.name}: {problem}" for problem in artifact_checks.check_model(served.folder)]


def _export_mismatch(served: ServedModel, serve: Serve) -> str | None:
    """Why a merged or quantized model is not of this adapter on the base that is asked for, None where it is."""
    path = served.folder / "export.json"
    export = atomic_files.read_json(path) if path.is_file() else {}
    if export.get("adapter") != atomic_files.sha256(served.run.folder / "adapter" / atomic_files.CHECKSUMS):
        return f"{served.which} was made of another adapter than the run has now; `make export` makes it anew"
    record, export_base = find_trained_base(served, serve), export.get("base", "published")
    if export_base == (record["digest"] if record else "published"):
        return None
    display = "the published base" if export_base == "published" else "the base as it was trained on"
    return f"{served.which} was made of {display}, and serve.base is {serve.base}; `make export` makes it anew"


def base_name(prompt: Mapping[str, Any]) -> str:
    """Returns the name that the base bears in requests; a folder goes by its last part."""
    name = str(prompt["base"]["name"])
    return Path(name).name if Path(name).is_absolute() else name


def _unique_base_name(name: str, adapters: Mapping[str, Path]) -> str:
    """Returns the base's name, with an end where an adapter has it: vLLM refuses to start with one name for both."""
    while name in adapters:
        name += "-base"
    return name


def base_folder(recipe: Recipe) -> Path | None:
    """Returns the folder of a recipe's base, None where it comes from the hub."""
    folder = POCKET if recipe.model.base == "pocket" else Path(recipe.model.base)
    return folder if folder.is_dir() else None


def require_api_key(address: Address) -> str | None:
    """Returns the key that requests must bear, None where none is set. Raises RecipeError where others than this
    machine can reach the address and there is no key."""
    key = os.environ.get(API_KEY_VARIABLE) or None
    if key is None and not address.local:
        raise RecipeError(
            f"serve.host: {address.host} can be reached from other machines, and there is no key: set "
            f"{API_KEY_VARIABLE} in the "
            "environment, or serve on 127.0.0.1"
        )
    return key


def required_memory_bytes(plan: LaunchPlan) -> int | None:
    """Returns the bytes of main memory that weights and cache take on a CPU, None where nobody can tell."""
    folder = Path(plan.model)
    if not plan.use_cpu or not folder.is_dir():
        return None
    weights = artifact_checks.weight_bytes(folder, 4 if plan.dtype == "float32" else 2)
    return weights + int(plan.serve.cpu_cache_gib * 2**30)


def memory_problem(plan: LaunchPlan, available_bytes: int) -> str | None:
    """Returns why a model does not fit into the main memory that is free, None where it does or nobody can tell."""
    required_bytes = required_memory_bytes(plan)
    if required_bytes is None or required_bytes <= available_bytes:
        return None
    cache = int(plan.serve.cpu_cache_gib * 2**30)
    return (
        f"not enough memory: weights ({(required_bytes - cache) / 2**30:.1f} GiB in {plan.dtype}) and cache "
        f"({plan.serve.cpu_cache_gib:g} GiB) need {required_bytes / 2**30:.1f} GiB, and "
        f"{available_bytes / 2**30:.1f} GiB are "
        "free; take serve.model=quantized/int8, serve.dtype=bfloat16 or a smaller serve.cpu_cache_gib"
    )
