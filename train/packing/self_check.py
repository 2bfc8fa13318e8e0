"""Self-check of shared-prefix packing on a base: one pack against the same rows computed one by one.

    pack = select_check_pack(rows, plan)
    difference = measure_difference(model, pack, log_probabilities=..., attention="shared_prefix", pad_token_id=0)
    difference.exceeds("float32")       True if this base computes a pack differently from its rows

A pack needs a model whose every layer follows the mask and the positions, or splits its state between rows. A model
class may compute attention or a recurrence in its own way, without an error. Then rows of a pack see each other. The
check needs no adapter: it compares the log-probabilities of answer tokens, and their gradient with respect to the
embedding of each token id. The gradient passes through all layers. Parameters, their gradients, random states and the
modes of modules are unchanged.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.packing import collate
from train.packing.attention import pack_attention
from train.packing.attention_blocks import MIN_BLOCKED_TOKENS, Implementation
from train.packing.collate import Batch
from train.packing.packing_plan import Pack, PackingMode, PackingPlan, TokenizedRow

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

LogProbabilities = Callable[["PreTrainedModel", Batch], tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]]
"""`train.loop.losses.log_probabilities`, from which this package may not import."""

MIN_ROWS = 2


@dataclass(frozen=True)
class PackLimits:
    """The size of the pack to check."""

    min_tokens: int
    """Rows are added until the pack has as many, so that it is computed by the implementation to check."""
    max_unpacked_tokens: int
    """Tokens of its rows computed one by one: they decide how long the check takes."""


LIMITS = PackLimits(MIN_BLOCKED_TOKENS, 4096)
# A GPU with FlexAttention computes 32,768 tokens of an 8B base in some seconds (estimated, not measured).
FLEX_LIMITS = PackLimits(collate.MIN_FLEX_TOKENS, 32_768)


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that rounding explains."""

    log_probability: float
    gradient: float
    log_probability_nats: float = 0.0
    """A difference of log-probabilities that is explained whatever their size (root mean square)."""


# By the type of matrix products. Measured differences of gradients (2 CPU cores, 2026-11-30): in float32 2e-7 to 1e-6,
# under bfloat16 autocast 4e-3 to 2e-2 (tiny random models, the pocket model). If attention ignores the mask: 0.16 (tiny
# random model) and 0.6 (pocket model). If recurrent layers read a pack as one sequence: 9e-4 (LFM2 as transformers
# initializes it, whose convolutions see two tokens back), 0.4 (Qwen3.5), 0.8 (Granite 4).
# SmolLM2 with all weights in bfloat16, as on a GPU (Banking77, 2026-12-01): log-probabilities 0.034 or 0.18 nat,
# gradients 0.042; trained on Banking77: 0.027 or 0.034 nat, and 0.027. Logits between 16 and 32 are multiples of 0.125
# in bfloat16, so an untuned base that is sure of its answers would exceed any relative limit. Parity allows 0.25 nat
# too (serve/vllm/launch_plan.py). Larger models were not measured.
TOLERANCES = {"float32": Tolerance(1e-3, 3e-4), "bfloat16": Tolerance(0.05, 0.1, 0.25)}


@dataclass(frozen=True)
class PackingDifference:
    """The norm of the difference between pack and separate rows, relative to the norm of separate rows."""

    log_probability: float
    """Of the log-probabilities of all answer tokens."""
    gradient: float
    """Of the gradient of their sum with respect to the embeddings."""
    log_probability_nats: float = math.inf
    """The root mean square of the difference of log-probabilities."""

    def exceeds(self, dtype: str) -> bool:
        """Return whether rounding in this type, float32 or bfloat16, cannot explain the difference. NaN exceeds."""
        limit = TOLERANCES[dtype]
        explained = (
            self.log_probability <= limit.log_probability or self.log_probability_nats <= limit.log_probability_nats
        )
        return not (explained and self.gradient <= limit.gradient)


@dataclass(frozen=True)
class PassResult:
    """Log-probabilities and gradient of one or more passes."""

    log_probabilities: "torch.Tensor"
    """[N], of answer tokens in the order of rows and their completions."""
    token_ids: "torch.Tensor"
    """[T], all input tokens."""
    gradients: "torch.Tensor"
    """[T, width], with respect to the embedding of each input token."""


