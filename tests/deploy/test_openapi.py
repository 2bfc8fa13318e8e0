"""GET /openapi.json: it describes every path, its schemas are valid, and real responses conform to it."""

import http.client
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.answers.outcome import Outcome
from deploy.gateway import proxy
from deploy.gateway.paths import decisions, feedback, openapi_schemas, systemone, tasks_path
from deploy.gateway.proxy_state import ProxyState
from tests.helpers.gateway.served_gateway import make_router, serve_gateway
from tests.helpers.gateway.task_gateway import (
    EXTRACTOR_TASK,
    LABELS,
    TASK_NAME,
    make_deployed_task,
    make_recipe,
)

KEY = "0123456789abcdef"
CHAT = {"messages": [{"role": "user", "content": "says lost"}], "stream": False, "n": 1, "max_tokens": 9}
CHOICE = {"type": "choice", "name": "q", "instructions": "Choose.", "choices": [{"value": "late"}, {"value": "lost"}]}
VALID: dict[str, list[Any]] = {
    "/v1/chat/completions": [
        {"model": TASK_NAME, **CHAT, "private": True, "response_format": {"type": "text"}},
        {"model": f"{TASK_NAME}:raw", **CHAT},
        {"model": TASK_NAME, **CHAT, "stream": True, "stream_options": {"include_usage": True}},
    ],
    "/v1/messages": [{"model": TASK_NAME, **CHAT, "system": "x"}, {"model": f"{TASK_NAME}:raw", **CHAT}],
    "/v1/completions": [{"model": TASK_NAME, "prompt": "x", "max_tokens": 1}, {"model": TASK_NAME, "prompt": [1, 2]}],
    f"/v1/tasks/{TASK_NAME}": [
        {"input": "says lost", "private": False},
        {"inputs": ["a", {"message": "b"}, [{"role": "user", "content": [{"type": "text", "text": "c"}]}], 7]},
    ],
    "/v1/decisions": [
        {
            "model": TASK_NAME,
            "input": "where is it",
            "questions": [CHOICE, {"type": "predicate", "instructions": "late"}],
            "safety_identifier": "x",
            "private": True,
        }
    ],
    "/v1/systemone": [
        {
            "model": TASK_NAME,
            "state": {"message": "where is it"},
            "questions": {
                "q": {"type": "choice", "criteria": {"late": None, "lost": "gone"}},
                "p": {"type": "noul", "instructions": "late"},
            },
        }
    ],
    "/v1/feedback": [{"id": "x", "answer": "late"}, {"feedback": [{"id": "x", "answer": "late"}]}],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ProxyState]]:
    with serve_gateway([make_router(tmp_path_factory.mktemp("router"))], KEY) as served:
        yield served


