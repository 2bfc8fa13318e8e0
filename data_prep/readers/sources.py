"""The files of a recipe's source.

in   data.source: {path: exports/}     holding 2024/may.csv.gz, june.jsonl, notes.txt
out  SourceFile("all", exports/2024/may.csv.gz, "2024/may.csv.gz", "csv", "gz"),
     SourceFile("all", exports/june.jsonl, "june.jsonl", "jsonl", None); ignored: notes.txt
"""

import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_prep.readers import json_splits, plain_text
from data_prep.readers.source_row import COMPRESSIONS, LABELLED, SPLIT_NAMES, SourceFile
from insource.config.errors import RecipeError
from insource.config.schema.source import Source
from insource.system import atomic_files

FILE_KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}

# Formats that are not read inside .gz or .zst.
NOT_RECOMPRESSED = ("parquet", "xlsx")
KNOWN_SUFFIXES = f"{', '.join(FILE_KINDS)}, those of text also as {' or '.join(COMPRESSIONS)}"

# Folders for copies, logs and leftovers; names that begin with a dot are skipped too.
SKIPPED_FOLDERS = ("__MACOSX", "__pycache__", "_delta_log", "_temporary")
# Words in file names that mark a held-out set of unknown purpose.
HELD_OUT_WORDS = dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), "held out")
SPLIT_WORDS = {**SPLIT_NAMES, **HELD_OUT_WORDS, "training": "train", "testing": "test"}


def find_files(source: Source) -> list[SourceFile]:
    """Return the files of a source in a deterministic order.

    Raise RecipeError with the recipe key if nothing is found or nothing can be read, and StageError if the hub does not
    answer.
    """
    return _resolve_source(source)[0]


def find_ignored_files(source: Source) -> list[str]:
    """Return the names in the source's folders that are not read, because the suffix or the split is unknown."""
    return _resolve_source(source)[1]


def sha256(file: SourceFile, source: Source) -> str:
    """Return the SHA-256 of the file's bytes.

    Documents and saved data sets have one hash over all files. A hub data set has its commit.

    Raise RecipeError if a file cannot be read.
    """
    if file.kind == "hub":
        return f"{source.hub}@{source.revision}" + (f":{source.config}" if source.config else "")
    try:
        if file.kind not in ("dataset", "documents"):
            return atomic_files.sha256(file.path)
        paths = [path for path in file.documents or _walk(file.path) if not path.is_dir()]
        hashes = {path.relative_to(file.path).as_posix(): atomic_files.sha256(path) for path in paths}
    except OSError as error:
        raise RecipeError(
            f"{file.name}: the file cannot be read ({error.strerror}); give this user the right to", code="INS-D002"
        ) from None
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _resolve_source(source: Source) -> tuple[list[SourceFile], list[str]]:
    """Return the files of a source, and the names that are not read."""
    files, all_files, skipped = _resolve_own_files(source)
    for number, path in enumerate(source.labelled or ()):
        labelled, unread = _resolve_path(f"data.source.labelled[{number}]", LABELLED, path)
        files, all_files, skipped = files + labelled, all_files + labelled, skipped + unread
    _check_unique([file for file in all_files if file.kind != "hub"])
    return _disambiguate_names(files), skipped


def _resolve_own_files(source: Source) -> tuple[list[SourceFile], list[SourceFile], list[str]]:
    """Return the files without those of `labelled`: as they are read, as they are on disk, and names not read."""
    if source.hub is not None:
        from data_prep.readers.arrow import columnar_format  # late: it imports Arrow

        split_paths = [(name, Path(source.hub)) for name in columnar_format.list_hub_splits(source)]
        hub_files, unread = _make_split_files("data.source.hub", source.hub, split_paths)
        return hub_files, hub_files, unread
    files: list[SourceFile] = []
    all_files: list[SourceFile] = []
    skipped: list[str] = []
    for split, paths in source.paths_by_split.items():
        for number, path in enumerate(paths):
            key = "path" if source.path else f"paths[{number}]" if source.paths else split
            matched, unread = _resolve_path(f"data.source.{key}", split, path)
            if len(matched) > 1 or Path(path).is_dir():
                matched, notes = plain_text.select_files(f"data.source.{key}", path, matched, source)
                unread = sorted(unread + notes)
            all_files += matched
            if split == "all":
                matched, unread_arrays = json_splits.expand_splits(matched, source, parse_split_name)
                unread = unread + unread_arrays
            files += _assign_named_splits(f"data.source.{key}", path, matched) if source.path else matched
            skipped += unread
    return files, all_files, skipped


def _resolve_path(key: str, split: str, raw_path: str) -> tuple[list[SourceFile], list[str]]:
    """Return the files of one path of the recipe, and the names beside them that are not read."""
    path = Path(raw_path)
    try:
        if path.is_dir():
            return _list_folder(key, split, path)
        if path.exists():
            return [_make_source_file(key, split, path, path.name)], []
        if glob.has_magic(raw_path):
            return _list_glob(key, split, raw_path)
    except OSError as error:
        raise RecipeError(f"{key}: {raw_path} cannot be read ({error.strerror})", code="INS-D002") from None
    if path.is_symlink():
        raise RecipeError(f"{key}: {raw_path} is a link to {path.readlink()}, which does not exist", code="INS-D001")
    raise RecipeError(f"{key}: there is no file {raw_path}", code="INS-D001")


