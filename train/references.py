"""Reference answers: what weights answer in transformers, kept beside them so that a server can be held to it.

adapter/reference.jsonl   {"id": "T000017", "prompt_ids": [...], "answer": "delivery_delay", "token_ids": [...],
                           "log_probability": -0.03, "margin": 3.1, "served": {"answer": ..., ...}}
merged/reference.jsonl    the same without "served"

The answer of an adapter's line is that of the weights that were trained (on an NF4 base); "served" is what the same
adapter answers on the base as it is served, unquantized. Both are of the first validation rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.schema import Recipe
from tracking import files
from train import base
from train.decode import Answer, decode
from train.validate import Decoded

ROWS = 500


def lines(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    answers: Sequence[Answer],
    served: Sequence[Answer] | None = None,
) -> list[dict[str, Any]]:
    """Returns the lines of a reference.jsonl."""
    return [
        {
            "id": row["id"],
            "prompt_ids": prompt_ids,
            **_told(answer),
            **({} if served is None else {"served": _told(served[at])}),
        }
        for at, (row, prompt_ids, answer) in enumerate(zip(rows, prompts, answers, strict=True))
    ]


def write(folder: Path, references: Sequence[Mapping[str, Any]]) -> None:
    """Writes reference.jsonl into a folder of weights."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in references)
    files.write_text(folder / "reference.jsonl", text)


def on_serving_base(recipe: Recipe, adapter: Path, decoded: Decoded) -> list[Answer]:
    """Returns what the adapter in a folder answers on the base as it is served: as published, unquantized."""
    from peft import PeftModel

    model = base.base_model(recipe.with_model(quantization="none"))
    adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).to(model.dtype)
    return of(adapted.eval(), decoded, "served")


def of(model: Any, decoded: Decoded, what: str) -> list[Answer]:
    """Returns what a model in this one process answers, with progress named `what`."""
    from train.progress import bar

    grammar = decoded.task.grammar(decoded.spec)
    with bar(what, len(decoded.prompts)) as advance:
        return decode(
            model,
            decoded.tokenizer,
            decoded.prompts,
            grammar,
            max_new_tokens=decoded.max_answer_tokens,
            on_batch=advance,
        )


def _told(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "token_ids": answer.token_ids,
        "log_probability": answer.log_probability,
        # JSON knows no infinity: null where there was never a choice.
        "margin": answer.margin if math.isfinite(answer.margin) else None,
    }
