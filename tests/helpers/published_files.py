"""Files in the form of published data sets."""

from pathlib import Path
from typing import Any

from insource.config.schema.source import SPLITS
from tests.data_prep.test_public_data_sets import Report, Splits, prepare_data
from tests.helpers.distinct_texts import distinct_texts

ROUTE = "task: {kind: classification, instruction: Choose one label for this text.}\nmodel: {base: pocket}\n"


def prepare_files(folder: Path, data: str, task: str = ROUTE) -> tuple[Splits, Report]:
    return prepare_data(folder, f"{task}data: {data}\n")


def text_label_pairs(count: int) -> list[tuple[str, str]]:
    return [(text, "ab"[n % 2]) for n, text in enumerate(distinct_texts(count))]


def texts_with_targets(splits: Splits) -> set[tuple[str, Any]]:
    return {(row["input"]["text"], row["target"]) for name in SPLITS for row in splits[name]}


SUMMARY = "task: {kind: generation, instruction: Sum up this conversation.}\nmodel: {base: pocket}\n"
