"""Errors for users: a test asserts the type, the code and the facts, not the sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from insource.config.error_codes.codes import ErrorCode
from insource.config.errors import CodedError

Error = TypeVar("Error", bound=CodedError)


@contextmanager
def raises_error(
    error_type: type[Error], code: ErrorCode, match: str | None = None
) -> Iterator[pytest.ExceptionInfo[Error]]:
    """Require an error of this type and code; `match` is a pattern for file, line, key and values in the message."""
    with pytest.raises(error_type, match=match) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code}: {caught.value}"
