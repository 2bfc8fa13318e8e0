"""From recipes and their runs to what one vLLM process serves, with everything that can be wrong found before.

adapter          the base as it was published, with the adapter beside it; several recipes may share the base
merged           a whole model, which `make export` wrote
quantized/int8   the same, quantized
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.errors import RecipeError
from recipes.load import POCKET
from recipes.schema import Recipe
from recipes.schema_verdict import Serve
from serve import servable
from serve.engine import Address, Plan
from tracking import environment, files
from tracking.run import Run

API_KEY = "INSOURCE_API_KEY"


@dataclass(frozen=True)
class Served:
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
        return files.read_json(self.folder / "prompt.json")  # type: ignore[no-any-return]


def forms_of(run: Run, recipe: Recipe) -> list[str]:
    """Returns the forms of a run that are on disk and can be served."""
    found = [] if recipe.lora.unservable else ["adapter"]
    found += ["merged"] if (run.folder / "merged").is_dir() else []
    return found + [f"quantized/{path.name}" for path in sorted((run.folder / "quantized").glob("[!.]*"))]


def of(served: Sequence[Served], serve: Serve) -> Plan:
    """Returns what one process serves. Raises RecipeError naming everything that stands against it."""
    adapters = [one for one in served if one.which == "adapter"]
    if len(adapters) < len(served) and len(served) > 1:
        told = ", ".join(f"{one.name} ({one.which})" for one in served)
        raise RecipeError(f"several recipes can share one server as adapters alone; asked for {told}")
    problems = [problem for one in served for problem in _problems(one)]
    if not problems and len({str(base_folder(one.recipe) or one.recipe.model.base) for one in served}) > 1:
        told = ", ".join(f"{one.name}: {one.recipe.model.base}" for one in served)
        problems.append(f"recipes that share a server share their base; {told}")
    if not problems and len({one.prompt["chat_template_sha256"] for one in served}) > 1:
        problems.append("recipes that share a server share their chat template; these have different ones")
    if problems:
        raise RecipeError("this cannot be served:\n" + "\n".join(f"  {problem}" for problem in problems))
    first, use_cpu = served[0], served[0].recipe.accelerate.use_cpu
    if not adapters:
        template = first.folder / "chat_template.jinja"
        return Plan(str(first.folder), first.name, serve, use_cpu, chat_template=template)
    folders = {one.name: one.folder for one in adapters}
    return Plan(
        model=first.recipe.model.base,
        name=base_name(first.prompt),
        serve=serve,
        use_cpu=use_cpu,
        revision=first.recipe.model.revision or first.prompt["base"]["commit"],
        chat_template=first.folder / "chat_template.jinja",
        adapters=folders,
        max_lora_rank=servable.max_lora_rank(folders),
    )


def of_base(served: Served, serve: Serve) -> Plan:
    """Returns what serves the untuned base of a run, under the chat template that the run was trained with."""
    recipe, prompt = served.recipe, files.read_json(served.run.folder / "adapter" / "prompt.json")
    return Plan(
        model=recipe.model.base,
        name=base_name(prompt),
        serve=serve,
        use_cpu=recipe.accelerate.use_cpu,
        revision=recipe.model.revision or prompt["base"]["commit"],
        chat_template=served.run.folder / "adapter" / "chat_template.jinja",
    )


def _problems(served: Served) -> list[str]:
    if served.which == "adapter":
        return [f"{served.name}: {told}" for told in servable.of_adapter(served.folder, base_folder(served.recipe))]
    if not served.folder.is_dir():
        return [f"{served.name}: there is no {served.folder}; `make export RECIPE={served.name}` writes it"]
    if served.which == "quantized/w4a16" and served.recipe.accelerate.use_cpu and not environment.cpu_serves_w4a16():
        return [f"{served.name}: vLLM has no kernel for w4a16 on this CPU, which lacks AVX-512; take quantized/int8"]
    if served.which == "quantized/int8" and served.recipe.serve.dtype == "float32" and environment.cpu_has_amx():
        return [f"{served.name}: vLLM's int8 kernel for CPUs with AMX takes no float32: leave serve.dtype=auto"]
    return [f"{served.name}: {told}" for told in servable.of_model(served.folder)]


def base_name(prompt: Mapping[str, Any]) -> str:
    """Returns the name that the base bears in requests; a folder goes by its last part."""
    name = str(prompt["base"]["name"])
    return Path(name).name if Path(name).is_absolute() else name


def base_folder(recipe: Recipe) -> Path | None:
    """Returns the folder of a recipe's base, None where it comes from the hub."""
    folder = POCKET if recipe.model.base == "pocket" else Path(recipe.model.base)
    return folder if folder.is_dir() else None


def key_for(address: Address) -> str | None:
    """Returns the key that requests must bear, None where none is set. Raises RecipeError where others than this
    machine can reach the address and there is no key."""
    key = os.environ.get(API_KEY) or None
    if key is None and not address.local:
        raise RecipeError(
            f"serve.host: {address.host} can be reached from other machines, and there is no key: set {API_KEY} in the "
            "environment, or serve on 127.0.0.1"
        )
    return key


def memory_problem(plan: Plan, available_bytes: int) -> str | None:
    """Returns why a model does not fit into the main memory that is free, None where it does or nobody can tell."""
    folder = Path(plan.model)
    if not plan.use_cpu or not folder.is_dir():
        return None
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # Stored in 2 bytes, or quantized to fewer; float32 takes 4 of each that is not quantized.
    weights = stored * 2 if plan.dtype == "float32" and "quantized" not in folder.parts else stored
    needed = weights + int(plan.serve.cpu_cache_gib * 2**30)
    if needed <= available_bytes:
        return None
    return (
        f"not enough memory: weights ({weights / 2**30:.1f} GiB in {plan.dtype}) and cache "
        f"({plan.serve.cpu_cache_gib:g} GiB) need {needed / 2**30:.1f} GiB, and {available_bytes / 2**30:.1f} GiB are "
        "free; take serve.model=quantized/int8, serve.dtype=bfloat16 or a smaller serve.cpu_cache_gib"
    )
