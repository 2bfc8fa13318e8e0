"""A classification head on the base, instead of label tokens: transformers' AutoModelForSequenceClassification.

    prompt   [5 6 1 9]          the prompt of the label tokens, up to where the answer begins
    hidden   [h0 h1 h2 h3]      the base with LoRA
    logits   score(h3)          one number for each label, from the last token of the prompt

The last token is given by its position, not found by its id as transformers does: where a base pads with a token that
prompts contain, an id cannot tell them apart. Padding is on the right, so no token of a row sees it.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# The head's name in transformers' classes for language models; PEFT trains a module of this name in full.
HEAD_MODULE = "score"


def find_classifier(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return the model with the head: the base of a PeftModel, or the model itself."""
    classifier: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    return classifier


def compute_logits(
    model: "PreTrainedModel", inputs: Mapping[str, "torch.Tensor"], rows: "torch.Tensor", columns: "torch.Tensor"
) -> "torch.Tensor":
    """Return the logits [N, labels], in float32, at the N positions (row, column) of a batch.

    `inputs` are those of the base: input_ids [B, T], a mask, positions. On a GPU the base computes under autocast, as
    Trainer calls it. The head always computes in float32.
    """
    import torch

    classifier = find_classifier(model)
    backbone = getattr(classifier, classifier.base_model_prefix)
    on_gpu = inputs["input_ids"].device.type == "cuda"
    with torch.autocast("cuda", dtype=torch.bfloat16) if on_gpu else nullcontext():
        hidden = backbone(**inputs, use_cache=False).last_hidden_state[rows, columns]
    with torch.autocast(hidden.device.type, enabled=False):
        logits: torch.Tensor = getattr(classifier, HEAD_MODULE)(hidden.float())
        return logits


def compute_padded_logits(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], pad_token_id: int
) -> "torch.Tensor":
    """Return the logits [N, labels] of prompts, computed as one batch that is padded on the right."""
    import torch

    longest = max(map(len, prompts))
    ids = [[*prompt, *[pad_token_id] * (longest - len(prompt))] for prompt in prompts]
    mask = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    device = find_classifier(model).device
    inputs = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    rows = torch.arange(len(prompts), device=device)
    return compute_logits(model, inputs, rows, torch.tensor([len(prompt) - 1 for prompt in prompts], device=device))
