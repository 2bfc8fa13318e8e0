"""Dequantized base models: the weights that adapters were trained on, and that serving loads.

runs/.bases/3f2a90c17b5e44d0/   model.safetensors config.json generation_config.json tokenizer.json ...
                                base.json     {"base": {...}, "quantization": "nf4", "dtype": "float32", ...}
                                SHA256SUMS    written last

An adapter trained on NF4 weights fits the weights after NF4 quantization, and vLLM loads no NF4. The folder has those
weights dequantized. It is written once for each (base, quantization) and shared by all recipes on that base. Its name
is the digest of its inputs. A registry has such a folder too, so that deployed versions need no runs.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from insource.system import atomic_files
from insource.tracking.prompt_spec import TrainedBase

BASES_FOLDER = ".bases"
METADATA_FILE = "base.json"
# Kept free on a disk beside the weights.
RESERVED_DISK_BYTES = 2**30


def store_path(folder: Path) -> Path:
    """Return the base folder of a run or a deployed version: the nearest one above it.

    runs/classifier/<run id> -> runs/.bases; registry/classifier/versions/<version> -> registry/.bases
    """
    parent = folder.parents[2] if folder.parent.name == "versions" else folder.parents[1]
    return parent / BASES_FOLDER


def find(folder: Path, digest: str) -> Path | None:
    """Return the base with this digest for a run or a deployed version, None if it is missing or incomplete."""
    path = store_path(folder) / digest
    return path if (path / atomic_files.CHECKSUMS).is_file() else None


def read_record(path: Path, digest: str) -> TrainedBase:
    """Return the record of a base for prompt.json."""
    metadata = atomic_files.read_json(path / METADATA_FILE)
    hashes = {name: sha256 for name, sha256 in atomic_files.read_checksums(path).items() if name != METADATA_FILE}
    return TrainedBase(digest=digest, quantization=metadata["quantization"], dtype=metadata["dtype"], sha256=hashes)


@contextmanager
def lock_base(path: Path) -> Iterator[None]:
    """Hold one base for this process; wait for another holder. Concurrent runs that need it write it once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def copy_base(source: Path, target: Path) -> Path:
    """Copy a complete base to another store and return its path; hard links on the same disk. Existing ones are kept.

    Raise OSError if the disk is full; partial files are removed.
    """
    with lock_base(target):
        if not (target / atomic_files.CHECKSUMS).is_file():
            with atomic_files.atomic_folder(target) as folder:
                for path in source.iterdir():
                    _link_or_copy(path, folder / path.name)
    return target


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def disk_space_problem(path: Path, size_bytes: int) -> str | None:
    """Return the reason why a path has no room for so many bytes of weights, None if it has."""
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    if size_bytes + RESERVED_DISK_BYTES <= free:
        return None
    return f"it takes {size_bytes / 1e9:,.1f} GB on disk, and {free / 1e9:,.1f} GB are free below {path}"
