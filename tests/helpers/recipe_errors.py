"""A small recipe, and the errors of the loader."""

from pathlib import Path

import pytest

from insource.config.errors import RecipeError
from insource.config.load import load

VALID_RECIPE = """\
task: {kind: classification, instruction: Route the message to one queue.}
data: {source: {path: rows.csv}}
model: {base: some/model}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def load_error(path: str, *overrides: str, hardware_name: str = "gpu") -> str:
    with pytest.raises(RecipeError) as error:
        load(path, overrides, hardware_name)
    return str(error.value)
