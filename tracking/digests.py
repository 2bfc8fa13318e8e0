"""When is a result still the result? Digests of all that it depends on, and of nothing else."""

from pathlib import Path
from typing import Any

from recipes.schema import Recipe
from tracking import files

# Raised when the same recipe and bytes would be prepared or trained into something else.
DATA_VERSION = 1
TRAIN_VERSION = 1


def of_data(recipe: Recipe) -> str:
    """Returns the digest of prepared data: the recipe keys that preparation reads, and the bytes of the source."""
    source = recipe.data.source
    keys = recipe.data.model_dump(mode="json", exclude={"source"})
    hashes = {split: files.sha256(Path(path)) for split, path in source.files.items()}
    named = {"kind": recipe.task.kind, "labels": recipe.task.labels, "redact": recipe.privacy.redact}
    return files.digest([DATA_VERSION, named, keys, hashes])


def of_training(recipe: Recipe, data_digest: str) -> str:
    """Returns the digest of a training run: the data, the recipe keys that training reads, and a local base's bytes."""
    keys: dict[str, Any] = recipe.model_dump(mode="json", include={"task", "model", "lora", "train", "accelerate"})
    if (base := Path(recipe.model.base)).is_dir():
        # Weights, configuration, tokenizer, template: all but what only people read.
        keys["model"]["base"] = {
            path.name: files.sha256(path) for path in base.iterdir() if path.is_file() and path.suffix != ".md"
        }
    return files.digest([TRAIN_VERSION, data_digest, keys])
