"""Parse request bodies as strict JSON: UTF-8, no duplicate keys, no NaN, limited nesting."""

import json
from collections.abc import Iterable
from typing import Any

from deploy.answers.request_errors import RequestError, invalid_request
from insource.system.daemon_thread import run_in_thread

THREAD_MIN_BYTES = 32 * 2**10
"""Larger bodies are parsed in a thread, so that other requests do not wait."""
MAX_DEPTH = 100
"""Maximum nesting of arrays and objects. Values that Python can parse may be too deep for it to write."""


async def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body. Raise RequestError with the problem if it is invalid."""
    return await run_in_thread(parse_object, body) if len(body) > THREAD_MIN_BYTES else parse_object(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body. Raise RequestError with the problem if it is invalid."""
    try:
        parsed = json.loads(body.decode(), object_pairs_hook=_reject_duplicate_keys, parse_constant=_reject_constant)
    except UnicodeDecodeError as error:
        raise invalid_request(f"the body is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise _nested_too_deeply() from None
    except ValueError as error:
        raise invalid_request(f"the body is no JSON object: {error}") from None
    if not isinstance(parsed, dict):
        raise invalid_request("the body is no JSON object")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_deeper(parsed, MAX_DEPTH):
        raise _nested_too_deeply()
    return parsed


def _nested_too_deeply() -> RequestError:
    return invalid_request(f"the body is nested too deeply; allowed: {MAX_DEPTH} levels")


def _is_deeper(value: Any, max_depth: int) -> bool:
    """Return whether arrays and objects are nested more than `max_depth` levels deep."""
    level = [value]
    for _ in range(max_depth):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _reject_duplicate_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key[:40]!r} is in it twice")
        fields[key] = value
    return fields


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
