"""The text part of a multimodal model (Gemma 3 and 4, Qwen-VL, Llama 4).

    Gemma3ForConditionalGeneration   model.vision_tower, model.multi_modal_projector, model.language_model, lm_head
                                     adapters only on model.language_model

Tasks are text. An adapter on a tower that never runs gets no gradient, and several processes would wait for it forever.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def list_non_text_modules(model: "PreTrainedModel") -> list[str]:
    """Return the names of modules outside the text model and its head, [] for a text-only model."""
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


def build_exclude_modules(model: "PreTrainedModel", exclude_modules: str | list[str] | None) -> str | list[str] | None:
    """Return PEFT's exclude_modules: the recipe's value, and on a multimodal model all non-text modules too."""
    towers = list_non_text_modules(model)
    if not towers:
        return exclude_modules
    patterns = [rf"(.*\.)?({'|'.join(map(re.escape, towers))})(\..*)?"]
    if isinstance(exclude_modules, str):
        patterns.append(exclude_modules)
    elif exclude_modules:
        patterns.append(rf"(.*\.)?({'|'.join(map(re.escape, exclude_modules))})")
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def fix_no_split_modules(model: "PreTrainedModel") -> None:
    """Remove names of missing layers from the model's `_no_split_modules`, in place.

    Some models name layers of towers that their towers do not have. FSDP shards a model by these names.
    """
    present = {type(module).__name__ for module in model.modules()}
    no_split_names = getattr(model, "_no_split_modules", None)
    if no_split_names and not present.issuperset(no_split_names):
        model._no_split_modules = [name for name in no_split_names if name in present]
