"""The process that answers rows with a trained head: `python -m train.head.predict RUN ROWS.jsonl ANSWERS.json`.

in    {"key": "test/T000017", "input": {"text": "my parcel is late"}, "timed": true}
out   {"labels": ["late", "lost"], "batch": {"rows": 2055, "seconds": 21.4, "tokens": 560210, "size": 32},
       "answers": {"test/T000017": {"log_probabilities": [-0.1, -2.4], "tokens": 231, "seconds": 0.011}}}

All rows are answered in batches, whose time gives the throughput. Then each timed row is answered once more by itself;
"seconds" is that time. Both times include the rendering and tokenization of the prompts. The process ends afterwards,
so its memory is free for others.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import cli
from insource.system import atomic_files
from insource.tasks import load_task_spec
from insource.tasks.data_row import RowInput, TimedInput
from insource.tracking.run import Run
from train.device import gpu, malloc
from train.device.environment import QUIET_ENV

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows that are answered before the clock starts: the first passes allocate memory and compile kernels.
WARM_UP_ROWS = 4


def main() -> int:
    """Answer the rows and write the answers. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.head.predict", description="Answer rows with a head.")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("rows", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    run = Run(arguments.run)
    recipe = run.recipe()
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    # A local base needs no hub. Without this a machine without network would wait for time-outs.
    if Path(recipe.model.base).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    gpu.check_gpu(recipe)
    if recipe.accelerate.use_cpu:
        malloc.disable_malloc_trim()
    answers = answer_rows(run, list(atomic_files.read_jsonl(arguments.rows)), arguments.batch_size)
    atomic_files.write_json(arguments.answers, answers)
    return cli.OK


def answer_rows(run: Run, rows: Sequence[TimedInput], batch_size: int) -> dict[str, Any]:
    """Return the answers of the run's head to these rows, with their times."""
    from insource.system import progress_bar
    from insource.tasks.rendering import chat_template
    from train.head import folder as head_folder
    from train.head import model as head_model

    record = head_folder.read_record(run)
    task, spec = load_task_spec(record["task"])
    tokenizer = chat_template.load_saved_tokenizer(str(run.folder / head_folder.FOLDER))
    model = head_model.load_trained_head(run.recipe(), run)

    def encode(row_inputs: Sequence[RowInput]) -> list[list[int]]:
        return chat_template.encode_prompts(tokenizer, [task.messages(spec, row_input) for row_input in row_inputs])

    inputs = [row["input"] for row in rows]
    predict_batches(model, encode(inputs[:WARM_UP_ROWS]), tokenizer.pad_token_id, WARM_UP_ROWS)
    with progress_bar.show_progress("answered", len(rows)) as advance:
        started_at = time.perf_counter()
        prompts = encode(inputs)
        log_probabilities = predict_batches(
            model, prompts, tokenizer.pad_token_id, batch_size, lambda done: advance(done, "head")
        )
        batch_seconds = time.perf_counter() - started_at
    seconds: list[float | None] = []
    for row in rows:
        started_at = time.perf_counter()
        if row["timed"]:
            predict_batches(model, encode([row["input"]]), tokenizer.pad_token_id, 1)
        seconds.append(time.perf_counter() - started_at if row["timed"] else None)
    return {
        "labels": record["labels"],
        "batch": {
            "rows": len(rows),
            "seconds": batch_seconds,
            "tokens": sum(map(len, prompts)),
            "size": batch_size,
        },
        "answers": {
            row["key"]: {"log_probabilities": values, "tokens": len(prompt), "seconds": row_seconds}
            for row, prompt, values, row_seconds in zip(rows, prompts, log_probabilities, seconds, strict=True)
        },
    }


def predict_batches(
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    pad_token_id: int,
    batch_size: int,
    on_batch: Any = lambda done: None,
) -> list[list[float]]:
    """Return for each prompt the natural-log probability of every label. Batches have prompts of similar lengths."""
    import torch

    from train.model import classification_head

    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    predicted: dict[int, list[float]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            logits = classification_head.compute_padded_logits(
                model, [prompts[index] for index in indices], pad_token_id
            )
            predicted |= dict(zip(indices, torch.log_softmax(logits, dim=-1).tolist(), strict=True))
            on_batch(len(predicted))
    return [predicted[index] for index in range(len(prompts))]


if __name__ == "__main__":
    cli.run_cli(main)
