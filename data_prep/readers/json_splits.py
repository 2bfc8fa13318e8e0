"""JSON files with several splits: an object with an array of rows for each split.

in   SourceFile("all", data_full.json, "data_full.json", "json") holding {"oos_test": [["where is it", "oos"], ...],
     "train": [["it is late", "delay"], ...], "test": [...]}
out  SourceFile("all", data_full.json, "data_full.json/oos_test", "json", array="oos_test"), ... of train and test
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

from data_prep.readers import json_format, limits
from data_prep.readers.encoding import DECOMPRESSION_ERRORS, detect_encoding, open_bytes
from data_prep.readers.limits import Limits
from data_prep.readers.source_row import SourceFile
from insource.config.errors import RecipeError
from insource.config.schema.source import Source

HEAD_BYTES = 16384
ARRAY_KEY = re.compile(r'"([A-Za-z_-]{1,40})"\s*:\s*\[')


def expand_splits(
    candidates: list[SourceFile], source: Source, parse_split: Callable[[str], str | None]
) -> tuple[list[SourceFile], list[str]]:
    """Return the files, and the names of arrays that are no split.

    A JSON file with several splits becomes one file per split. A file that cannot be read is returned unchanged, and
    its reader reports the error.
    """
    files: list[SourceFile] = []
    unread: list[str] = []
    for file in candidates:
        arguments = (file, source.encoding, limits.make_limits(source), parse_split, _file_version(file))
        arrays = _list_split_arrays(*arguments) if file.kind == "json" else ()
        splits = [key for key in arrays if parse_split(key)]
        if {"train", "test"} <= {parse_split(key) for key in splits}:
            files += [replace(file, name=f"{file.name}/{key}", array=key) for key in splits]
            unread += [f"{file.name}/{key}" for key in arrays if key not in splits]
        else:
            files.append(file)
    return files, unread


def _file_version(file: SourceFile) -> tuple[int, int]:
    """Return the modification time and the size of a file, as the cache key of its content."""
    stat = file.path.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=64)
def _list_split_arrays(
    file: SourceFile,
    encoding: str,
    size_limits: Limits,
    parse_split: Callable[[str], str | None],
    version: tuple[int, int],
) -> tuple[str, ...]:
    """Return the keys of the arrays of rows in a file that seems to have splits. `version` is part of the cache key."""
    with suppress(RecipeError, OSError, ValueError, RecursionError, *DECOMPRESSION_ERRORS):
        with open_bytes(file) as stream:
            # Split names are ASCII in any encoding, except for the zero bytes of UTF-16 and UTF-32.
            head = stream.read(HEAD_BYTES).replace(b"\0", b"").decode("ascii", "ignore").lstrip()
        if head.startswith("{") and any(parse_split(key) for key in ARRAY_KEY.findall(head)):
            content = json_format.read_json_text(file, detect_encoding(file, encoding, limits=size_limits))
            return tuple(json_format.list_arrays(file, content, size_limits))
    return ()
