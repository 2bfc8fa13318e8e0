"""Check whether a downloaded file is a response of the files API instead of rows.

in   {"error": {"message": "Incorrect API key provided", ...}}      saved by curl when the key was wrong
     {"object": "file", "id": "file-abc123", ...}                   saved without /content at the end of the address
out  RecipeError with the message of the response, and the address to use
"""

import json
from pathlib import Path
from typing import Any

from insource.config.errors import RecipeError

# Responses without rows are small.
MAX_RESPONSE_BYTES = 64 << 10


def check_download(path: Path) -> None:
    """Raise RecipeError if the file is an error, the description of a file, or a list of these."""
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


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that is the complete content of a small file; {} if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_RESPONSE_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
