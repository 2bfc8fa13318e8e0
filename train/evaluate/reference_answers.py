"""Reference answers: the answers of the trained weights in transformers.

The parity check compares a server's with them.

<run>/reference.jsonl     {"id": "T000017", "prompt_ids": [...], "answer": "delivery_delay", "token_ids": [...],
                           "log_probability": -0.03, "field_log_probability": null, "margin": 3.1}

They are for the first validation rows. Adapter and merged model are served on the base used in training, so both must
give the same answers.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from insource.system import atomic_files
from insource.tasks.data_row import Rows
from insource.tracking.prompt_spec import ReferenceFile
from insource.tracking.reference_row import ReferenceRow
from train.evaluate.constrained_decoding import DecodedAnswer

REFERENCE_ROWS = 500


def build_reference_rows(
    rows: Rows,
    prompts: Sequence[list[int]],
    answers: Sequence[DecodedAnswer],
    example_ids: Sequence[list[str]] = (),
) -> list[ReferenceRow]:
    """Return the rows of a reference.jsonl. `example_ids` are the train rows in each prompt; empty: none."""
    references = [
        ReferenceRow(
            id=row["id"],
            prompt_ids=prompt_ids,
            answer=answer.text,
            token_ids=answer.token_ids,
            log_probability=answer.log_probability,
            field_log_probability=answer.field_log_probability,
            # JSON has no infinity: null means that no step had a choice.
            margin=answer.margin if math.isfinite(answer.margin) else None,
        )
        for row, prompt_ids, answer in zip(rows, prompts, answers, strict=True)
    ]
    if not example_ids:
        return references
    return [
        reference.model_copy(update={"examples": ids}) for reference, ids in zip(references, example_ids, strict=True)
    ]


def write_references(folder: Path, references: Sequence[ReferenceRow]) -> ReferenceFile:
    """Write reference.jsonl into a run folder. Return its record in prompt.json."""
    text = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in references)
    atomic_files.write_text(folder / "reference.jsonl", text)
    return ReferenceFile(rows=len(references), sha256=atomic_files.sha256(folder / "reference.jsonl"))
