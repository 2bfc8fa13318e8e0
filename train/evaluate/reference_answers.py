"""Reference answers: the answers of the trained weights in transformers.

The parity check compares a server's with them.

<run>/reference.jsonl     {"id": "T000017", "prompt_ids": [...], "answer": "delivery_delay", "token_ids": [...],
                           "log_probability": -0.03, "field_log_probability": null, "margin": 3.1}

They are for the first validation rows. Adapter and merged model are served on the base used in training, so both must
give the same answers.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from insource.system import atomic_files
from train.evaluate.constrained_decoding import DecodedAnswer

REFERENCE_ROWS = 500


def build_reference_rows(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    answers: Sequence[DecodedAnswer],
) -> list[dict[str, Any]]:
    """Return the lines of a reference.jsonl."""
    return [
        {"id": row["id"], "prompt_ids": prompt_ids, **_to_json(answer)}
        for row, prompt_ids, answer in zip(rows, prompts, answers, strict=True)
    ]


def write_references(folder: Path, references: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write reference.jsonl into a run folder. Return its public facts: {"rows", "sha256"}."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in references)
    atomic_files.write_text(folder / "reference.jsonl", text)
    return {"rows": len(references), "sha256": atomic_files.sha256(folder / "reference.jsonl")}


def _to_json(answer: DecodedAnswer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "token_ids": answer.token_ids,
        "log_probability": answer.log_probability,
        "field_log_probability": answer.field_log_probability,
        # JSON has no infinity: null means that no step had a choice.
        "margin": answer.margin if math.isfinite(answer.margin) else None,
    }
