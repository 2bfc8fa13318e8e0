"""The header printed before training: model, data, packing, and estimates of time and memory.

base      Qwen/Qwen3-4B-Instruct-2507, nf4, 4,022,468,096 parameters, multiplied in bfloat16
weights   GGUF Q4_K (5.0 bits a weight), dequantized; nf4 on top of that moved the weights that it changed by 8.6%
adapter   LoRA r=16: 33,030,144 trainable parameters (0.81%)
rows      1,620 to train on, 302 to validate on, the longest of 187 tokens
teacher   210 of the 1,620 train labels are those of openai:gpt-6-luna:decisions, learnt as probabilities
left out  1 rejected (1 empty_text), 63 dropped (12 conflict, 51 duplicate); see data/data.html
batch     16 examples an update over 2 processes
packing   shared_prefix: 1,131 tokens an update instead of 9,120 (8.1 times fewer), in 2 packs
updates   306 in 3 epochs
memory    about 5.1 GB a process (estimate) of the 25.3 GB of its GPU: weights 2.7 GB, adapter 0.5 GB, a pack of 566
          tokens 1.9 GB, or decoding 64 rows at once 1.7 GB
time      known after 5 updates
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from insource.system.progress_bar import MIN_UNITS_FOR_ETA, format_duration
from train.evaluate import decoding_memory
from train.evaluate.decoding_memory import DecodingWorkload
from train.evaluate.shared_cache import CPU_LIMITS, GPU_LIMITS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Bytes of optimizer state for each trainable parameter, by train.optim; paged optimizers may keep theirs elsewhere.
OPTIMIZER_STATE_BYTES = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 0}
FLOAT32_BYTES = 4
# On a CPU, measured with the pocket model: the code that the first update loads, and the divisor of a pack's bytes that
# gives the freed memory which the C library keeps.
FIRST_UPDATE_BYTES = 150_000_000
CPU_RETAINED_DIVISOR = 3


@dataclass(frozen=True)
class MemoryEstimate:
    """An estimate of a process's peak memory in bytes."""

    weight_bytes: int
    adapter_bytes: int
    """Trainable parameters, their gradients and the optimizer's state."""
    pack_bytes: int
    """Activations, mask and logits of the longest pack."""
    pack_tokens: int
    process_bytes: int = 0
    """On a CPU: the interpreter, its libraries, and freed memory that they keep."""
    decoding_bytes: int = 0
    """Caches and activations of decoding validation rows, which happens before, between and after packs."""
    decoding_rows: int = 0
    """Rows in a decoding batch."""
    device_bytes: int | None = None
    """Usable memory of the process's GPU, None on a CPU."""

    @property
    def total(self) -> int:
        return self.weight_bytes + self.adapter_bytes + max(self.pack_bytes, self.decoding_bytes) + self.process_bytes

    @property
    def fits(self) -> bool:
        return self.device_bytes is None or self.total <= self.device_bytes


@dataclass(frozen=True)
class HeaderInfo:
    """The values of the header."""

    base: str
    quantization: str
    parameters: int
    """Parameters of the base, without the adapter."""
    compute_dtype: str
    """The type of matrix products in training: float32 or bfloat16."""
    trainable: int
    adapter: str
    """Such as `LoRA r=16`."""
    train_rows: int
    validation_rows: int
    longest_row_tokens: int
    batch_size: int
    processes: int
    packing: str
    tokens_per_update: float
    """Computed tokens, the mean over updates."""
    unpacked_tokens_per_update: float
    """The tokens of the same rows without packing."""
    packs_per_update: float
    """Packs of all processes, the mean over updates."""
    updates: int
    epochs: float
    weights_note: str | None = None
    """The loss of precision before training, see `gguf_model.describe_weight_loss`."""
    teacher_note: str | None = None
    """How many train labels are a teacher's, see `train_labels.TeacherShare`."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """{reason: rows} as in data.json."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    class_balance: str | None = None
    """Such as `classes are drawn equally often`."""
    memory: MemoryEstimate | None = None
    updates_done: int = 0
    examples_per_second: float | None = None
    """The rate of this run before an interruption (`metrics.read_last_value`)."""


