"""`python -m bench.gpu_memory`: memory of published models on common GPUs, written into docs/training.md.

The figures are computed, not measured: the models are on PyTorch's meta device, which has shapes and no weights. The
estimates are those of the header before training (train/report/run_header.py, train/evaluate/decoding_memory.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import docs_tables
from insource.config.schema.lora import Lora
from train.evaluate import decoding_memory
from train.evaluate.decoding_memory import DecodingWorkload
from train.model import base
from train.report import run_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DOCS = Path(__file__).parent.parent / "docs" / "training.md"
GPU_SIZES_GIB = (16, 24, 48, 80)
# Half a byte a weight, a byte for each 64 weights, a float32 for each 256 of those bytes.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# From config.json of each model on the hub.
BASES: dict[str, tuple[str, dict[str, object]]] = {
    "Qwen3-4B": ("qwen3", {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728,
                           "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
                           "head_dim": 128, "tie_word_embeddings": True}),
    "Qwen2.5-7B": ("qwen2", {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
                             "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                             "tie_word_embeddings": False}),
    "Llama-3.1-8B": ("llama", {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
                               "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                               "tie_word_embeddings": False}),
    "Qwen3-14B": ("qwen3", {"vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 17408,
                            "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 8,
                            "head_dim": 128, "tie_word_embeddings": False}),
}  # fmt: skip
# A pack of the default length with short answers; then rows with one of 77 labels, and documents.
PACK_SETTINGS: dict[str, Any] = {
    "pack_tokens": 8192,
    "answer_tokens": 512,
    "mask_pairs": 0,
    "checkpointing": True,
    "compute_bytes": 2,
}
LABEL_DECODING, DOCUMENT_DECODING = DecodingWorkload(64, 700, 109), DecodingWorkload(64, 500, 1500)


def build_meta_model(name: str) -> "PreTrainedModel":
    """Return a base in bfloat16, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, shape = BASES[name]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape), dtype=torch.bfloat16).eval()


def build_adapted_model(name: str) -> "PreTrainedModel":
    """Return a base with the default LoRA adapter of recipes, without weights."""
    import torch

    with torch.device("meta"):
        return base.add_adapter(build_meta_model(name), Lora(), 1)


def count_nf4_weights(model: "PreTrainedModel") -> int:
    """Return the number of weights that NF4 packs: those of all linear layers but the head."""
    import torch

    head = model.get_output_embeddings()
    layers = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head)
    return sum(layer.weight.numel() for layer in layers if not layer.weight.requires_grad)


def nf4_bytes(model: "PreTrainedModel") -> int:
    """Return the bytes of a base with linear layers in NF4, computed from shapes."""
    return int(run_header.weight_bytes(model) - count_nf4_weights(model) * (2 - NF4_BYTES))


def table_row(name: str) -> str:
    """Return the line of a base in the table."""
    model = build_adapted_model(name)
    weights = nf4_bytes(model)
    estimate = run_header.estimate_memory(model, **PACK_SETTINGS)
    training = weights + estimate.adapter_bytes + estimate.pack_bytes
    cells = [f"{weights / 1e9:.1f}", f"{training / 1e9:.1f}"]
    for gib in GPU_SIZES_GIB:
        usable = decoding_memory.usable_bytes(gib * 2**30)
        # As in train/model/dequantize.py during validation: weights stay dequantized if they take at most 40%.
        dequantized_bytes = count_nf4_weights(model) * 2
        if dequantized_bytes > dequantized_memory_fraction() * gib * 2**30:
            dequantized_bytes = 0
        free_bytes = usable - weights - estimate.adapter_bytes - dequantized_bytes
        row_counts = [_concurrent_rows(model, workload, free_bytes) for workload in (LABEL_DECODING, DOCUMENT_DECODING)]
        cells.append(f"{row_counts[0]}, {row_counts[1]}" if training <= usable and min(row_counts) else "no")
    return f"| {name} | {' | '.join(cells)} |"


def dequantized_memory_fraction() -> float:
    """Return the fraction of memory that dequantized weights may take."""
    from train.model import dequantize

    return dequantize.MAX_MEMORY_FRACTION


def _concurrent_rows(model: "PreTrainedModel", workload: DecodingWorkload, free_bytes: int) -> int:
    """Return the number of rows decoded concurrently, 0 if not even one fits."""
    from train.evaluate.shared_cache import GPU_LIMITS

    rows, peak = decoding_memory.estimate_decoding_peak(
        model.config.get_text_config(), workload, 2, GPU_LIMITS, free_bytes
    )
    return rows if peak <= free_bytes else 0


def memory_table() -> str:
    """Return the table in Markdown."""
    cards = " | ".join(f"{gib} GB card" for gib in GPU_SIZES_GIB)
    head = f"| base | NF4 weights, GB | training, GB | {cards} |\n|{'---|' * (3 + len(GPU_SIZES_GIB))}\n"
    return head + "\n".join(map(table_row, BASES))


def write_table(page: Path) -> None:
    """Write the table into a page. Raise StageError if its marks are missing."""
    docs_tables.replace_section(page, "gpu_memory", memory_table())


if __name__ == "__main__":
    write_table(DOCS)
    print(memory_table())
