"""A file of a source to its rows, whatever its format."""

from collections.abc import Collection, Iterator

from data_prep import text_formats
from data_prep.encoding import check_fetched
from data_prep.source_row import About, SourceFile, SourceRow
from recipes.schema_data import Source


def read(file: SourceFile, source: Source, columns: Collection[str]) -> tuple[About, Iterator[SourceRow]]:
    """Returns what was found out about the file, and its rows.

    `columns` are those that the recipe needs: the delimiter is the one that finds them. A row that cannot be read comes
    with its problem. Raises RecipeError where the file cannot be read as such, at once or, for what only shows further
    down, while the rows are read; StageError where the hub does not answer.
    """
    if file.kind not in ("hub", "dataset"):
        check_fetched(file)
    if file.kind in text_formats.FORMATS:
        return text_formats.read(file, source, columns)
    from data_prep import columnar_formats  # late: it imports Arrow

    return columnar_formats.read(file, source, columns)
