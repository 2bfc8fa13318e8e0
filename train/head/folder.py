"""The folder head/ of a run: a trained classification head, complete or absent.

head/
  adapter_model.safetensors adapter_config.json      PEFT's format, task type SEQ_CLS: LoRA and the weights of the head
  tokenizer.json tokenizer_config.json chat_template.jinja      as in adapter/
  head.json       labels in the order of the logits, task, base, learning rate, validation score; `HeadRecord`
  metrics.jsonl   every logged step of the training
  README.md SHA256SUMS

head_validation.jsonl, beside it: {"id": "T000017", "label": "delivery_delay", "log_probability": -0.03}, a line for
each validation row. It is outside of the folder because it contains ids of the data.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.system import atomic_files
from insource.tracking.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Increase it if the same run and settings would give another head.
VERSION = 1
FOLDER, RECORD_FILE, VALIDATION_FILE = "head", "head.json", "head_validation.jsonl"
# How a row becomes the input of the head, recorded in head.json.
RENDERING = (
    "the prompt of the label tokens (adapter/prompt.json), up to where the answer begins; read at its last token"
)


def compute_digest(run: Run, learning_rate: float) -> str:
    """Return the digest of everything that a head depends on: the run with its data, and the learning rate."""
    return atomic_files.digest([VERSION, run.manifest.digest, learning_rate])


def is_current(run: Run, digest: str) -> bool:
    """Return whether the run has the complete, unchanged head with this digest."""
    folder = run.folder / FOLDER
    if not (folder / RECORD_FILE).is_file() or not (folder / atomic_files.CHECKSUMS).is_file():
        return False
    return bool(read_record(run)["digest"] == digest) and not atomic_files.find_changes(folder)


def read_record(run: Run) -> dict[str, Any]:
    """Return head.json of a run."""
    record: dict[str, Any] = atomic_files.read_json(run.folder / FOLDER / RECORD_FILE)
    return record


def work_folder(run: Run, digest: str, fresh: bool = False) -> Path:
    """Return the folder of the checkpoints of an unfinished head.

    Checkpoints of other settings are removed, and with `fresh` all of them.
    """
    folder = run.folder / f".head-{digest}"
    for other in run.folder.glob(".head-*"):
        if fresh or other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    return folder


def write_validation(run: Run, ids: Sequence[str], labels: Sequence[str], log_probabilities: Sequence[float]) -> Path:
    """Write head_validation.jsonl and return it."""
    lines = [
        json.dumps({"id": row_id, "label": label, "log_probability": log_probability}, ensure_ascii=False)
        for row_id, label, log_probability in zip(ids, labels, log_probabilities, strict=True)
    ]
    atomic_files.write_text(run.folder / VALIDATION_FILE, "".join(f"{line}\n" for line in lines))
    return run.folder / VALIDATION_FILE


def write_folder(
    run: Run,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    base_name: str,
    record: Mapping[str, object],
    metrics_path: Path,
) -> Path:
    """Write the folder atomically and return it. `base_name` is the public name of the base."""
    with atomic_files.atomic_folder(run.folder / FOLDER) as folder:
        model.peft_config["default"].base_model_name_or_path = base_name
        model.save_pretrained(folder, save_embedding_layers=False)
        tokenizer.save_pretrained(folder)
        atomic_files.write_json(folder / RECORD_FILE, record)
        atomic_files.write_text(folder / "README.md", _card(run, base_name, record))
        shutil.copyfile(metrics_path, folder / "metrics.jsonl")
        atomic_files.write_checksums(folder)
    return run.folder / FOLDER


def _card(run: Run, base_name: str, record: Mapping[str, Any]) -> str:
    score = record["validation"]
    return f"""---
base_model: {base_name}
library_name: peft
pipeline_tag: text-classification
tags: [lora, insource, classification]
---

# {run.recipe_name}: a classification head

LoRA and a head of {len(record["labels"])} labels, trained by insource beside the label tokens of run `{run.id}`.
Accuracy {score["accuracy"]:.1%} on {score["n"]} validation rows, which also selected the epoch.

- Input: {record["rendering"]}.
- Labels: `head.json`, in the order of the logits.
- Loading: `AutoModelForSequenceClassification` with {len(record["labels"])} labels, then `PeftModel.from_pretrained`.
- Serving: insource does not serve it; it answers the rows of a comparison in transformers.
"""
