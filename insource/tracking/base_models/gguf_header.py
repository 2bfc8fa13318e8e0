"""The header of a GGUF file, and the obstacles to training on it, without reading weights.

    header = read_header(Path("qwen3-4b-q4_k_m.gguf"))
    header.architecture, header.parameters, header.main_type, header.bits_per_weight
    ("qwen3", 4022468096, "Q4_K", 4.97)

transformers reads the parts of a file that it supports and ignores the rest silently: scaled positions, windows,
tensors. This module and gguf_program.py refuse a file if an ignored part would change answers.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insource.config.errors import RecipeError

# Factors that scale the positions of Llama 3.1 and later, stored as a tensor. The model has no such weight.
ROPE_FACTORS_TENSOR = "rope_freqs.weight"
# Architectures whose scaled positions transformers reads.
ROPE_SCALING_ARCHITECTURES = ("gpt-oss",)


@dataclass(frozen=True)
class GgufHeader:
    """A GGUF file without its weights."""

    name: str
    """The file's name."""
    architecture: str
    values: Mapping[str, Any]
    """Its metadata without lists."""
    has_tokens: bool
    tensors: tuple[str, ...]
    types: Mapping[str, int]
    """{quantization type: number of weights stored with it}."""
    weight_bytes: int
    rope_factors: object
    """The tensor ROPE_FACTORS_TENSOR as a numpy array, None if there is none."""

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(self.types.values())

    @property
    def main_type(self) -> str:
        """The type of most weights, such as Q4_K."""
        return max(self.types, key=lambda name: self.types[name])

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight."""
        return 8 * self.weight_bytes / self.parameters

    def value(self, key: str) -> Any:
        """Return the metadata value of a key below the architecture's name, None if there is none."""
        return self.values.get(f"{self.architecture}.{key}")

    def token_id(self, name: str) -> int | None:
        """Return the id of a special token (bos, eos, eot, padding), None if the file has none."""
        value = self.values.get(f"tokenizer.ggml.{name}_token_id")
        return None if value is None else int(value)


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file. Raise RecipeError if it is damaged, truncated or of another format."""
    from gguf import GGUFReader, GGUFValueType

    size = path.stat().st_size
    try:
        reader = GGUFReader(path)
        fields = {name: field for name, field in reader.fields.items() if field.types}
        values = {name: field.contents() for name, field in fields.items() if field.types[0] != GGUFValueType.ARRAY}
        types = Counter[str]()
        for tensor in reader.tensors:
            types[tensor.tensor_type.name] += int(tensor.n_elements)
        factors = next((tensor.data.copy() for tensor in reader.tensors if tensor.name == ROPE_FACTORS_TENSOR), None)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise make_gguf_error(
            path.name, f"is damaged or cut off ({reason}; {size:,} bytes); download it again"
        ) from None
    if not values.get("general.architecture") or not reader.tensors:
        raise make_gguf_error(path.name, f"contains no model ({size:,} bytes); download it again")
    return GgufHeader(
        path.name,
        str(values["general.architecture"]),
        values,
        "tokenizer.ggml.tokens" in fields,
        tuple(tensor.name for tensor in reader.tensors),
        types,
        sum(int(tensor.n_bytes) for tensor in reader.tensors),
        factors,
    )


def check_header(header: GgufHeader) -> None:
    """Raise RecipeError if the file cannot be trained on."""
    for problem in (_find_split_problem, _find_tokenizer_problem, _find_rope_problem):
        if message := problem(header):
            raise make_gguf_error(header.name, message)


def check_config(header: GgufHeader, config: Any) -> None:
    """Raise RecipeError if the configuration made from the file lacks an attention window that the file has."""
    window, context = header.value("attention.sliding_window"), header.value("context_length")
    text = config.get_text_config()
    if window and context and window < context and getattr(text, "sliding_window", None) != window:
        message = (
            f"has layers that look back {window:,} tokens, which transformers does not read from GGUF of this kind"
        )
        raise make_gguf_error(header.name, f"{message} ({header.architecture}); use the published model")


def _find_split_problem(header: GgufHeader) -> str | None:
    count = int(header.values.get("split.count", 0))
    if count < 2:
        return None
    return f"is one of {count} parts; join them first (llama-gguf-split --merge <first part> <whole>.gguf)"


def _find_tokenizer_problem(header: GgufHeader) -> str | None:
    if not header.has_tokens or header.values.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        return "has no tokenizer (tokenizer.ggml.tokens); take a file that was made with its vocabulary"
    if not header.values.get("tokenizer.chat_template"):
        return "has no chat template (tokenizer.chat_template); take the GGUF of an instruction-tuned model"
    return None


def _find_rope_problem(header: GgufHeader) -> str | None:
    kind, factor = header.value("rope.scaling.type"), header.value("rope.scaling.factor")
    if header.architecture in ROPE_SCALING_ARCHITECTURES or (kind in (None, "none") and factor in (None, 0.0, 1.0)):
        return None
    message = (
        f"scales its positions (rope.scaling: {kind}, factor {factor}), which transformers does not read from GGUF"
    )
    return f"{message}; take the published model, a folder or a name on the hub"


def make_gguf_error(name: str, message: str) -> RecipeError:
    """Return the error that refuses a GGUF file."""
    return RecipeError(f"model.base: {name} {message}", code="INS-T003")
