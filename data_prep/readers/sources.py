"""What a recipe names as its source, to the files that it means.

in   data.source: {path: exports/}     holding 2024/may.csv.gz, june.jsonl, notes.txt
out  SourceFile("all", exports/2024/may.csv.gz, "2024/may.csv.gz", "csv", "gz"),
     SourceFile("all", exports/june.jsonl, "june.jsonl", "jsonl", None); left out: notes.txt
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
from data_prep.readers.source_row import SPLIT_NAMES, SourceFile
from insource.config.errors import RecipeError
from insource.config.schema.data import Source
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
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
# These are compressed by themselves.
SELF_COMPRESSED = ("parquet", "xlsx")
KNOWN_SUFFIXES = f"{', '.join(FILE_KINDS)}, those of text also as {' or '.join(COMPRESSIONS)}"

# Folders beside data that hold copies, logs or leavings; so do those whose names open with a dot.
SKIPPED_FOLDERS = ("__MACOSX", "__pycache__", "_delta_log", "_temporary")


# Words in names of files: a held-out set, of which it is not plain for what.
HELD_OUT_WORDS = dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), "held out")
SPLIT_WORDS = {**SPLIT_NAMES, **HELD_OUT_WORDS, "training": "train", "testing": "test"}


def find_files(source: Source) -> list[SourceFile]:
    """Returns the files of a source in an order that does not change.

    Raises RecipeError with the recipe's key where nothing is there or nothing of it can be read, and StageError where
    the hub does not answer.
    """
    return _resolve_source(source)[0]


def find_ignored_files(source: Source) -> list[str]:
    """Returns what lies in the source's folders and is not read, because its suffix or its split is not known."""
    return _resolve_source(source)[1]


def sha256(file: SourceFile, source: Source) -> str:
    """Returns the hash of the file's bytes; of documents or a saved data set, one over all files; of the hub's, its
    commit."""
    if file.kind == "hub":
        return f"{source.hub}@{source.revision}" + (f":{source.config}" if source.config else "")
    try:
        if file.kind not in ("dataset", "documents"):
            return atomic_files.sha256(file.path)
        every = [path for path in file.documents or _walk(file.path) if not path.is_dir()]
        hashes = {path.relative_to(file.path).as_posix(): atomic_files.sha256(path) for path in every}
    except OSError as error:
        raise RecipeError(
            f"{file.name}: the file cannot be read ({error.strerror}); give this user the right to"
        ) from None
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _resolve_source(source: Source) -> tuple[list[SourceFile], list[str]]:
    if source.hub is not None:
        from data_prep.readers.arrow import columnar_format  # late: it imports Arrow

        return _make_split_files(
            "data.source.hub",
            source.hub,
            [(name, Path(source.hub)) for name in columnar_format.list_hub_splits(source)],
        )
    found: list[SourceFile] = []
    every: list[SourceFile] = []
    skipped: list[str] = []
    for split, paths in source.given.items():
        for number, given in enumerate(paths):
            key = "path" if source.path else f"paths[{number}]" if source.paths else split
            here, beside = _resolve_path(f"data.source.{key}", split, given)
            if len(here) > 1 or Path(given).is_dir():
                here, notes = plain_text.select_files(f"data.source.{key}", given, here, source)
                beside = sorted(beside + notes)
            every += here
            if split == "all":
                here, others = json_splits.expand_splits(here, source, parse_split_name)
                beside = beside + others
            found += _assign_named_splits(f"data.source.{key}", given, here) if source.path else here
            skipped += beside
    _check_unique(every)
    return _disambiguate_names(found), skipped


def _resolve_path(key: str, split: str, given: str) -> tuple[list[SourceFile], list[str]]:
    """The files behind one path of the recipe, and what beside them is not read."""
    path = Path(given)
    try:
        if path.is_dir():
            return _list_folder(key, split, path)
        if path.exists():
            return [_make_source_file(key, split, path, path.name)], []
        if glob.has_magic(given):
            return _list_glob(key, split, given)
    except OSError as error:
        raise RecipeError(f"{key}: {given} cannot be looked into ({error.strerror})") from None
    if path.is_symlink():
        raise RecipeError(f"{key}: {given} is a link to {path.readlink()}, and there is nothing")
    raise RecipeError(f"{key}: there is no file {given}")


