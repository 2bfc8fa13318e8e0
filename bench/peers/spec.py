"""What one process is told, and what it tells: two JSON files, because each system runs in a process of its own and one
of them in an environment of its own. Nothing but the standard library is imported here.

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
    """One training, the same for every system but for how rows reach the model."""

    system: str
    folder: str
    """Where the trained adapter and result.json go."""
    model: str
    adapter: str
    """The adapter that everybody starts from."""
    rows: str
    """A JSONL file of {"prompt_ids", "completion_ids"}, in the order of training."""
    quantization: str
    batch_size: int
    updates: int
    learning_rate: float
    on_gpu: bool = False
    bfloat16: bool = False
    """Whether matrices are multiplied in it; float32 otherwise."""
    micro_batch: int = 1
    """Rows of one forward pass, for systems that pad."""
    pack_tokens: int = 0
    """Tokens of one sequence, for systems that pack; 0 leaves it to the system."""
    candidates: tuple[int, ...] = ()
    """Where given, nothing is trained for keeps: each is tried as micro_batch or pack_tokens, and timed."""

    def save(self) -> Path:
        """Returns the path of the file that the process reads."""
        path = Path(self.folder) / "spec.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    def examples(self) -> list[tuple[list[int], list[int]]]:
        """Returns the prompt and the answer of each row."""
        with Path(self.rows).open(encoding="utf-8") as lines:
            return [(row["prompt_ids"], row["completion_ids"]) for row in map(json.loads, lines)]

    def finish(self, result: Mapping[str, Any]) -> None:
        """Leaves result.json."""
        (Path(self.folder) / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")


def read_spec() -> PeerSpec:
    """Returns the spec that the command line names."""
    parser = argparse.ArgumentParser(description="One system on one shape; `python -m bench.training` calls it.")
    parser.add_argument("spec", type=Path)
    values = json.loads(parser.parse_args().spec.read_text(encoding="utf-8"))
    return PeerSpec(**{**values, "candidates": tuple(values["candidates"])})


def build_features(examples: Sequence[tuple[list[int], list[int]]]) -> list[dict[str, list[int]]]:
    """Returns rows as trainers take pre-tokenised data; only the answer is learnt."""
    return [
        {
            "input_ids": [*prompt, *answer],
            "labels": [-100] * len(prompt) + answer,
            "attention_mask": [1] * len(prompt + answer),
        }
        for prompt, answer in examples
    ]


def package_versions(*names: str) -> str:
    """Returns the versions of packages: trl 1.16.0, peft 0.21.2."""
    return ", ".join(f"{name} {version(name)}" for name in names)
