"""Bodies of requests as strict JSON: UTF-8, no key twice, no NaN, not nested without end."""

import json
from collections.abc import Iterable
from typing import Any

from deploy.answers.request_errors import invalid
from insource.system.daemon_thread import in_thread

ASIDE_BYTES = 32 * 2**10
"""Larger bodies are read in a thread, so that others do not wait."""


async def read(body: bytes) -> dict[str, Any]:
    """Returns the object that a body is. Raises RefusedError saying what is wrong with it."""
    return await in_thread(strict, body) if len(body) > ASIDE_BYTES else strict(body)


def strict(body: bytes) -> dict[str, Any]:
    """Returns the object that a body is. Raises RefusedError saying what is wrong with it."""
    try:
        found = json.loads(body.decode(), object_pairs_hook=_without_twins, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the body is no JSON object: {error}") from None
    if not isinstance(found, dict):
        raise invalid("the body is no JSON object")
    return found


def _without_twins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:40]!r} is in it twice")
        found[key] = value
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
