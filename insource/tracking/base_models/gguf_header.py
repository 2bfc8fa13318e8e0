"""What a GGUF file says of its model, and what stands against training on it, without reading weights.

    header = read(Path("qwen3-4b-q4_k_m.gguf"))
    header.architecture, header.parameters, header.main_type, header.bits     ("qwen3", 4022468096, "Q4_K", 4.97)

transformers takes what it knows of a file and passes over the rest in silence: scaled positions, windows, tensors. What
would change answers is looked for here and in gguf_program.py, and refused.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insource.config.errors import RecipeError

# Factors by which Llama 3.1 and later stretch positions, as a tensor; the model itself has none of the kind.
ROPE_FACTORS_TENSOR = "rope_freqs.weight"
# Architectures whose scaled positions transformers reads.
ROPE_SCALING_ARCHITECTURES = ("gpt-oss",)


@dataclass(frozen=True)
class GgufHeader:
    """A GGUF file without its weights."""

    name: str
    """The file's."""
    architecture: str
    values: Mapping[str, Any]
    """Its metadata, lists left out."""
    has_tokens: bool
    tensors: tuple[str, ...]
    types: Mapping[str, int]
    """{type of quantization: weights that are stored so}."""
    weight_bytes: int
    rope_factors: Any
    """The tensor of that name as a numpy array, None where there is none."""

    @property
    def parameters(self) -> int:
        """Returns how many weights there are."""
        return sum(self.types.values())

    @property
    def main_type(self) -> str:
        """Returns the type that most weights are stored in, such as Q4_K."""
        return max(self.types, key=lambda name: self.types[name])

    @property
    def bits(self) -> float:
        """Returns the bits a weight, over all of them."""
        return 8 * self.weight_bytes / self.parameters

    def value(self, key: str) -> Any:
        """Returns the metadata of a key below the architecture's name, None where there is none."""
        return self.values.get(f"{self.architecture}.{key}")

    def token_id(self, name: str) -> int | None:
        """Returns the id of a special token: bos, eos, eot, padding; None where the file names none."""
        value = self.values.get(f"tokenizer.ggml.{name}_token_id")
        return None if value is None else int(value)


def read_header(path: Path) -> GgufHeader:
    """Returns the header of a GGUF file. Raises RecipeError where it is damaged, cut off or of another kind."""
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
        raise make_gguf_error(path.name, f"is damaged or cut off ({reason}; {size:,} bytes); fetch it again") from None
    if not values.get("general.architecture") or not reader.tensors:
        raise make_gguf_error(path.name, f"holds no model ({size:,} bytes); fetch it again")
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
    """Raises RecipeError where the file cannot be trained on as it is."""
    for problem in (_find_split_problem, _find_tokenizer_problem, _find_rope_problem):
        if message := problem(header):
            raise make_gguf_error(header.name, message)


def check_config(header: GgufHeader, config: Any) -> None:
    """Raises RecipeError where the configuration that was made of the file leaves out a window that it has."""
    window, context = header.value("attention.sliding_window"), header.value("context_length")
    text = config.get_text_config()
    if window and context and window < context and getattr(text, "sliding_window", None) != window:
        message = (
            f"has layers that look back {window:,} tokens, which transformers does not read from GGUF of this kind"
        )
        raise make_gguf_error(header.name, f"{message} ({header.architecture}); take the published model")


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
    """Returns the error that a GGUF file is refused with."""
    return RecipeError(f"model.base: {name} {message}")
