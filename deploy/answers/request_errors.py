"""Errors of requests, with status, type and message as the SDKs of OpenAI and Anthropic expect them."""

from typing import Any


class RequestError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, kind: str, message: str, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_seconds = status, kind, retry_seconds

    def json(self) -> dict[str, Any]:
        """Return the error as the JSON object of a response."""
        return {"type": self.kind, "message": str(self), "code": self.status}


def invalid_request(message: str) -> RequestError:
    """Return the error for an invalid request (400)."""
    return RequestError(400, "invalid_request_error", message)