def select_check_pack(
    rows: Sequence[TokenizedRow], plan: PackingPlan, limits: PackLimits = LIMITS, max_rows: int | None = None
) -> Pack | None:
    """Return a pack of a few rows of the largest group with a common prefix, or None if no two rows make a pack.

    Rows of median length come first. There are enough of them for `limits.min_tokens`, unless they are too long or more
    than `max_rows`.
    """
    groups = sorted(range(len(plan.prefixes)), key=lambda group: (plan.prefixes[group] == 0, group))
    for group in groups:
        prefix = plan.prefixes[group]
        indices = [index for index, row_group in enumerate(plan.row_groups) if row_group == group]
        lengths = {index: rows[index].tokens_after_prefix(prefix) for index in indices}
        median = sorted(lengths.values())[len(lengths) // 2] if lengths else 0
        order = sorted(indices, key=lambda index: (abs(lengths[index] - median), index))[:max_rows]
        chosen: list[TokenizedRow] = []
        for index in order:
            pack = Pack((*chosen, rows[index]), prefix)
            unpacked_tokens = sum(row.unpacked_tokens for row in pack.rows)
            too_slow = len(chosen) >= MIN_ROWS and unpacked_tokens > limits.max_unpacked_tokens
            if pack.tokens > plan.pack_tokens or too_slow:
                break
            chosen.append(rows[index])
            if len(chosen) >= MIN_ROWS and pack.tokens >= limits.min_tokens:
                break
        if len(chosen) >= MIN_ROWS:
            return Pack(tuple(chosen), prefix)
    return None


def measure_difference(
    model: "PreTrainedModel",
    pack: Pack,
    *,
    log_probabilities: LogProbabilities,
    attention: Implementation,
    pad_token_id: int,
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
    checkpointing: bool = False,
) -> PackingDifference:
    """Return the difference between a pack and its rows computed one by one, by a model without dropout.

    `forward_context` is the context of forward passes in training. `checkpointing` computes layers again in the
    backward pass, as training does, and so bounds memory.
    """

    def compute(part: Pack, mode: PackingMode) -> PassResult:
        batch = collate.collate_pack(part, mode, model.device, pad_token_id, attention)
        return compute_pass(model, batch, log_probabilities, forward_context)

    with frozen_model(model, checkpointing):
        packed = compute(pack, "shared_prefix")
        separate = join_passes([compute(Pack((row,), 0), "none") for row in pack.rows])
    return compare_passes(packed, separate)


def compute_pass(
    model: "PreTrainedModel",
    batch: Batch,
    log_probabilities: LogProbabilities,
    forward_context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> PassResult:
    """Return the result of one forward and backward pass. Parameters get no gradient."""
    import torch

    embeddings: list[torch.Tensor] = []

    def detach_output(_module: "nn.Module", _inputs: object, output: torch.Tensor) -> torch.Tensor:
        embeddings.append(output.detach().requires_grad_(True))
        return embeddings[-1]

    hook = model.get_input_embeddings().register_forward_hook(detach_output)
    try:
        # The backward pass is inside: gradient checkpointing computes layers again there.
        with pack_attention(model.config, batch):
            with forward_context():
                token_log_probs = log_probabilities(model, batch)[0]
            (gradient,) = torch.autograd.grad(token_log_probs.sum(), embeddings[:1])
    finally:
        hook.remove()
    token_ids = batch.inputs["input_ids"].flatten().cpu()
    # In main memory: the gradients of all rows take 0.7 GB for 32,768 tokens of a 4B base.
    return PassResult(
        token_log_probs.detach().cpu().double(), token_ids, gradient.reshape(len(token_ids), -1).cpu().double()
    )


def join_passes(passes: Sequence[PassResult]) -> PassResult:
    """Return the results of several passes as one."""
    import torch

    names = ("log_probabilities", "token_ids", "gradients")
    return PassResult(*(torch.cat([getattr(result, name) for result in passes]) for name in names))


def compare_passes(packed: PassResult, separate: PassResult) -> PackingDifference:
    """Return the difference of two results for the same rows.

    Gradients are summed by token id: the tokens of a shared prefix are in one pass once, in the other once for each
    row.
    """
    import torch

    all_token_ids = torch.cat([packed.token_ids, separate.token_ids])
    token_ids = all_token_ids.unique()

    def sum_by_token_id(result: PassResult) -> torch.Tensor:
        sums = result.gradients.new_zeros(len(token_ids), result.gradients.shape[-1])
        return sums.index_add(0, torch.searchsorted(token_ids, result.token_ids), result.gradients)

    return PackingDifference(
        relative_difference(packed.log_probabilities, separate.log_probabilities),
        relative_difference(sum_by_token_id(packed), sum_by_token_id(separate)),
        float((packed.log_probabilities - separate.log_probabilities).square().mean().sqrt()),
    )


def relative_difference(actual: "torch.Tensor", expected: "torch.Tensor") -> float:
    """Return the norm of the difference of two tensors, relative to the second."""
    norm = float(expected.norm())
    return float((actual - expected).norm()) / norm if norm else math.inf


@contextmanager
def frozen_model(model: "PreTrainedModel", checkpointing: bool) -> Iterator[None]:
    """Put a model into evaluation mode with frozen parameters inside of the block, and keep random states.

    With `checkpointing`, only the layers themselves are in training mode, for which transformers checkpoints: their
    parts use no dropout.
    """
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    modes = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    uses_checkpointing = checkpointing and model.supports_gradient_checkpointing
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    if uses_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in modes:
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            yield
    finally:
        if uses_checkpointing:
            model.gradient_checkpointing_disable()
            # transformers leaves these hooks on.
            model.disable_input_require_grads()
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
