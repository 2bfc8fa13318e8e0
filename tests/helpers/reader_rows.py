"""Small source files, and their rows."""

from pathlib import Path

import pytest

from data_prep.readers.read import read
from data_prep.readers.source_row import SourceRow
from data_prep.readers.sources import find_files
from insource.config.errors import RecipeError
from insource.config.schema.source import Source
from tests.helpers.malformed_files import PLAIN

COLUMNS = ("text", "label")


def read_rows(source: Source, columns: tuple[str, ...] = COLUMNS) -> list[SourceRow]:
    return [row for file in find_files(source) for row in read(file, source, columns)[1]]


def read_error(source: Source) -> str:
    with pytest.raises(RecipeError) as error:
        read_rows(source)
    return str(error.value)


def write_file(path: Path, content: bytes = PLAIN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(source: Source) -> list[tuple[str, str]]:
    return [(file.split, file.name) for file in find_files(source)]