def _make_source_file(key: str, split: str, path: Path, name: str) -> SourceFile:
    """Return the source file of a path. Raise RecipeError if its kind is unknown."""
    if not path.is_file():
        raise RecipeError(f"{key}: {path} is neither a file nor a folder; write its content to a file", code="INS-D001")
    detected = detect_kind(path)
    if detected is None:
        hint = "" if path.suffix else f". Add a suffix, such as {path.name}.tsv"
        raise RecipeError(
            f"{key}: {path.name}: unknown kind of file {path.suffix!r}; known: {KNOWN_SUFFIXES}{hint}", code="INS-D003"
        )
    return SourceFile(split, path, name, *detected)


def detect_kind(path: Path) -> tuple[str, str | None] | None:
    """Return (kind, compression) by suffix: ("csv", "gz") for rows.csv.gz; None for unknown suffixes.

    A name that is only a number is a text file, as in 20 Newsgroups.
    """
    if re.fullmatch(r"[0-9]+\.?", path.name):
        return "txt", None
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    kind = FILE_KINDS.get(suffixes[-1]) if suffixes else None
    if kind is None or (kind in NOT_RECOMPRESSED and compression):
        return None
    return kind, compression


def _list_folder(key: str, split: str, folder: Path) -> tuple[list[SourceFile], list[str]]:
    """Return the files of a folder, or the splits of a data set saved in it, and the names that are not read."""
    saved_splits = _read_saved_splits(folder)
    if saved_splits is not None:
        if not saved_splits:
            return [SourceFile(split, folder, folder.resolve().name, "dataset")], []
        split_paths = [(name, folder / name) for name in saved_splits]
        if key == "data.source.path":
            return _make_split_files(key, folder.resolve().name, split_paths)
        if split != "all":
            raise RecipeError(
                f"{key}: {folder} is a data set of several splits; name one: {', '.join(saved_splits)}", code="INS-D004"
            )
        return [SourceFile("all", path, f"{folder.resolve().name}/{name}", "dataset") for name, path in split_paths], []
    entries = [(path, path.relative_to(folder).as_posix()) for path in _walk(folder)]
    for path in sorted({path.parent for path, _ in entries}):
        if path != folder and _read_saved_splits(path) is not None:
            raise RecipeError(
                f"{key}: {path} is a data set that `datasets` saved: give its path, not that of a folder above it",
                code="INS-D004",
            )
    return _partition_files(key, split, str(folder), entries)


def _list_glob(key: str, split: str, pattern: str) -> tuple[list[SourceFile], list[str]]:
    """Return the files that match a pattern, and the names that are not read.

    The path before the first wildcard is the root; file names are relative to it.
    """
    parts = Path(pattern).parts
    wildcard_index = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:wildcard_index])
    try:
        matched = sorted(root.glob(str(Path(*parts[wildcard_index:]))))
    except ValueError as error:
        raise RecipeError(f"{key}: {pattern} is not a valid path pattern ({error})", code="INS-D001") from None
    entries = [(path, path.relative_to(root).as_posix()) for path in matched if not path.is_dir()]
    # A hidden folder is read only if the pattern names it.
    hidden = [
        entry
        for entry in entries
        if any(_is_hidden(part) and part not in parts for part in Path(entry[1]).parent.parts)
    ]
    files, skipped = _partition_files(key, split, pattern, [entry for entry in entries if entry not in hidden])
    skipped += [name for _, name in hidden]
    read_folders = {parent for file in files for parent in file.path.parents}
    folders = [path for path in matched if path.is_dir() and path not in read_folders]
    return files, skipped + [f"{path.relative_to(root).as_posix()}/" for path in folders if path != root]


def _partition_files(
    key: str, split: str, raw_path: str, entries: list[tuple[Path, str]]
) -> tuple[list[SourceFile], list[str]]:
    """Return the files to read and the names of the others; names that begin with a dot are not read."""
    files, skipped = [], []
    for path, name in entries:
        if path.is_dir():
            skipped.append(f"{name}/")
        elif detect_kind(path) is None or path.name.startswith((".", "~$")):  # ~$: Excel has the file open
            skipped.append(name)
        elif path.is_symlink() and not path.exists():
            raise RecipeError(f"{key}: {name} is a link to {path.readlink()}, which does not exist", code="INS-D001")
        else:
            files.append(_make_source_file(key, split, path, name))
    if not files:
        contents = f"; it has {', '.join(skipped[:5])}" if skipped else ""
        raise RecipeError(
            f"{key}: {raw_path} has no file that can be read{contents}. Known: {KNOWN_SUFFIXES}", code="INS-D003"
        )
    return files, skipped


