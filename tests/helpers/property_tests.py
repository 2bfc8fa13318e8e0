"""Number of examples of property tests: a part of them in `make check`, all of them in `make nightly`."""

import os
from typing import Any

from hypothesis import settings

NIGHTLY = os.environ.get("NIGHTLY", "") not in ("", "0")


def count_examples(nightly: int) -> int:
    """Return the number of examples of a test that has `nightly` examples in `make nightly`."""
    return nightly if NIGHTLY else max(nightly // 8, min(nightly, 8))


def examples(nightly: int, **options: Any) -> settings:
    """Return the settings of a property test; a few examples of a slow one are no error, on a busy machine too."""
    return settings(max_examples=count_examples(nightly), deadline=None, **options)
