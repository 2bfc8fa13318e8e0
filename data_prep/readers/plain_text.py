"""Rows of .txt files: one text per line or per file, labelled by the name of the file or folder.

    in   reviews/positive.txt holding "Good value.\\nI came back twice.\\n"            sample_by: line
    out  SourceRow("positive.txt", 2, {"text": "I came back twice.", "label": "positive", "file": "positive.txt"})

    in   imdb/train/pos/17_9.txt holding "Good value.\\nI came back twice.\\n"         sample_by: document
    out  SourceRow("train/pos/17_9.txt", 1, {"text": "Good value.\\nI came back twice.\\n", "label": "pos", ...})

A split name (train, test) is no label: the label of pos/train.txt is pos, that of reviews_test.txt is reviews.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from data_prep.readers import csv_format, limits
from data_prep.readers.encoding import (
    LONE_SURROGATE_MESSAGE,
    TextDecoding,
    check_fetched,
    detect_encoding,
    has_lone_surrogate,
    read_lines,
)
from data_prep.readers.source_row import COMPRESSIONS, SPLIT_NAMES, FileInfo, SourceFile, SourceRow
from insource.config.errors import RecipeError
from insource.config.schema.source import Source

_ANY_SPLIT_NAME = "|".join(SPLIT_NAMES)
_SPLIT_AFFIX = re.compile(rf"^(?:{_ANY_SPLIT_NAME})(?:$|[-_. ])|[-_. ](?:{_ANY_SPLIT_NAME})$", re.IGNORECASE)


def select_files(key: str, path: str, files: list[SourceFile], source: Source) -> tuple[list[SourceFile], list[str]]:
    """Return the data files of a folder or pattern, and the names of the files that are ignored.

    Without `sample_by`, .txt files beside data of another kind are ignored as notes. Documents are grouped into one
    file per folder.

    Raise RecipeError if it is ambiguous whether a file is one text or many.
    """
    texts = [file for file in files if file.kind == "txt"]
    if source.sample_by == "document":
        return _group_by_folder(files)
    if source.sample_by == "line" or not texts:
        return files, []
    if len(texts) < len(files):
        return [file for file in files if file.kind != "txt"], [file.name for file in texts]
    if len(texts) > 1 and not source.tables_in_txt:
        raise RecipeError(
            f"{key}: {path} has {len(texts)} .txt files. data.source.sample_by: document reads each as one text, "
            "labelled by its folder's name; sample_by: line reads each line as a text, labelled by its file's name; "
            "if they are tables, set delimiter or header",
            code="INS-D020",
        )
    return files, []


def read(
    file: SourceFile, decoding: TextDecoding, source: Source, columns: Collection[str]
) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties besides the encoding, and one row per line that is not blank.

    If the recipe describes a table, the rows are those of the table.
    """
    if source.tables_in_txt:
        return csv_format.read(file, decoding, source, columns)
    if source.sample_by == "document":  # a file that the recipe names itself
        return {}, iter([_read_document(file, decoding, _label_from_path(file.path.parent))])
    return {}, _read_text_lines(file, decoding)


def read_documents(folder: SourceFile, source: Source) -> tuple[FileInfo, Iterator[SourceRow]]:
    """Return the detected properties of a folder of documents, and one row per document.

    The properties are complete after all rows are read.
    """
    encodings, label = Counter[str](), _label_from_path(folder.path)
    info: FileInfo = {"kind": "documents", "encodings": encodings}

    def rows() -> Iterator[SourceRow]:
        for path in folder.documents:
            name = f"{folder.name}/{path.name}"
            file = replace(folder, path=path, name=name, kind="txt", compression=COMPRESSIONS.get(path.suffix.lower()))
            check_fetched(file)
            try:
                if not path.stat().st_size:
                    yield SourceRow(name, 1, {"text": "", "label": label, "file": name})
                    continue
                decoding = detect_encoding(file, source.encoding, limits=limits.make_limits(source), row_is="file")
            except RecipeError as error:
                yield SourceRow(name, 1, {}, str(error).removeprefix(f"{name}: ").removeprefix(f"{name}:"))
                continue
            encodings[decoding.encoding] += 1
            if decoding.guessed:
                info.update(encoding=decoding.encoding, encoding_guessed=True)
            yield _read_document(file, decoding, label)

    return info, rows()


def _group_by_folder(candidates: list[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    """Return the documents of each folder as one file, and the names that are not read.

    Text files beside folders of documents, such as a README, are not read.
    """
    texts = [file for file in candidates if file.kind == "txt"]
    ancestors = {folder for file in texts for folder in file.path.parent.parents}
    by_folder: dict[Path, list[SourceFile]] = {}
    for file in texts:
        if file.path.parent not in ancestors:
            by_folder.setdefault(file.path.parent, []).append(file)
    folders = [
        SourceFile(
            files[0].split,
            folder,
            files[0].name.rpartition("/")[0] or folder.resolve().name,
            "documents",
            documents=tuple(file.path for file in files),
        )
        for folder, files in by_folder.items()
    ]
    skipped = [file.name for file in texts if file.path.parent in ancestors]
    return [file for file in candidates if file.kind != "txt"] + folders, skipped


def _read_text_lines(file: SourceFile, decoding: TextDecoding) -> Iterator[SourceRow]:
    """Yield one row per line that is not blank."""
    label = _label_from_path(
        file.path.parent, re.sub(r"\.txt(?:\.gz|\.zst)?$", "", file.path.name, flags=re.IGNORECASE)
    )
    # A bare carriage return ends a line only if the file has no other line ends.
    newline = "\r" if set(decoding.scan.line_ends) == {"cr"} else "\n"
    for number, line in enumerate(read_lines(file, decoding, newline), start=1):
        if decoding.has_lone_surrogates and has_lone_surrogate(line):
            yield SourceRow(file.name, number, {}, LONE_SURROGATE_MESSAGE)
        elif line.strip():
            yield SourceRow(file.name, number, {"text": line.rstrip("\r\n"), "label": label, "file": file.name})


def _read_document(file: SourceFile, decoding: TextDecoding, label: str) -> SourceRow:
    """Return the text of a file as one row."""
    content = "".join(read_lines(file, decoding, newline=""))
    if decoding.has_lone_surrogates and has_lone_surrogate(content):
        return SourceRow(file.name, 1, {}, LONE_SURROGATE_MESSAGE)
    return SourceRow(file.name, 1, {"text": content, "label": label, "file": file.name})


def _label_from_path(folder: Path, *file_names: str) -> str:
    """Return the label of a path: its last name that is more than a split name."""
    folders = [name for name in reversed(folder.absolute().parts) if name.lower() not in SPLIT_NAMES]
    return next(label for label in (*(_SPLIT_AFFIX.sub("", name) for name in file_names), *folders) if label)
