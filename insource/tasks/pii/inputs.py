"""Preparation of an input, in data preparation and in the gateway: cleaning and redaction.

prepare_input("  Reach me at\\r\\nann@example.org", ["email"])
-> CleanedInput("Reach me at\\n[EMAIL_1]", pii_kinds={"email"}, redacted_values={"[EMAIL_1]": "ann@example.org"})
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from insource.tasks.pii import redaction
from insource.tasks.source_record import UnusableRowError, check_characters
from insource.text.text_keys import INVISIBLE, clean


@dataclass(frozen=True)
class CleanedInput:
    """An input after cleaning and redaction. Redacted values stay in memory: nothing writes or shows them."""

    text: str
    pii_kinds: frozenset[str]
    """Kinds of personal data in the clean text, before redaction."""
    redacted_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    """{placeholder: value} of redacted values."""


def prepare_input(raw: str, kinds: Collection[str]) -> CleanedInput:
    """Return an input cleaned, with personal data of these kinds redacted.

    Raises UnusableRowError if it is empty, or contains characters that cannot be stored.
    """
    text = clean(raw)
    if not (text if text.isascii() else INVISIBLE.sub("", text).strip()):
        raise UnusableRowError("no_text", "the text is empty" + (", but for invisible characters" if text else ""))
    check_characters("text", text)
    pii_kinds = frozenset(finding.kind for finding in redaction.find_pii(text))
    if not (kinds and pii_kinds):
        return CleanedInput(text, pii_kinds)
    redacted = redaction.redact(text, kinds)
    return CleanedInput(redacted.text, pii_kinds, redacted.values)