def _walk(folder: Path, ancestors: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield all paths that are no folder, in order.

    Linked folders are followed, but no cycles. A hidden folder, which has copies or logs, is yielded itself and not
    entered.
    """
    ancestors = (*ancestors, folder.resolve())
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or _is_hidden(path.name):
            yield path
        elif path.resolve() not in ancestors:
            yield from _walk(path, ancestors)


def _is_hidden(name: str) -> bool:
    """Return whether a folder of this name is skipped."""
    return name.startswith(".") or name in SKIPPED_FOLDERS


def _read_saved_splits(folder: Path) -> list[str] | None:
    """Return the splits of a folder saved by `datasets`: [] if it has none, None if it is another folder."""
    index_path = folder / "dataset_dict.json"
    if index_path.is_file():
        try:
            return list(json.loads(index_path.read_text(encoding="utf-8"))["splits"])
        except (ValueError, KeyError, TypeError):
            raise RecipeError(
                f"{index_path}: not a file that `datasets` wrote; save the data set again", code="INS-D012"
            ) from None
    return [] if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file() else None


def _make_split_files(
    key: str, dataset_name: str, splits: list[tuple[str, Path]]
) -> tuple[list[SourceFile], list[str]]:
    """Return one SourceFile per split, and the names that are not read.

    With a split named test they are given splits; otherwise all rows are to be split.
    """
    kind = "hub" if key == "data.source.hub" else "dataset"
    entries = [(name, path, f"{dataset_name}/{name}") for name, path in splits]
    split_names = {SPLIT_NAMES.get(name) for name, _, _ in entries}
    if "test" not in split_names:
        return [SourceFile("all", path, display_name, kind) for _, path, display_name in entries], []
    if "train" not in split_names:
        raise RecipeError(
            f"{key}: {dataset_name} has a split test but none named train; name the splits train and test",
            code="INS-D004",
        )
    files = [
        SourceFile(SPLIT_NAMES[name], path, display_name, kind)
        for name, path, display_name in entries
        if SPLIT_NAMES.get(name)
    ]
    return files, [display_name for name, _, display_name in entries if name not in SPLIT_NAMES]


def _assign_named_splits(key: str, raw_path: str, files: list[SourceFile]) -> list[SourceFile]:
    """Return the files of a folder or pattern, as given splits if their names contain split names.

    Raise RecipeError if some files are named test, or train and held-out, and the role of the others is ambiguous.
    """
    splits = [file.split if file.kind == "dataset" else _detect_split(file) for file in files]
    if not ("test" in splits or {"train", "held out"} <= {*splits}) or len(files) < 2:
        return files
    if "train" in splits and not {None, "held out"} & {*splits}:
        return [replace(file, split=split or "all") for file, split in zip(files, splits, strict=True)]
    descriptions = [f"{file.name} ({split or 'no split'})" for file, split in zip(files, splits, strict=True)]
    raise RecipeError(
        f"{key}: {raw_path} seems to have files of given splits, but the split of some files is unclear: "
        f"{', '.join(descriptions[:5])}{', ...' if len(descriptions) > 5 else ''}.\n"
        "  To keep the given splits, write data.source: {train: ..., test: ...}; to mix and split all rows again, "
        "data.source: {paths: [...]}",
        code="INS-D004",
    )


def _detect_split(file: SourceFile) -> str | None:
    """Return the split in the name of a file or folder of documents; None if there is none."""
    if file.kind == "documents":  # the folder name test_drives is a label
        return next(
            (SPLIT_NAMES[name] for name in reversed(Path(file.name.lower()).parts) if name in SPLIT_NAMES), None
        )
    return parse_split_name(file.name)


def parse_split_name(name: str) -> str | None:
    """Return the split in a file name; "held out" for a set of unknown purpose, None without a split.

    A split name counts at the start or end of a part of the name between dots (train-00000-of-00002, reviews_test,
    dialogs.dev), or as the name of a folder.
    """
    path = Path(name.lower())
    words: list[str] = []
    for part in path.name.split("."):
        tokens = [word for word in re.split(r"[^a-z]+", part) if word and word != "of"]
        words += [*tokens[:1], *tokens[-1:]]
    return next((SPLIT_WORDS[word] for word in (*words, *reversed(path.parent.parts)) if word in SPLIT_WORDS), None)


def _check_unique(files: list[SourceFile]) -> None:
    """Raise RecipeError if two paths are the same file or folder."""
    seen: dict[Path, SourceFile] = {}
    for file in files:
        previous = seen.setdefault(file.path.resolve(), file)
        if previous is not file:
            raise RecipeError(
                f"data.source: {file.path} and {previous.path} are the same {'folder' if file.documents else 'file'}; "
                "its rows would count twice. Name it once",
                code="INS-D005",
            )


def _disambiguate_names(files: list[SourceFile]) -> list[SourceFile]:
    """Prefix names that several files share with their parent folders: train/rows.csv, test/rows.csv."""
    parts = 1
    while repeated := {name for name, count in Counter(file.name for file in files).items() if count > 1}:
        parts += 1
        files = [
            replace(file, name=Path(*file.path.parts[-parts:]).as_posix()) if file.name in repeated else file
            for file in files
        ]
    return files
