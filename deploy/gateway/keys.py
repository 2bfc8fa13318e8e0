"""API keys of the gateway: one from the environment, several from a file, or none on a loopback address.

INSOURCE_API_KEY=...                     the key of the client "default"
INSOURCE_API_KEYS_FILE=/etc/insource/keys  one client per line: its name, a space, its key; # starts a comment

    team-a  5f0c...
    batch   91d2...   # the nightly job

The file is read again whenever it changes, so keys are added and revoked without a restart. Only hashes are kept in
memory. Every request is compared with all of them, so that the response time does not reveal how much of a key matches.
"""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from insource.config.errors import RecipeError
from serve.vllm.launch_plan import API_KEY_VARIABLE
from serve.vllm.server_process import Address

KEYS_FILE = "INSOURCE_API_KEYS_FILE"
MIN_KEY_CHARACTERS = 16
DEFAULT_CLIENT, ANONYMOUS = "default", "-"
_LINE_PATTERN = re.compile(r"(\S+)\s+(\S+)")
_COMMENT_PATTERN = re.compile(r"(^|\s)#.*")


class Keys:
    """The currently valid keys."""

    def __init__(self, api_key: str | None = None, file: Path | None = None) -> None:
        """Raise RecipeError if the file cannot be read or has an invalid line."""
        self._default = {DEFAULT_CLIENT: _hash(api_key)} if api_key else {}
        self._file, self._last_state = file, _file_state(file)
        self._client_keys = read_keys(file) if file else {}

    @property
    def required(self) -> bool:
        """True if a request needs a key."""
        return bool(self._default) or self._file is not None

    def identify_client(self, headers: Mapping[str, str]) -> str | None:
        """Return the client that owns the key of a request, None without a valid key.

        The key is in the header that OpenAI's clients send (Authorization: Bearer) or Anthropic's (x-api-key).
        """
        if not self.required:
            return ANONYMOUS
        scheme, _, bearer = headers.get("Authorization", "").partition(" ")
        key_hash = _hash(bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        client = None
        for name, valid_hash in {**self._default, **self._client_keys}.items():
            if hmac.compare_digest(key_hash, valid_hash):
                client = name
        return client

    def refresh(self) -> str | None:
        """Read the file again if it has changed. Return a log message, None if it has not changed.

        If the file cannot be read, the previous keys remain valid.
        """
        if self._file is None or (state := _file_state(self._file)) == self._last_state:
            return None
        self._last_state = state
        try:
            self._client_keys = read_keys(self._file)
        except RecipeError as error:
            return f"not read again, the previous keys stay valid: {error.message_with_code}"
        return f"read again: {', '.join(self._client_keys)}"


def load_keys(address: Address, loopback_without_key: bool) -> Keys:
    """Return the keys from the environment. Raise RecipeError if one is needed and none is set."""
    file = os.environ.get(KEYS_FILE) or None
    keys = Keys(os.environ.get(API_KEY_VARIABLE) or None, Path(file) if file else None)
    if keys.required or (address.is_local and loopback_without_key):
        return keys
    if not address.is_local:
        raise RecipeError(
            f"serve.host: {address.host} can be reached from other machines, and there is no key: set "
            f"{API_KEY_VARIABLE} or {KEYS_FILE} in the environment",
            code="INS-E004",
        )
    raise RecipeError(
        f"serve.loopback_without_key: there is no key: `export {API_KEY_VARIABLE}=$(openssl rand -hex 32)`, or "
        f"name a file of keys in {KEYS_FILE}, or allow every user of this machine with "
        "SET=serve.loopback_without_key=true",
        code="INS-E004",
    )


def read_keys(file: Path) -> dict[str, bytes]:
    """Return the hash of each client's key. Raise RecipeError with the number of an invalid line, never with a key."""
    try:
        mode, lines = file.stat().st_mode, file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{KEYS_FILE}: {file} cannot be read: {error}", code="INS-G007") from None
    if mode & stat.S_IWOTH:
        raise RecipeError(
            f"{KEYS_FILE}: every user of this machine can write {file}; run chmod o-w {file}", code="INS-G007"
        )
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        entry = _COMMENT_PATTERN.sub("", line).strip()
        if not entry:
            continue
        match = _LINE_PATTERN.fullmatch(entry)
        if not match or len(match[2]) < MIN_KEY_CHARACTERS:
            problem = f"a key has at least {MIN_KEY_CHARACTERS} characters" if match else "a line is a name and a key"
            raise RecipeError(f"{KEYS_FILE}: {file}:{number}: {problem}", code="INS-G007")
        if match[1] in hashes or match[1] in (DEFAULT_CLIENT, ANONYMOUS):
            raise RecipeError(f"{KEYS_FILE}: {file}:{number}: the name {match[1]} is taken", code="INS-G007")
        hashes[match[1]] = _hash(match[2])
    if not hashes:
        raise RecipeError(f"{KEYS_FILE}: {file} has no key; a line is a name and a key", code="INS-G007")
    return hashes


def _hash(key: str) -> bytes:
    # Header bytes that are not UTF-8 arrive as surrogates.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _file_state(file: Path | None) -> tuple[int, int, int] | None:
    """Return a value that changes when the file is written or replaced."""
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