def header_lines(info: HeaderInfo) -> list[str]:
    """Return the header, one line for each property."""
    trainable_fraction = info.trainable / (info.parameters + info.trainable)
    sections = {
        "base": f"{info.base}, {info.quantization}, {info.parameters:,} parameters, multiplied in {info.compute_dtype}",
        "weights": info.weights_note,
        "adapter": f"{info.adapter}: {info.trainable:,} trainable parameters ({trainable_fraction:.2%})",
        "rows": f"{info.train_rows:,} to train on, {info.validation_rows:,} to validate on, "
        f"the longest of {info.longest_row_tokens:,} tokens",
        "teacher": info.teacher_note,
        "left out": _format_left_out(info),
        "weighting": info.class_balance,
        "batch": f"{_plural(info.batch_size, 'example')} an update"
        + (f" over {info.processes} processes" if info.processes > 1 else ""),
        "packing": _format_packing(info),
        "updates": f"{info.updates:,} in {_plural(info.epochs, 'epoch')}"
        + (f", {info.updates_done:,} of them done" if info.updates_done else ""),
        "memory": _format_memory(info.memory),
        "time": _format_time(info),
    }
    return [f"{name:<9} {value}" for name, value in sections.items() if value]


def _format_left_out(info: HeaderInfo) -> str | None:
    parts = [
        f"{sum(counts.values()):,} {category} ({', '.join(f'{count:,} {reason}' for reason, count in counts.items())})"
        for category, counts in (("rejected", info.rejected), ("dropped", info.dropped))
        if sum(counts.values())
    ]
    return ", ".join(parts) + "; see data/data.html" if parts else None


def _format_packing(info: HeaderInfo) -> str:
    computed, unpacked = info.tokens_per_update, info.unpacked_tokens_per_update
    if info.packing == "none":
        return f"each row separately: {computed:,.0f} tokens an update"
    packs = f"in {_plural(info.packs_per_update, 'pack')}"
    if unpacked / computed < 1.05:
        return f"{info.packing}: {computed:,.0f} tokens an update, {packs}"
    fewer = f"{unpacked / computed:.1f} times fewer"
    return f"{info.packing}: {computed:,.0f} tokens an update instead of {unpacked:,.0f} ({fewer}), {packs}"


def _format_memory(memory: MemoryEstimate | None) -> str | None:
    if memory is None:
        return None
    parts = [f"weights {_format_bytes(memory.weight_bytes)}", f"adapter {_format_bytes(memory.adapter_bytes)}"]
    parts.append(f"a pack of {memory.pack_tokens:,} tokens {_format_bytes(memory.pack_bytes)}")
    parts += (
        [f"or decoding {_plural(memory.decoding_rows, 'row')} at once {_format_bytes(memory.decoding_bytes)}"]
        if memory.decoding_rows
        else []
    )
    parts += [f"the process itself {_format_bytes(memory.process_bytes)}"] if memory.process_bytes else []
    device_note = f" of the {_format_bytes(memory.device_bytes)} of its GPU" if memory.device_bytes is not None else ""
    summary = f"about {_format_bytes(memory.total)} a process (estimate){device_note}: {', '.join(parts)}"
    if memory.fits:
        return summary
    return (
        f"{summary}. That is more than there is: train.pack_tokens lower, train.gradient_checkpointing=true, "
        "model.quantization=nf4 or a smaller model.base take less"
    )


def _format_time(info: HeaderInfo) -> str:
    remaining_updates = info.updates - info.updates_done
    if not info.examples_per_second:
        return f"known after {MIN_UNITS_FOR_ETA} updates"
    duration = format_duration(remaining_updates * info.batch_size / info.examples_per_second)
    rate = f"at the {info.examples_per_second:.3g} examples/s of before"
    return f"about {duration} for the {remaining_updates:,} updates left, {rate}"


def _plural(count: float, noun: str) -> str:
    return f"{count:.3g} {noun}" + ("" if count == 1 else "s") if count < 1000 else f"{count:,.0f} {noun}s"


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.0f} MB"


