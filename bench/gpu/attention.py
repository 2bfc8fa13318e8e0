"""Part 2 of the GPU bench: packs against separate rows, by each implementation of attention.

A pack's log-probabilities and gradients must be those of its rows within rounding (train/packing/self_check.py), with
gradient checkpointing on, as on a GPU. Then a pack is timed: forward and backward pass, the second of two.
"""

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.gpu.random_models import torch_dtype
from bench.gpu.spec import CaseLog, Measurement, PartSpec
from bench.training import fixtures
from insource.config.errors import StageError
from train.loop.losses import log_probabilities
from train.packing import collate, self_check
from train.packing.attention import preferred_implementation
from train.packing.attention_blocks import FLEX, SHARED_PREFIX, Implementation
from train.packing.packing_plan import Pack, TokenizedRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY, SUFFIX_TOKENS, ANSWER_TOKENS = 300, 30, 4
HEADS, KV_HEADS = 8, 2
# Lengths of packs one after another: FlexAttention must not be compiled for each of them.
FLEX_LENGTHS = (2100, 3000, 4600, 8000)


def run(spec: PartSpec, log: CaseLog) -> None:
    """Compare and time all implementations. Raise StageError if one differs from separate rows beyond rounding."""
    import torch
    from transformers import Qwen3Config

    implementations: list[Implementation] = ["sdpa", SHARED_PREFIX]
    if preferred_implementation(torch.device(spec.device), Qwen3Config()) == FLEX:
        implementations.append(FLEX)
    elif spec.on_gpu:
        log.skip(FLEX, "its kernels for heads of width 256 do not fit the shared memory of this GPU")
    else:
        log.skip(FLEX, "it has no backward pass on a CPU")
    failures: list[str] = []
    for head_dim in (16, 32) if spec.small else (64, 128, 256):
        pack = make_pack(*((100, 640) if spec.small else (700, 2560)))
        model = build_model(spec, head_dim)
        for implementation in implementations:
            name = f"{implementation}, heads of {head_dim}, {pack.tokens} tokens"
            log.run(name, partial(compare, spec, model, pack, implementation, failures, name), min_seconds=1)
    if FLEX in implementations and not spec.small:
        model = build_model(spec, 128)
        for length in FLEX_LENGTHS:
            log.run(f"{FLEX}, {length} tokens", partial(time_lengths, spec, model, make_pack(700, length)))
    if failures:
        raise StageError(f"packs differ from separate rows: {'; '.join(failures)}", code="INS-X010")


def make_pack(prefix: int, tokens: int) -> Pack:
    """Return a pack of about this length: rows of 30 own tokens and answers of 4, behind a prefix."""
    rng = random.Random(fixtures.SEED)

    def draw(count: int) -> list[int]:
        return [rng.randrange(10, VOCABULARY) for _ in range(count)]

    opening = draw(prefix)
    count = max(2, (tokens - prefix) // (SUFFIX_TOKENS + ANSWER_TOKENS))
    rows = [TokenizedRow(str(index), opening + draw(SUFFIX_TOKENS), (draw(ANSWER_TOKENS),)) for index in range(count)]
    return Pack(tuple(rows), prefix)


def build_model(spec: PartSpec, head_dim: int) -> "PreTrainedModel":
    """Return a Qwen3 of two layers with random weights and heads of this width."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128 if spec.small else 512,
        intermediate_size=256 if spec.small else 1024,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=head_dim,
        max_position_embeddings=16_384,
    )
    torch.manual_seed(fixtures.SEED)
    with torch.device(spec.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(spec))
    return model.requires_grad_(False).eval()


def forward_context(spec: PartSpec) -> Any:
    """Return the context of a forward pass, as in training: on a GPU the model itself is bfloat16."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=not spec.on_gpu and spec.dtype == "bfloat16")


def compare(
    spec: PartSpec, model: "PreTrainedModel", pack: Pack, implementation: Implementation, failures: list[str], name: str
) -> Measurement:
    """Return time and difference of a pack; add to `failures` if the difference exceeds rounding."""
    difference = self_check.measure_difference(
        model,
        pack,
        log_probabilities=log_probabilities,
        attention=implementation,
        pad_token_id=0,
        forward_context=lambda: forward_context(spec),
        checkpointing=True,
    )
    if difference.exceeds(spec.dtype):
        failures.append(
            f"{name}: log-probabilities {difference.log_probability:.1e}, gradients {difference.gradient:.1e}"
        )
    seconds = time_pass(spec, model, pack, implementation)
    return Measurement(
        pack.tokens / seconds,
        "tokens/s",
        count_operations(model, pack) / seconds,
        details={
            "log_probability_difference": difference.log_probability,
            "gradient_difference": difference.gradient,
            "pass_seconds": seconds,
        },
    )


def time_pass(spec: PartSpec, model: "PreTrainedModel", pack: Pack, implementation: Implementation) -> float:
    """Return the seconds of the second of two forward and backward passes."""
    import torch

    seconds = 0.0
    with self_check.frozen_model(model, checkpointing=True):
        for _ in range(2):
            started_at = time.perf_counter()
            batch = collate.collate_pack(pack, "shared_prefix", model.device, 0, implementation)
            self_check.compute_pass(model, batch, log_probabilities, lambda: forward_context(spec))
            if spec.on_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started_at
    return seconds


def time_lengths(spec: PartSpec, model: "PreTrainedModel", pack: Pack) -> Measurement:
    """Return the time of a pack by FlexAttention, and how many graphs have been compiled so far."""
    from torch._dynamo.utils import counters

    seconds = time_pass(spec, model, pack, FLEX)
    details = {"pass_seconds": seconds, "compiled_graphs": int(counters["stats"]["unique_graphs"])}
    return Measurement(pack.tokens / seconds, "tokens/s", count_operations(model, pack) / seconds, details=details)


def count_operations(model: "PreTrainedModel", pack: Pack) -> float:
    """Return the operations of a forward and backward pass with frozen weights: linear layers and visible pairs.

    A weight takes 2 operations a token forward and 2 backward. A visible pair takes 4 a head and width forward
    (scores, and their product with values) and 8 backward. The layers that checkpointing computes again are not
    counted.
    """
    config = model.config
    linear = 4 * fixtures.count_linear_parameters(model) * pack.tokens
    suffixes = [row.tokens_after_prefix(pack.prefix) for row in pack.rows]
    pairs = pack.prefix**2 / 2 + sum(tokens * (pack.prefix + tokens / 2) for tokens in suffixes)
    return float(linear + 12 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers)