def send(
    address: str, path: str, body: Any = None, method: str = "POST", key: str | None = KEY, **headers: str
) -> tuple[int, Any, str]:
    """Return status, body and media type of a response. `body` is bytes, an iterable of bytes, or a JSON value."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    content = json.dumps(body).encode() if isinstance(body, dict | list | str | int | float | None) else body
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # a refused body need not be read completely
            connection.request(method, path, None if method == "GET" else content, headers)
        response = connection.getresponse()
        received, media_type = response.read(), response.headers.get_content_type()
    finally:
        connection.close()
    return response.status, json.loads(received) if media_type == "application/json" else received, media_type


def fetch_description(address: str) -> dict[str, Any]:
    status, description, media_type = send(address, "/openapi.json", method="GET")
    assert (status, media_type) == (200, "application/json")
    assert isinstance(description, dict)
    return description


def check_response(
    description: dict[str, Any], path: str, response: tuple[int, Any, str], method: str = "post"
) -> None:
    """Raise AssertionError or ValidationError if a response is not one of those described."""
    status, payload, media_type = response
    responses = description["paths"][path][method]["responses"]
    assert str(status) in responses, f"{status} is not described: {payload}"
    documented = responses[str(status)]
    if reference := documented.get("$ref"):
        documented = description["components"]["responses"][reference.rpartition("/")[2]]
    schema = documented["content"][media_type]["schema"]
    value = payload.decode() if isinstance(payload, bytes) else payload
    jsonschema.Draft202012Validator({**schema, "components": description["components"]}).validate(value)


def test_every_path_of_the_application_is_described_and_no_other(served: tuple[str, ProxyState]) -> None:
    address, state = served
    routes = {
        (route.method, resource.canonical.replace("{name}", TASK_NAME))
        for resource in proxy.build_application(state).router.resources()
        for route in resource
    }
    description = fetch_description(address)
    described = {(method.upper(), path) for path, item in description["paths"].items() for method in item}
    assert described == {(method, path) for method, path in routes if method in ("GET", "POST")}
    assert description["openapi"].startswith("3.1.")


def test_all_schemas_are_valid_and_all_references_resolve(served: tuple[str, ProxyState]) -> None:
    description = fetch_description(served[0])

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                _, *keys = reference.split("/")
                target = description
                for key in keys:
                    target = target[key]
            if "schema" in node:
                jsonschema.Draft202012Validator.check_schema(node["schema"])
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            visit(child)

    visit(description)


def test_the_description_needs_the_key_that_the_models_need(served: tuple[str, ProxyState]) -> None:
    address, _ = served
    for path in ("/openapi.json", "/v1/models"):
        assert send(address, path, method="GET", key=None)[0] == 401
        assert send(address, path, method="GET", key="wrong")[0] == 401
        assert send(address, path, method="GET")[0] == 200
    description = fetch_description(address)
    assert description["security"] == [{"bearer": []}, {"x_api_key": []}]
    assert description["paths"]["/readyz"]["get"]["security"] == []


@pytest.mark.parametrize("path", ["/v1/models", "/openapi.json", "/metrics", "/healthz", "/readyz", "/health"])
def test_responses_without_a_body_conform(served: tuple[str, ProxyState], path: str) -> None:
    address, state = served
    description = fetch_description(address)
    check_response(description, path, send(address, path, method="GET"), "get")
    check_response(description, path, send(address, path, method="GET", Origin="http://pages.example"), "get")
    state.engine_responds = False
    check_response(description, path, send(address, path, method="GET"), "get")
    state.engine_responds = True


def test_the_path_of_a_task_has_its_labels_its_columns_and_its_schema(served: tuple[str, ProxyState]) -> None:
    paths = fetch_description(served[0])["paths"]
    operation = paths[f"/v1/tasks/{TASK_NAME}"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    single, _ = operation["responses"]["200"]["content"]["application/json"]["schema"]["oneOf"]
    assert single["properties"]["answer"] == {"type": "string", "enum": list(LABELS)}
    _, columns, _ = request["properties"]["input"]["anyOf"]
    assert columns["required"] == ["message"]
    chat = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat["properties"]["model"]["enum"] == [TASK_NAME, f"{TASK_NAME}:raw"]


def test_an_extraction_task_has_its_record_and_no_decisions(tmp_path: Any) -> None:
    recipe = make_recipe(tmp_path, task=EXTRACTOR_TASK, columns="{text: message}")
    with serve_gateway([make_deployed_task(tmp_path, recipe)]) as (address, _):
        description = fetch_description(address)
        assert description["security"] == []
        record = json.dumps({"number": "7", "day": None})
        response = send(address, f"/v1/tasks/{TASK_NAME}", {"input": f"says {record.replace(' ', '')}"})
        assert response[0] == 200 and response[1]["answer"] == {"number": "7", "day": None}
        check_response(description, f"/v1/tasks/{TASK_NAME}", response)
        response = send(address, "/v1/decisions", {"model": TASK_NAME, "input": "a", "questions": [CHOICE]})
        assert response[0] == 400
        check_response(description, "/v1/decisions", response)


def test_the_schemas_have_the_keys_that_the_paths_accept_and_return(served: tuple[str, ProxyState]) -> None:
    task = served[1].tasks[TASK_NAME].task
    assert set(openapi_schemas.describe_task_request(task)["properties"]) == set(tasks_path.KEYS)
    (alternative,) = openapi_schemas.describe_decision_request([task])["oneOf"]
    assert set(alternative["properties"]) == set(decisions.KEYS)
    (alternative,) = openapi_schemas.describe_systemone_request([task])["oneOf"]
    assert set(alternative["properties"]) == set(systemone.KEYS)
    item, _ = openapi_schemas.describe_feedback_request([task])["oneOf"]
    assert set(item["properties"]) == set(feedback.KEYS)
    single, _ = openapi_schemas.describe_task_response(task)["oneOf"]
    outcome = Outcome("late", "late", 0.5, 0.5, "local", "confident")
    assert set(single["properties"]) == {"task", "version", *outcome.json()}


@pytest.mark.parametrize("path", VALID)
def test_valid_requests_fit_their_schema_and_get_a_described_answer(served: tuple[str, ProxyState], path: str) -> None:
    address, _ = served
    description = fetch_description(address)
    schema = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for body in VALID[path]:
        valid = {**body, "inputs": body["inputs"][:-1]} if "inputs" in body else body
        jsonschema.Draft202012Validator(schema).validate(valid)
        response = send(address, path, body)
        assert response[0] == (404 if body.get("id") else 200), response
        check_response(description, path, response)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=12)
    | st.sampled_from([TASK_NAME, f"{TASK_NAME}:raw", *LABELS, "choice", "predicate", "", "\0", "nan", "inf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one change at a random place: another value, a missing key, or one more."""
    keys: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    change = draw(st.sampled_from(["inside", "inside", "inside", "replace", "remove", "add"] if keys else ["replace"]))
    if change == "replace":
        return draw(JSON_VALUES)
    key = draw(st.sampled_from(keys))
    copy = dict(value) if isinstance(value, dict) else list(value)
    if change == "remove":
        del copy[key]
    elif change == "inside":
        copy[key] = draw(changed(value[key]))
    elif isinstance(copy, dict):
        copy[draw(st.text(max_size=6))] = draw(JSON_VALUES)
    else:
        copy.append(draw(JSON_VALUES))
    return copy


