"""Error bodies of providers: message, code and the parameter that is refused."""

import pytest

from insource.backends import api_errors
from insource.backends.api_errors import ApiError

DETAIL = {"type": "extra_forbidden", "loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}
DETAIL_TEXT = '{"type": "extra_forbidden", "loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"error": {"message": "no", "type": "invalid_request_error", "param": "top_p", "code": None}},
            ApiError("no", "invalid_request_error", "top_p"),
        ),
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
            ApiError("busy", "overloaded_error"),
        ),
        ({"detail": [DETAIL]}, ApiError(f"[{DETAIL_TEXT}]")),
        ({"detail": "Not Found"}, ApiError("Not Found")),
        (
            {"object": "error", "message": {"detail": [DETAIL]}, "type": "invalid_request_error", "param": None},
            ApiError(f'{{"detail": [{DETAIL_TEXT}]}}', "invalid_request_error"),
        ),
        ({"error": "model 'x' not found"}, ApiError("model 'x' not found")),
        ({"status": 3}, ApiError("the SDK's message")),
        ("<html>", ApiError("the SDK's message")),
        (None, ApiError("the SDK's message")),
    ],
)
def test_the_message_of_an_error_is_what_the_provider_says(body: object, expected: ApiError) -> None:
    assert api_errors.parse_api_error(body, "the SDK's message") == expected


@pytest.mark.parametrize(("status", "found"), [(400, "logprobs"), (422, "logprobs"), (404, None), (500, None)])
def test_only_an_error_about_the_request_names_a_refused_parameter(status: int, found: str | None) -> None:
    message = api_errors.parse_api_error({"detail": [DETAIL]}).message
    optional = {"temperature": ("temperature",), "logprobs": ("logprobs",)}
    assert api_errors.find_rejected_parameter(f"HTTP {status}: {message}", optional) == found
