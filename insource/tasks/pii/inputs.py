"""An input as preparation writes it and as the gateway asks it: clean, and without the personal data that the recipe
redacts.

prepared("  Reach me at\\r\\nann@example.org", ["email"])
-> Input(text="Reach me at\\n[EMAIL_1]", found={"email"}, hidden={"[EMAIL_1]": "ann@example.org"})
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from insource.tasks.pii import redaction
from insource.tasks.source_record import UnusableRowError, check_characters
from insource.tasks.text_keys import INVISIBLE, clean


@dataclass(frozen=True)
class Input:
    """A prepared input. The values that were replaced are for memory alone: nothing writes or shows them."""

    text: str
    found: frozenset[str]
    """Kinds of personal data in the clean text, before any was replaced."""
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """{placeholder: value} of what was replaced."""


def prepare_input(raw: str, kinds: Collection[str]) -> Input:
    """Returns an input clean, with personal data of these kinds replaced. Raises UnusableRowError where it is empty, or
    holds characters that nothing can store."""
    text = clean(raw)
    if not (text if text.isascii() else INVISIBLE.sub("", text).strip()):
        raise UnusableRowError("no_text", "the text is empty" + (", but for invisible characters" if text else ""))
    check_characters("text", text)
    pii_kinds = frozenset(finding.kind for finding in redaction.find_pii(text))
    if not (kinds and pii_kinds):
        return Input(text, pii_kinds)
    redacted = redaction.redact(text, kinds)
    return Input(redacted.text, pii_kinds, redacted.values)
