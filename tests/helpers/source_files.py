"""Source files of tests, and their rows."""

from data_prep.readers.read import read
from data_prep.readers.source_row import SourceRow
from data_prep.readers.sources import find_files
from insource.config.schema.source import Source


def read_rows(source: Source, *columns: str) -> list[SourceRow]:
    return [row for file in find_files(source) for row in read(file, source, columns or ("text", "label"))[1]]
