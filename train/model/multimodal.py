"""The part of a model that reads text, where it can see or hear too (Gemma 3 and 4, Qwen-VL, Llama 4).

    Gemma3ForConditionalGeneration   model.vision_tower, model.multi_modal_projector, model.language_model, lm_head
                                     adapters go on model.language_model alone

Tasks are text: an adapter on a tower that never runs gets no gradient, for which several processes would wait for ever.
"""

import re
from typing import Any


def list_non_text_modules(model: Any) -> list[str]:
    """Returns the names of modules beside the text's own and its head, [] where a model knows text alone."""
    if model.config.get_text_config() is model.config:
        return []
    text_model, head = model.get_decoder(), model.get_output_embeddings()
    path = next(name for name, candidate in model.named_modules() if candidate is text_model).split(".")
    module_names = []
    for depth, child_name in enumerate(path):
        parents = path[:depth]
        for name, module in model.get_submodule(".".join(parents)).named_children():
            if name != child_name and module is not head:
                module_names.append(".".join([*parents, name]))
    return module_names


def build_exclude_modules(model: Any, exclude_modules: str | list[str] | None) -> str | list[str] | None:
    """Returns PEFT's exclude_modules: what the recipe gives, and on a model that knows more than text all else too."""
    towers = list_non_text_modules(model)
    if not towers:
        return exclude_modules
    patterns = [rf"(.*\.)?({'|'.join(map(re.escape, towers))})(\..*)?"]
    if isinstance(exclude_modules, str):
        patterns.append(exclude_modules)
    elif exclude_modules:
        patterns.append(rf"(.*\.)?({'|'.join(map(re.escape, exclude_modules))})")
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def fix_no_split_modules(model: Any) -> None:
    """Has the model name the layers that it has and no others, in place: some name layers of towers that theirs are
    not made of, and FSDP spreads a model by these names."""
    present = {type(module).__name__ for module in model.modules()}
    no_split_names = getattr(model, "_no_split_modules", None)
    if no_split_names and not present.issuperset(no_split_names):
        model._no_split_modules = [name for name in no_split_names if name in present]