def _make_source_file(key: str, split: str, path: Path, name: str) -> SourceFile:
    if not path.is_file():
        raise RecipeError(f"{key}: {path} is neither a file nor a folder; write what it holds to a file")
    known = detect_kind(path)
    if known is None:
        hint = "" if path.suffix else f". Name it for what it holds, such as {path.name}.tsv"
        raise RecipeError(f"{key}: {path.name}: unknown kind of file {path.suffix!r}; known: {KNOWN_SUFFIXES}{hint}")
    return SourceFile(split, path, name, *known)


def detect_kind(path: Path) -> tuple[str, str | None] | None:
    """Returns what the suffixes say: ("csv", "gz") of rows.csv.gz; None where they say nothing that can be read. A name
    that is a number alone is that of a text, as in 20 Newsgroups."""
    if re.fullmatch(r"[0-9]+\.?", path.name):
        return "txt", None
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    kind = FILE_KINDS.get(suffixes[-1]) if suffixes else None
    if kind is None or (kind in SELF_COMPRESSED and compression):
        return None
    return kind, compression


def _list_folder(key: str, split: str, folder: Path) -> tuple[list[SourceFile], list[str]]:
    saved = _read_saved_splits(folder)
    if saved is not None:
        if not saved:
            return [SourceFile(split, folder, folder.resolve().name, "dataset")], []
        inside = [(name, folder / name) for name in saved]
        if key == "data.source.path":
            return _make_split_files(key, folder.resolve().name, inside)
        if split != "all":
            raise RecipeError(f"{key}: {folder} is a data set of several splits; name one: {', '.join(saved)}")
        return [SourceFile("all", path, f"{folder.resolve().name}/{name}", "dataset") for name, path in inside], []
    every = [(path, path.relative_to(folder).as_posix()) for path in _walk(folder)]
    for path in sorted({path.parent for path, _ in every}):
        if path != folder and _read_saved_splits(path) is not None:
            raise RecipeError(f"{key}: {path} is a data set that `datasets` saved: name it outright, not its folder")
    return _partition_files(key, split, str(folder), every)


def _list_glob(key: str, split: str, pattern: str) -> tuple[list[SourceFile], list[str]]:
    # What stands before the first wildcard is the root: names of files begin below it.
    parts = Path(pattern).parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    try:
        matched = sorted(root.glob(str(Path(*parts[first:]))))
    except ValueError as error:
        raise RecipeError(f"{key}: {pattern} is no pattern of paths ({error})") from None
    every = [(path, path.relative_to(root).as_posix()) for path in matched if not path.is_dir()]
    # A hidden folder is looked into where the pattern names it, and nowhere else.
    unasked = [
        one for one in every if any(_is_hidden(part) and part not in parts for part in Path(one[1]).parent.parts)
    ]
    found, skipped = _partition_files(key, split, pattern, [one for one in every if one not in unasked])
    skipped += [name for _, name in unasked]
    inside = {parent for file in found for parent in file.path.parents}
    folders = [path for path in matched if path.is_dir() and path not in inside]
    return found, skipped + [f"{path.relative_to(root).as_posix()}/" for path in folders if path != root]


def _partition_files(
    key: str, split: str, given: str, every: list[tuple[Path, str]]
) -> tuple[list[SourceFile], list[str]]:
    """Splits the files of a folder into those to read and the rest; a dot opens names that are not meant as data."""
    found, skipped = [], []
    for path, name in every:
        if path.is_dir():
            skipped.append(f"{name}/")
        elif detect_kind(path) is None or path.name.startswith((".", "~$")):  # ~$: Excel has the file open
            skipped.append(name)
        elif path.is_symlink() and not path.exists():
            raise RecipeError(f"{key}: {name} is a link to {path.readlink()}, and there is nothing")
        else:
            found.append(_make_source_file(key, split, path, name))
    if not found:
        seen = f"; it holds {', '.join(skipped[:5])}" if skipped else ""
        raise RecipeError(f"{key}: {given} holds no file that can be read{seen}. Known: {KNOWN_SUFFIXES}")
    return found, skipped


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields all that is not a folder, in order, through linked folders too, but in no circle; of hidden folders, which
    hold copies and logs, their own paths alone."""
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or _is_hidden(path.name):
            yield path
        elif path.resolve() not in above:
            yield from _walk(path, above)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED_FOLDERS


def _read_saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder that `datasets` saved: [] where it has none, None where it is another folder."""
    described = folder / "dataset_dict.json"
    if described.is_file():
        try:
            return list(json.loads(described.read_text(encoding="utf-8"))["splits"])
        except (ValueError, KeyError, TypeError):
            raise RecipeError(f"{described}: not as `datasets` writes it; save the data set anew") from None
    return [] if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file() else None