def estimate_memory(
    model: "PreTrainedModel",
    *,
    pack_tokens: int,
    answer_tokens: int,
    mask_pairs: int,
    checkpointing: bool = False,
    optim: str = "adamw_torch",
    compute_bytes: int = 4,
    autocast: bool = False,
    shards: int = 1,
    workload: DecodingWorkload | None = None,
    device_bytes: int | None = None,
) -> MemoryEstimate:
    """Return the estimated peak memory of training this model (base and adapter) with packs of this size.

    `pack_tokens` and `answer_tokens` are those of the longest pack, its padding included. `mask_pairs` is the number of
    token pairs in its mask, 0 without a mask. `compute_bytes` is 2 for bfloat16. With `autocast` float32 weights are
    multiplied in bfloat16 (device/precision.py), so copies of the weights and the attention probabilities are kept.
    `shards` is the number of processes that the weights are sharded over (FSDP); they are unsharded while `workload` is
    decoded. `device_bytes` is the usable memory of the process's GPU. Not estimated: the overhead of a GPU's allocator,
    and the savings of FlexAttention.
    """
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapter = trainable * (2 * FLOAT32_BYTES + OPTIMIZER_STATE_BYTES.get(optim, 2 * FLOAT32_BYTES))
    model_bytes = weight_bytes(model)
    text_config = model.config.get_text_config()
    kept_pairs = mask_pairs * (text_config.num_attention_heads if autocast else 1)
    pack = _pack_bytes(text_config, pack_tokens, answer_tokens, kept_pairs, checkpointing, compute_bytes)
    pack += model_bytes // 2 // (text_config.num_hidden_layers if checkpointing else 1) if autocast else 0
    process = _process_bytes(model, model_bytes, pack)
    estimate = MemoryEstimate(
        model_bytes // shards, adapter // shards, pack, pack_tokens, process, device_bytes=device_bytes
    )
    if workload is None:
        return estimate
    extra_bytes = workload.dequantized_bytes + model_bytes - estimate.weight_bytes
    free_bytes = (
        None if device_bytes is None else device_bytes - estimate.weight_bytes - estimate.adapter_bytes - extra_bytes
    )
    limits = CPU_LIMITS if model.device.type == "cpu" else GPU_LIMITS
    # Decoding computes in the type of the weights, unlike training with autocast.
    rows, peak = decoding_memory.estimate_decoding_peak(
        text_config, workload, int(model.dtype.itemsize), limits, free_bytes
    )
    return replace(estimate, decoding_rows=rows, decoding_bytes=peak + extra_bytes)


def weight_bytes(model: "PreTrainedModel") -> int:
    """Return the bytes of the frozen weights in memory: 4-bit weights with their scales, each tensor once."""
    tensors: dict[int, int] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            state = getattr(parameter, "quant_state", None)
            scales = [getattr(state, "absmax", None), getattr(getattr(state, "state2", None), "absmax", None)]
            scales += [getattr(parameter, "SCB", None)]
            for tensor in (parameter.data, *scales):
                if tensor is not None:
                    # A tensor on the meta device has no address; its id identifies the parameter there.
                    tensors[tensor.data_ptr() or id(parameter)] = tensor.numel() * tensor.element_size()
    return sum(tensors.values())


def _pack_bytes(
    text_config: "PretrainedConfig", tokens: int, answer_tokens: int, mask: int, checkpointing: bool, compute_bytes: int
) -> int:
    """Return the bytes that a pack needs for its backward pass.

    Counted as in Korthikanti et al. (arXiv:2205.05198, section 4), for a layer with RMSNorm, a gated MLP and LoRA on
    all linear layers. A layer keeps for each token: the inputs of linear layers and of attention (4 hidden + 4
    attention); gate, up and their two products (4 intermediate); and the two residuals that the norms read in float32
    (8 bytes x hidden). SDPA converts a boolean mask to one number for each pair, and keeps it for each layer; separate
    rows need none.

    With checkpointing a layer keeps only its input and is computed again, one layer at a time. Gradients in flight take
    as much as one more layer. Logits exist only for answer tokens: as computed, and in float32 as the cast, the
    selection, the log-probabilities and their gradient.
    """
    hidden, layers = text_config.hidden_size, text_config.num_hidden_layers
    heads = text_config.num_attention_heads
    attention = heads * (getattr(text_config, "head_dim", None) or hidden // heads)
    intermediate = text_config.intermediate_size
    if experts := getattr(text_config, "num_experts_per_tok", None):
        intermediate = experts * getattr(text_config, "moe_intermediate_size", intermediate)
    layer = tokens * (4 * compute_bytes * (hidden + attention + intermediate) + 2 * FLOAT32_BYTES * hidden)
    layer += mask * compute_bytes
    retained = layers * tokens * hidden * compute_bytes + layer if checkpointing else layers * layer
    casts = 4 if compute_bytes < FLOAT32_BYTES else 3
    logits = answer_tokens * text_config.vocab_size * (compute_bytes + casts * FLOAT32_BYTES)
    return int(retained + layer + mask + logits)


def _process_bytes(model: "PreTrainedModel", weights: int, pack: int) -> int:
    """Return the bytes of this process besides the model; 0 on a GPU, whose memory has only data of the training."""
    if model.device.type != "cpu":
        return 0
    import psutil

    resident = int(psutil.Process().memory_info().rss)
    trainable = sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters() if parameter.requires_grad
    )
    other_bytes: int = max(0, resident - weights - trainable)
    return other_bytes + FIRST_UPDATE_BYTES + pack // CPU_RETAINED_DIVISOR
