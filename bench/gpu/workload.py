"""The rows of the GPU bench: classification with synthetic labels, each row behind the list of labels.

77 labels make 716 shared tokens under the pocket tokenizer, which is the shape of Banking77; 12 labels in small.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu.spec import PartSpec
from bench.training import workloads
from bench.training.workloads import Workload
from insource.config.base_models import POCKET

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer() -> "PreTrainedTokenizerBase":
    """Return the pocket model's tokenizer. Its ids are within the vocabulary of every shape."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(POCKET)


def count_labels(spec: PartSpec) -> int:
    """Return the number of labels."""
    return 12 if spec.small else 77


def load_rows(spec: PartSpec, tokenizer: "PreTrainedTokenizerBase", rows: int) -> Workload:
    """Return rows with prompts and answers as token ids."""
    return workloads.load_workload(f"labels_{count_labels(spec)}", tokenizer, rows, 0, Path())
