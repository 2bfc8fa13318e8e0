"""Exceptions with a message for the user. They have a module of their own, so that --help imports nothing else.

    raise RecipeError("data.source.path: there is no file rows.csv", code="INS-D001")

The code names the kind of problem; docs/errors.md describes it and what to do. `insource/config/error_codes/` has the
text, `insource/config/cli.py` prints errors.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from insource.config.error_codes.codes import ErrorCode


class CodedError(Exception):
    """An error with a code of docs/errors.md, printed without a traceback."""

    def __init__(self, message: str, *, code: "ErrorCode") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        # By default an exception is unpickled from its arguments without `code`; worker processes send errors.
        return partial(type(self), str(self), code=self.code), ()

    @property
    def message_with_code(self) -> str:
        """The message with the code in brackets at its end, for logs and lists of problems."""
        return f"{self} [{self.code}]"

    def with_message(self, message: str) -> Self:
        """Return the same error with another message."""
        return type(self)(message, code=self.code)


class RecipeError(CodedError):
    """An error in recipe, data or call; exit code 2."""


class StageError(CodedError):
    """A stage failed with a valid recipe and call; exit code 1."""


class GateError(StageError):
    """A check failed, so the stage stopped; exit code 3."""


def join_errors(errors: Sequence[RecipeError]) -> RecipeError:
    """Return one error with the messages of several, a line each with its code. The code is that of the first."""
    if len(errors) == 1:
        return errors[0]
    return RecipeError("\n".join(error.message_with_code for error in errors), code=errors[0].code)
