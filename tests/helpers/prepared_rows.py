"""Small source files, and what data preparation makes of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep import prepare
from insource.config.load import load
from insource.config.schema.source import SPLITS
from insource.system import atomic_files
from tests.helpers.distinct_texts import distinct_texts

TASKS = {
    "classification": "{kind: classification, instruction: Say what it is about.}",
    "generation": "{kind: generation, instruction: Answer in one line.}",
    "preference": "{kind: preference, instruction: Answer in one line.}",
}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled_rows(count: int, **extra: Any) -> list[dict[str, Any]]:
    return [{"text": text, "label": "ab"[n % 2], **extra} for n, text in enumerate(distinct_texts(count))]


def prepare_data(
    folder: Path, data: str, task: str = "classification", *overrides: str
) -> tuple[dict[str, list[Any]], Any]:
    (folder / "r.yaml").write_text(
        f"task: {TASKS.get(task, task)}\nmodel: {{base: pocket}}\ndata: {data}\n", encoding="utf-8"
    )
    data_folder, _ = prepare.main(load(str(folder / "r.yaml"), overrides, "cpu").recipe, folder / "runs")
    splits = {name: list(atomic_files.read_jsonl(data_folder / f"{name}.jsonl")) for name in SPLITS}
    return splits, atomic_files.read_json(data_folder / "data.json")
