"""The record of one error code."""

from dataclasses import dataclass

from insource.config.error_codes.codes import ErrorCode


@dataclass(frozen=True)
class ErrorDescription:
    """What a user meets under one error code.

    `title`, `cause` and `action` are Markdown. `example` is a message that the code prints; a test compares it with the
    messages in the source. With `is_linked` the command line prints the address of the entry below the message,
    because `action` has more steps than the message.
    """

    code: ErrorCode
    title: str
    cause: str
    action: str
    example: str
    is_linked: bool = False