@pytest.mark.parametrize("path", VALID)
def test_no_changed_request_gets_a_5xx_or_an_answer_that_is_not_described(
    served: tuple[str, ProxyState], path: str
) -> None:
    address, _ = served
    description = fetch_description(address)

    @settings(max_examples=120, derandomize=True, deadline=None, database=None)
    @given(st.sampled_from(VALID[path]).flatmap(changed) | JSON_VALUES)
    def check(body: Any) -> None:
        response = send(address, path, json.dumps(body).encode())
        assert response[0] < 500, response
        check_response(description, path, response)

    check()


def nest(levels: int) -> Any:
    """A list in a list in a list."""
    return [nest(levels - 1)] if levels else 1


CHAT_MESSAGE = {"role": "user", "content": "x"}
HARD_VALUES = {
    "tool calls that are no list": ("/v1/chat/completions", {"messages": [CHAT_MESSAGE | {"tool_calls": 5}]}, 400),
    "half of a surrogate pair": ("/v1/chat/completions", {"messages": [CHAT_MESSAGE], "user": "\ud800"}, 400),
    "n of 400 digits": ("/v1/completions", {"prompt": "x", "n": 10**400}, 413),
    "an answer of 200 levels": ("/v1/feedback", {"id": "x", "answer": nest(200)}, 400),
    "an input of 500 levels": (f"/v1/tasks/{TASK_NAME}", {"input": nest(500)}, 400),
}


@pytest.mark.parametrize(("path", "body", "status"), HARD_VALUES.values(), ids=HARD_VALUES)
def test_values_that_are_hard_to_handle_get_a_clear_4xx(
    served: tuple[str, ProxyState], path: str, body: dict[str, Any], status: int
) -> None:
    address, _ = served
    model = {} if path.startswith(("/v1/tasks", "/v1/feedback")) else {"model": TASK_NAME}
    response = send(address, path, model | body)
    assert response[0] == status and response[1]["error"]["message"], response
    check_response(fetch_description(address), path, response)


LARGE_BYTES = 100_000_000
NESTED = b'{"model": "%b", "input": %b1%b}' % (TASK_NAME.encode(), b"[" * 100_000, b"]" * 100_000)
NAMED = b'"model": "%b"' % TASK_NAME.encode()
MALFORMED = {
    "deep JSON": NESTED,
    "deep objects": b'{"input": ' * 50_000 + b"1" + b"}" * 50_000,
    "invalid UTF-8": b'{%b, "input": "\xff", "prompt": "\xff"}' % NAMED,
    "half of a surrogate pair in bytes": b'{"model": "\xed\xa0\x80"}',
    "no object": b"[]",
    "no JSON": b"{",
    "an empty body": b"",
    "NaN": b'{"model": NaN, "input": NaN, "id": NaN}',
    "a missing key": b"{}",
    "a wrong key": b'{"modle": "x", "inptu": "x", "idd": "x"}',
    "a wrong type": b'{"model": 7, "input": 7, "id": 7, "answer": 7}',
    "a doubled key": b'{%b, %b, "input": "a", "input": "a", "id": "a", "id": "a"}' % (NAMED, NAMED),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("path", VALID)
def test_malformed_bodies_get_a_clear_4xx(served: tuple[str, ProxyState], path: str, body: bytes) -> None:
    address, _ = served
    response = send(address, path, body)
    assert 400 <= response[0] < 500 and response[1]["error"]["message"], response
    check_response(fetch_description(address), path, response)


@pytest.mark.parametrize("path", VALID)
def test_the_reason_is_in_the_message(served: tuple[str, ProxyState], path: str) -> None:
    for name, reason in (
        ("deep JSON", "nested too deeply"),
        ("deep objects", "nested too deeply"),
        ("no JSON", "JSON"),
    ):
        assert reason in send(served[0], path, MALFORMED[name])[1]["error"]["message"]
    assert send(served[0], path, b'{"model": "x" "y"}')[1]["error"]["message"].count("no JSON object: ") == 1


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", VALID)
def test_a_body_of_100_mb_gets_a_413(served: tuple[str, ProxyState], path: str, chunked: bool) -> None:
    address, state = served
    piece = b" " * 1_000_000
    pieces = (piece for _ in range(LARGE_BYTES // len(piece)))
    headers = {} if chunked else {"Content_Length": str(LARGE_BYTES)}  # http.client sends chunks without a length
    response = send(address, path, pieces, **headers)
    assert response[0] == 413 and "serve.limits.body_kib" in response[1]["error"]["message"]
    check_response(fetch_description(address), path, response)
    assert state.in_flight_by_client.total() == 0
