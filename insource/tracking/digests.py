"""When is a result still the result? Digests of all that it depends on, and of nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from insource.config.recipe import Recipe
from insource.system import atomic_files

# Raised when the same recipe and bytes would be prepared or trained into something else.
DATA_VERSION = 4
TRAIN_VERSION = 4

TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")


def compute_data_digest(recipe: Recipe, sources: Sequence[tuple[str, str, str]]) -> str:
    """Returns the digest of prepared data: the recipe keys that it depends on, and (split, name, sha256) of sources.

    Prompt, tokenizer and limits are among them: a row longer than train.max_length leaves train, and one that no served
    model can be asked leaves validation and calibration.
    """
    keys = recipe.data.model_dump(mode="json", exclude={"source", "num_proc"})
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
    """Returns the digest of a training run: the data, the recipe keys that training reads, and a local base's bytes."""
    keys: dict[str, Any] = recipe.model_dump(mode="json", include={"model", "lora", "train", "accelerate"})
    keys["task"] = _serialize_task(recipe)
    if (base := Path(recipe.model.base)).is_dir():
        keys["model"]["base"] = hash_base_files(base)
    return atomic_files.digest([TRAIN_VERSION, data_digest, keys])


def _serialize_task(recipe: Recipe) -> str:
    """The task as text: labels and fields stand in prompt and answers in the recipe's order, which a digest of objects
    does not know."""
    return json.dumps(recipe.task.model_dump(mode="json"), ensure_ascii=False)


def hash_base_files(folder: Path) -> dict[str, str]:
    """Returns {file: sha256} of a base: weights, configuration, tokenizer, template; all but what only people read."""
    return {
        path.name: atomic_files.sha256(path) for path in folder.iterdir() if path.is_file() and path.suffix != ".md"
    }
