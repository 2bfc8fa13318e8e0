"""Digests of everything that prepared data and training runs depend on, and of nothing else.

An equal digest means that the result is still valid.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from insource.config.recipe import Recipe
from insource.system import atomic_files

# Incremented when the same recipe and bytes give other prepared data, or another training run.
DATA_VERSION = 4
TRAIN_VERSION = 4

TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")


def compute_data_digest(recipe: Recipe, sources: Sequence[tuple[str, str, str]]) -> str:
    """Return the digest of prepared data: the recipe keys that it depends on, and the sources (split, name, sha256).

    The labels of a teacher are one of the sources. Its settings are not included: their effect is in its labels.

    Prompt, tokenizer and limits are included. A row longer than train.max_length is dropped from train. A row that no
    served model accepts is dropped from validation and calibration.
    """
    keys = recipe.data.model_dump(mode="json", exclude={"source", "num_proc", "teacher"})
    dialect = recipe.data.source.model_dump(
        mode="json",
        include={
            *("encoding", "delimiter", "header", "quotes", "escape", "sheet", "sample_by"),
            *("max_row_mib", "max_unpacked_mib"),
        },
    )
    limits = {"max_length": recipe.train.max_length, "max_model_len": recipe.serve.max_model_len}
    prompt = {"task": _serialize_task(recipe), **limits}
    base: Any = [recipe.model.base, recipe.model.revision]
    if (folder := Path(recipe.model.base)).is_dir():
        base = {name: atomic_files.sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).exists()}
    base = [base, recipe.model.template.model_dump(mode="json"), recipe.model.stop]
    return atomic_files.digest(
        [DATA_VERSION, keys, dialect, prompt, base, recipe.privacy.redact, [list(source) for source in sources]]
    )


def compute_training_digest(recipe: Recipe, data_digest: str) -> str:
    """Return the digest of a training run: the data, the recipe keys that training reads, and a local base's bytes."""
    keys: dict[str, Any] = recipe.model_dump(mode="json", include={"model", "lora", "train", "accelerate"})
    # Runs of earlier versions, which lack these keys, keep their digest.
    if recipe.train.max_train_rows is None:
        del keys["train"]["max_train_rows"]
    if not recipe.train.soft_labels:
        del keys["train"]["soft_labels"]
    if not recipe.train.shots:
        del keys["train"]["shots"]
    keys["task"] = _serialize_task(recipe)
    keys["model"] = _serialize_model(recipe)
    return atomic_files.digest([TRAIN_VERSION, data_digest, keys])


def compute_untuned_digest(recipe: Recipe, data_digest: str, max_answer_tokens: int) -> str:
    """Return the digest of the untuned base's answers to the validation rows."""
    keys = {"model": _serialize_model(recipe), "task": _serialize_task(recipe), "use_cpu": recipe.accelerate.use_cpu}
    return atomic_files.digest([TRAIN_VERSION, data_digest, keys, max_answer_tokens])


def _serialize_model(recipe: Recipe) -> dict[str, Any]:
    """Return the section model, with the hashes of a local base in place of its path."""
    keys: dict[str, Any] = recipe.model.model_dump(mode="json")
    if (base := Path(recipe.model.base)).is_dir():
        keys["base"] = hash_base_files(base)
    return keys


def _serialize_task(recipe: Recipe) -> str:
    """Return the task as JSON text.

    Text, because a digest of objects ignores the order of labels and fields, which prompt and answers keep.
    """
    return json.dumps(recipe.task.model_dump(mode="json"), ensure_ascii=False)


def hash_base_files(folder: Path) -> dict[str, str]:
    """Return {file: sha256} of a base model: all files except Markdown."""
    return {
        path.name: atomic_files.sha256(path) for path in folder.iterdir() if path.is_file() and path.suffix != ".md"
    }
