"""Check whether a downloaded file is a response of the files API instead of rows.

in   {"error": {"message": "Incorrect API key provided", ...}}      saved by curl when the key was wrong
     {"object": "file", "id": "file-abc123", ...}                   saved without /content at the end of the address
     [{"messages": [...]}, ...]                                     one array in a file named .jsonl
out  RecipeError with the message of the response, and what to do
"""

import json
from pathlib import Path
from typing import Any

from insource.config.errors import RecipeError

# Responses without rows are small.
MAX_RESPONSE_BYTES = 64 << 10
START_BYTES = 64


def check_download(path: Path) -> None:
    """Raise RecipeError if the file is an error, the description of a file, a list of these, or a misnamed array."""
    if path.suffix == ".jsonl" and _read_start(path).lstrip().startswith(b"["):
        new_name = path.with_suffix(".json").name
        raise RecipeError(
            f"{path.name}: this is one JSON array, and not an object a line; rename it to {new_name}", code="INS-D008"
        )
    response = _read_object(path)
    if error := response.get("error"):
        message = error.get("message") if isinstance(error, dict) else error
        raise RecipeError(
            f"{path.name}: this is the error response of an API: {str(message)[:200]!r}; download the file again",
            code="INS-D008",
        )
    if response.get("object") in ("file", "list"):
        raise RecipeError(
            f"{path.name}: this describes files, and is not their content; download /v1/files/<id>/content",
            code="INS-D008",
        )


def _read_start(path: Path) -> bytes:
    """Return the first bytes of a file; b"" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(START_BYTES)
    except OSError:
        return b""


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that is the complete content of a small file; {} if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_RESPONSE_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
