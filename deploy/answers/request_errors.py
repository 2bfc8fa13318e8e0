"""A request that is not answered: status, type and words as the SDKs of OpenAI and Anthropic read them."""

from typing import Any


class RequestError(Exception):
    """A request is not answered."""

    def __init__(self, status: int, kind: str, message: str, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_seconds = status, kind, retry_seconds

    def json(self) -> dict[str, Any]:
        """Returns the error as it stands in an answer."""
        return {"type": self.kind, "message": str(self), "code": self.status}


def invalid_request(message: str) -> RequestError:
    """Returns the refusal of a request that is wrong as it stands (400)."""
    return RequestError(400, "invalid_request_error", message)
