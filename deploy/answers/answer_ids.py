"""Ids of answers. They link feedback to an answer although no answer is stored.

An id has 62 characters, "AWrk3Xq0...". It contains the deployment, the answering system, whether the threshold kept the
answer, the confidence, a keyed digest of the answer, and a signature. Feedback consists of the id and the right answer;
comparing digests shows whether they are equal. The key is in registry/<name>/answers.key and is shared by all gateways
of that registry.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from insource.system import shared_jsonl

KEY_FILE = "answers.key"
KEY_BYTES = 32
_DESCRIPTION = "the key of answers' ids"
_DAY_SECONDS = 86_400
_FORMAT_VERSION = 1
_LAYOUT = struct.Struct(">B8s8s8sHhB")
_SIGNATURE_BYTES = 16
_LOCAL, _KEPT, _MIRRORED, _RECORDED = 1, 2, 4, 8


@dataclass(frozen=True)
class AnswerRecord:
    """The contents of an answer id."""

    deployment_id: str
    """Version and routing.json (`Task.deployment_id`), 16 hex digits."""
    digest: str
    """Keyed digest of the answer, 16 hex digits."""
    local: bool
    """True if the deployed model gave the answer."""
    kept: bool = False
    """True if its confidence reached the threshold: the guarantee covers these answers."""
    mirrored: bool = False
    """True if the deployed model answered too, off the client's path."""
    recorded: bool = False
    """True if the input is in the traffic record."""
    confidence: float | None = None
    """Confidence of the deployed model's answer, rounded to thousandths."""
    day: int = 0
    """Day of the answer, in days since 1970 (UTC)."""
    name: str = ""
    """Name of the answer, 16 hex digits."""


class AnswerIds:
    """The answer ids of one registry folder."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(KEY_BYTES)

    def digest(self, answer: str) -> str:
        """Return a keyed digest. Equal answers have equal digests; without the key it does not reveal the answer."""
        return hmac.digest(self._key, b"answer\0" + answer.encode("utf-8", "surrogatepass"), hashlib.sha256)[:8].hex()

    def seal(self, record: AnswerRecord) -> tuple[str, str]:
        """Return the id of an answer that is given now, and its name."""
        name = secrets.token_hex(8)
        thousandths = -1 if record.confidence is None else round(1000 * record.confidence)
        flags = _LOCAL * record.local + _KEPT * record.kept + _MIRRORED * record.mirrored + _RECORDED * record.recorded
        fields = (bytes.fromhex(part) for part in (name, record.deployment_id, record.digest))
        packed = _LAYOUT.pack(_FORMAT_VERSION, *fields, int(time.time()) // _DAY_SECONDS, thousandths, flags)
        return base64.urlsafe_b64encode(packed + self._signature(packed)).decode().rstrip("="), name

    def open(self, answer_id: str) -> AnswerRecord | None:
        """Return the contents of an id, None if it is not an id of this registry folder."""
        try:
            raw = base64.b64decode(answer_id + "=" * (-len(answer_id) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            return None
        packed, signature = raw[: _LAYOUT.size], raw[_LAYOUT.size :]
        if len(packed) < _LAYOUT.size or not hmac.compare_digest(signature, self._signature(packed)):
            return None
        format_version, name, deployment_id, digest, day, thousandths, flags = _LAYOUT.unpack(packed)
        if format_version != _FORMAT_VERSION:
            return None
        return AnswerRecord(
            deployment_id.hex(),
            digest.hex(),
            local=bool(flags & _LOCAL),
            kept=bool(flags & _KEPT),
            mirrored=bool(flags & _MIRRORED),
            recorded=bool(flags & _RECORDED),
            confidence=None if thousandths < 0 else thousandths / 1000,
            day=day,
            name=name.hex(),
        )

    def _signature(self, packed: bytes) -> bytes:
        return hmac.digest(self._key, b"id\0" + packed, hashlib.sha256)[:_SIGNATURE_BYTES]


def load_answer_ids(registry_dir: Path) -> AnswerIds:
    """Return the ids of registry/<name>; create the key if there is none.

    Only this user may read the key, regardless of INSOURCE_UMASK: with it, digests reveal equal answers. Raise
    StageError if it cannot be written.
    """
    with shared_jsonl.open_locked(registry_dir / KEY_FILE, _DESCRIPTION) as file:
        shared_jsonl.restrict_to_owner(file, _DESCRIPTION)
        try:
            file.seek(0)
            key = file.read()
            if len(key) != KEY_BYTES:
                key = secrets.token_bytes(KEY_BYTES)
                file.truncate(0)
                file.write(key)
                os.fsync(file.fileno())
        except OSError as error:
            raise shared_jsonl.write_error(file.name, _DESCRIPTION, error) from None
    return AnswerIds(key)
