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
    text, head = model.get_decoder(), model.get_output_embeddings()
    path = next(name for name, one in model.named_modules() if one is text).split(".")
    found = []
    for depth, own in enumerate(path):
        above = path[:depth]
        for name, module in model.get_submodule(".".join(above)).named_children():
            if name != own and module is not head:
                found.append(".".join([*above, name]))
    return found


def build_exclude_modules(model: Any, given: str | list[str] | None) -> str | list[str] | None:
    """Returns PEFT's exclude_modules: what the recipe gives, and on a model that knows more than text all else too."""
    towers = list_non_text_modules(model)
    if not towers:
        return given
    found = [rf"(.*\.)?({'|'.join(map(re.escape, towers))})(\..*)?"]
    if isinstance(given, str):
        found.append(given)
    elif given:
        found.append(rf"(.*\.)?({'|'.join(map(re.escape, given))})")
    return "|".join(f"(?:{one})" for one in found)


def fix_no_split_modules(model: Any) -> None:
    """Has the model name the layers that it has and no others, in place: some name layers of towers that theirs are
    not made of, and FSDP spreads a model by these names."""
    there = {type(one).__name__ for one in model.modules()}
    named = getattr(model, "_no_split_modules", None)
    if named and not there.issuperset(named):
        model._no_split_modules = [name for name in named if name in there]
