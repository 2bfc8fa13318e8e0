"""Spec and result of one process, as two JSON files.

Each system runs in a process of its own, and one of them in an environment of its own. This module therefore imports
only the standard library.

    spec.json     {"system": "trl", "model": ".../model", "rows": ".../rows.jsonl", "batch_size": 16, "updates": 4, ...}
    result.json   {"version": "trl 1.16.0, ...", "raw_seconds": [11.9, 11.6, ...], "losses": [8.31, ...], ...}
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT_FILE = "result.json"
ADAPTER_DIR = "adapter"


@dataclass(frozen=True)
class PeerSpec:
    """One training, the same for every system except for how rows reach the model."""

    system: str
    folder: str
    """The folder of the trained adapter and result.json."""
    model: str
    adapter: str
    """The initial adapter of all systems."""
    rows: str
    """A JSONL file of {"prompt_ids", "completion_ids"}, in the order of training."""
    quantization: str
    batch_size: int
    updates: int
    learning_rate: float
    on_gpu: bool = False
    bfloat16: bool = False
    """Whether matrices are multiplied in bfloat16; otherwise in float32."""
    micro_batch: int = 1
    """Rows of one forward pass, for systems that pad."""
    pack_tokens: int = 0
    """Tokens of one sequence, for systems that pack; 0 is the system's default."""
    candidates: tuple[int, ...] = ()
    """Values of micro_batch or pack_tokens to be timed; if given, no adapter is kept."""

    def save(self) -> Path:
        """Write spec.json and return its path."""
        path = Path(self.folder) / "spec.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    def examples(self) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of prompt and answer of each row."""
        with Path(self.rows).open(encoding="utf-8") as lines:
            return [(row["prompt_ids"], row["completion_ids"]) for row in map(json.loads, lines)]

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        (Path(self.folder) / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")


def read_spec() -> PeerSpec:
    """Return the spec that the command line names."""
    parser = argparse.ArgumentParser(description="One system on one shape; `python -m bench.training` calls it.")
    parser.add_argument("spec", type=Path)
    values = json.loads(parser.parse_args().spec.read_text(encoding="utf-8"))
    return PeerSpec(**{**values, "candidates": tuple(values["candidates"])})


def build_features(examples: Sequence[tuple[list[int], list[int]]]) -> list[dict[str, list[int]]]:
    """Return rows in the format of trainers for pre-tokenised data; only answer tokens have labels."""
    return [
        {
            "input_ids": [*prompt, *answer],
            "labels": [-100] * len(prompt) + answer,
            "attention_mask": [1] * len(prompt + answer),
        }
        for prompt, answer in examples
    ]


def package_versions(*names: str) -> str:
    """Return the versions of packages: trl 1.16.0, peft 0.21.2."""
    return ", ".join(f"{name} {version(name)}" for name in names)