def _make_split_files(key: str, whole: str, splits: list[tuple[str, Path]]) -> tuple[list[SourceFile], list[str]]:
    """One SourceFile a split: given splits where there is one named test, else all of them to be split by us."""
    kind = "hub" if key == "data.source.hub" else "dataset"
    named = [(name, path, f"{whole}/{name}") for name, path in splits]
    given = {SPLIT_NAMES.get(name) for name, _, _ in named}
    if "test" not in given:
        return [SourceFile("all", path, shown, kind) for _, path, shown in named], []
    if "train" not in given:
        raise RecipeError(f"{key}: {whole} has a split test and none named train; name the splits train and test")
    known = [SourceFile(SPLIT_NAMES[name], path, shown, kind) for name, path, shown in named if SPLIT_NAMES.get(name)]
    return known, [shown for name, _, shown in named if name not in SPLIT_NAMES]


def _assign_named_splits(key: str, given: str, found: list[SourceFile]) -> list[SourceFile]:
    """The files of a folder or a pattern as given splits, where their names say so: train.jsonl and test.jsonl.

    Raises RecipeError where some are named test, or train and held-out, and it is not plain what the others are.
    """
    splits = [file.split if file.kind == "dataset" else _detect_split(file) for file in found]
    if not ("test" in splits or {"train", "held out"} <= {*splits}) or len(found) < 2:
        return found
    if "train" in splits and not {None, "held out"} & {*splits}:
        return [replace(file, split=split or "all") for file, split in zip(found, splits, strict=True)]
    named = [f"{file.name} ({split or 'no split'})" for file, split in zip(found, splits, strict=True)]
    raise RecipeError(
        f"{key}: {given} holds files of given splits, as it seems, and it is not plain what each of them is: "
        f"{', '.join(named[:5])}{', ...' if len(named) > 5 else ''}.\n"
        "  To keep the given splits, write data.source: {train: ..., test: ...}; to mix all rows and split them anew, "
        "data.source: {paths: [...]}"
    )


def _detect_split(file: SourceFile) -> str | None:
    if file.kind == "documents":  # a folder of test_drives is a label
        return next(
            (SPLIT_NAMES[name] for name in reversed(Path(file.name.lower()).parts) if name in SPLIT_NAMES), None
        )
    return parse_split_name(file.name)


def parse_split_name(name: str) -> str | None:
    """Returns the split that a file's name, or a part of it between dots, opens or ends with (train-00000-of-00002,
    reviews_test, dialogs.dev), or its folder's; "held out" where it is not plain for what, None where the name tells
    nothing."""
    path = Path(name.lower())
    words: list[str] = []
    for part in path.name.split("."):
        found = [word for word in re.split(r"[^a-z]+", part) if word and word != "of"]
        words += [*found[:1], *found[-1:]]
    return next((SPLIT_WORDS[word] for word in (*words, *reversed(path.parent.parts)) if word in SPLIT_WORDS), None)


def _check_unique(found: list[SourceFile]) -> None:
    first: dict[Path, SourceFile] = {}
    for file in found:
        other = first.setdefault(file.path.resolve(), file)
        if other is not file:
            raise RecipeError(
                f"data.source: {file.path} and {other.path} are one {'folder' if file.documents else 'file'}; its rows "
                "would count twice. Name it once"
            )


def _disambiguate_names(found: list[SourceFile]) -> list[SourceFile]:
    """Lengthens names that several files share by the folders above them: train/rows.csv, test/rows.csv."""
    parts = 1
    while repeated := {name for name, count in Counter(file.name for file in found).items() if count > 1}:
        parts += 1
        found = [
            replace(file, name=Path(*file.path.parts[-parts:]).as_posix()) if file.name in repeated else file
            for file in found
        ]
    return found
