"""The prepared rows of a recipe: what the linear model learns from, and what is never proposed for labelling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from insource.text.split_hash import hash_texts
from insource.text.text_keys import duplicate_key


@dataclass(frozen=True)
class PreparedRows:
    """Texts of all splits, labels of train, and groups of the held-out splits."""

    texts: Mapping[str, Sequence[str]]
    """{split: texts}."""
    train_targets: Sequence[Any]
    key_splits: Mapping[int, str]
    """{hash of a duplicate key: split}."""
    held_out_groups: Mapping[str, str]
    """{group: its held-out split}."""

    def find_split(self, text: str) -> str | None:
        """Return the split that has this text, up to case, punctuation and spacing; None if there is none."""
        return self.key_splits.get(hash_key(text))


def read_prepared(folder: Path) -> PreparedRows:
    """Return the rows of a folder of prepared data. Only their texts, groups and train targets stay in memory."""
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    targets: list[Any] = []
    key_splits: dict[int, str] = {}
    groups: dict[str, str] = {}
    for split in SPLITS:
        for row in atomic_files.read_jsonl(folder / f"{split}.jsonl"):
            text = row["input"]["text"]
            texts[split].append(text)
            key_splits.setdefault(hash_key(text), split)
            if split == "train":
                targets.append(row["target"])
            elif row["group"] is not None:
                groups.setdefault(row["group"], split)
    return PreparedRows(texts, targets, key_splits, groups)


def hash_key(text: str) -> int:
    """Return the hash of a text's duplicate key."""
    return int(hash_texts([duplicate_key(text)], 0)[0])
