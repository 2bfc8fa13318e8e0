"""The training objectives: cross-entropy over answer tokens, DPO over pairs of answers, or over classes of a head.

The first two compute logits only for answer tokens. A pack has about fifty answer tokens among a thousand. Logits for
all tokens cost a small model as much as the model itself, and with a vocabulary of 150,000 most of the memory.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from train.model import classification_head
from train.packing.collate import IGNORE_INDEX, Batch
from train.packing.packing_plan import answer_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MetricSums = dict[str, tuple["torch.Tensor | float", float]]
"""{name: (sum, count)}; a sum may be a tensor."""


def log_probabilities(model: "PreTrainedModel", batch: Batch) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return three tensors [N] over the answer tokens of a batch.

    They are the log-probability of the token, the number of the answer that it belongs to, and whether greedy decoding
    would choose it.
    """
    import torch

    targets, sequences = batch.labels[:, 1:], batch.sequences[:, 1:]
    columns = (targets != IGNORE_INDEX).any(dim=0).nonzero()[:, 0]
    logits = model(**batch.inputs, use_cache=False, logits_to_keep=columns).logits
    mask = targets[:, columns] != IGNORE_INDEX
    logits, answer_ids = logits[mask].float(), targets[:, columns][mask]
    token_log_probs = -torch.nn.functional.cross_entropy(logits, answer_ids, reduction="none")
    return token_log_probs, sequences[:, columns][mask], logits.detach().argmax(dim=-1) == answer_ids


def supervised_loss(model: "PreTrainedModel", batch: Batch, beta: float) -> "tuple[torch.Tensor, MetricSums]":
    """Return the cross-entropy summed over answer tokens, each weighted by its row, and metrics for the log.

    With soft labels a token also has the probability of its answer as a factor: the sum over the answers of a row is
    the cross-entropy of the distribution over answers.
    """
    import torch

    token_log_probs, sequence, correct = log_probabilities(model, batch)
    weights = torch.tensor(
        [weight for row in batch.rows for weight in answer_weights(row)],
        device=token_log_probs.device,
        dtype=token_log_probs.dtype,
    )
    # The accuracy is that of the label of the data, the first answer of a row.
    is_first = torch.tensor(
        [number == 0 for row in batch.rows for number in range(len(row.completions))], device=token_log_probs.device
    )[sequence]
    n_tokens = sum(len(row.completions[0]) for row in batch.rows)
    accuracy = ((correct & is_first).sum(), n_tokens)
    return -(token_log_probs * weights[sequence]).sum(), {"token_accuracy": accuracy}


def dpo_loss(model: "PreTrainedModel", batch: Batch, beta: float) -> "tuple[torch.Tensor, MetricSums]":
    """Return the DPO loss summed over pairs, and metrics for the log, each summed over pairs too.

    Source: arXiv:2305.18290, eq. 7; `loss_type: sigmoid` of TRL.
    """
    import torch

    token_log_probs, sequence, _ = log_probabilities(model, batch)
    policy = token_log_probs.new_zeros(2 * len(batch.rows)).index_add(0, sequence, token_log_probs).view(-1, 2)
    reference = torch.tensor(
        [row.reference for row in batch.rows], device=token_log_probs.device, dtype=token_log_probs.dtype
    )
    rewards = beta * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    weights = torch.tensor(
        [row.weight for row in batch.rows], device=token_log_probs.device, dtype=token_log_probs.dtype
    )
    loss = -(torch.nn.functional.logsigmoid(margins) * weights).sum()
    metric_values = {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).float(),
    }
    return loss, {name: (values.detach().sum(), len(batch.rows)) for name, values in metric_values.items()}


def class_logits(model: "PreTrainedModel", batch: Batch) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return three tensors over the rows of a batch of a classification head, in the order of the batch.

    They are the logits [N, labels] at the last prompt token, the class [N], and the number [N] of the row. The class is
    the one completion "token" of a row, so packs need no other form. The head does not see it: it is behind its token.
    """
    targets = batch.labels[:, 1:]
    rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    logits = classification_head.compute_logits(model, batch.inputs, rows, columns)
    return logits, targets[rows, columns], batch.sequences[:, 1:][rows, columns]


def class_log_probabilities(
    model: "PreTrainedModel", batch: Batch
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return three tensors [N] over the rows of a batch of a classification head, as `log_probabilities` does.

    They are the log-probability of the row's class, the number of the row, and whether the class is the most probable.
    """
    logits, classes, numbers = class_logits(model, batch)
    log_probs = logits.float().log_softmax(dim=-1).gather(1, classes[:, None])[:, 0]
    return log_probs, numbers, logits.detach().argmax(dim=-1) == classes


def classification_loss(model: "PreTrainedModel", batch: Batch, beta: float) -> "tuple[torch.Tensor, MetricSums]":
    """Return the cross-entropy of the classification head summed over rows, each with its weight, and its accuracy."""
    import torch

    logits, classes, numbers = class_logits(model, batch)
    weights = torch.tensor([row.weight for row in batch.rows], device=logits.device, dtype=logits.dtype)
    losses = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    correct = logits.detach().argmax(dim=-1) == classes
    return (losses * weights[numbers]).sum(), {"accuracy": (correct.sum(), len(classes))}


OBJECTIVES: dict[str, Callable[["PreTrainedModel", Batch, float], tuple["torch.Tensor", MetricSums]]] = {
    "imitate": supervised_loss,
    "prefer": dpo_loss,
    "classify": classification_loss,
}
