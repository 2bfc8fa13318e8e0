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
    keys["task"] = _serialize_task(recipe)
    if not recipe.train.soft_labels:
        # The digest of a run without them does not depend on the key.
        del keys["train"]["soft_labels"]
    if (base := Path(recipe.model.base)).is_dir():
        keys["model"]["base"] = hash_base_files(base)
    return atomic_files.digest([TRAIN_VERSION, data_digest, keys])


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
