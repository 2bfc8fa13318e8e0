"""Clients of the engines: vLLM, queried as the gateway queries it, or a gateway, queried for the task.

A request without an answer is retried, with MAX_ATTEMPTS attempts in all. If the server is down then, the prediction
stops, and the next call resumes it. If the server is healthy, the row is refused and the next one queried.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

from deploy.answers import label_scores, local_model
from deploy.answers.local_model import EngineConnection, EngineRequestError
from deploy.answers.outcome import VERSION_HEADER
from deploy.answers.request_errors import RequestError
from deploy.answers.task import Task
from deploy.gateway.paths import decisions
from insource.backends.failures import backoff_seconds
from insource.config.errors import RecipeError, StageError
from insource.config.hosts import is_loopback, parse_host
from insource.config.recipe import Recipe
from predict.prediction import ANSWERED_LOCALLY, NO_ANSWER_CODE, Prediction
from predict.rows.inputs import InputRow
from serve.vllm import client
from serve.vllm.launch_plan import API_KEY_VARIABLE

MAX_ATTEMPTS = 6
ANSWER_TIMEOUT_SECONDS = 600.0
"""An answer may wait for all other requests in flight."""
CONFIDENT_REASON = "confident"
RETRY_STATUS = (408, 429, *range(500, 600))
"""Statuses after which another attempt may succeed."""
ROW_ERROR_STATUS = (400, 413, 422)
"""Statuses that the row causes. Any other one ends the prediction: no row would be answered."""


@dataclass(frozen=True)
class ServedTask(Task):
    """The task of a run on a plain vLLM server, which serves it under the recipe's name."""

    @property
    def internal_name(self) -> str:
        """Return the model's name in requests."""
        return self.name


def as_served(task: Task) -> ServedTask:
    """Return a task as a plain vLLM server serves it."""
    return ServedTask(**{name: getattr(task, name) for name in task.__dataclass_fields__})


def check_server_allowed(recipe: Recipe, base_url: str) -> None:
    """Raise RecipeError if inputs may not be sent to a server."""
    host = parse_host(base_url)
    if host is None or not base_url.startswith(("http://", "https://")):
        raise RecipeError(
            f"BASE_URL: given {base_url!r}, allowed: an address such as http://127.0.0.1:8000", code="INS-P007"
        )
    if recipe.privacy.data_may_leave or is_loopback(host) or host in recipe.privacy.trusted_hosts:
        return
    raise RecipeError(
        f"BASE_URL: privacy.data_may_leave is false, and {host} is neither this machine nor in privacy.trusted_hosts",
        code="INS-P008",
    )


def open_session(origin: str, max_concurrency: int) -> ClientSession:
    """Return a session with a server, to be used as a context; the API key is that of the environment."""
    return client.open_url_session(origin, os.environ.get(API_KEY_VARIABLE), max_concurrency, ANSWER_TIMEOUT_SECONDS)


def server_origin(base_url: str) -> str:
    """Return the address of a server without the /v1 of base URLs for OpenAI clients."""
    return base_url.rstrip("/").removesuffix("/v1")


class VllmClient:
    """A client of vLLM with the request body, constraint and parsing of the comparison."""

    def __init__(self, task: Task, session: ClientSession, labels: Sequence[str], max_concurrency: int) -> None:
        """Set up the client.

        `labels`: those whose probabilities are requested. `max_concurrency`: requests for the probabilities of one row.
        """
        self._task, self._labels, self._max_concurrency = task, labels, max_concurrency
        self._session, self._engine = session, EngineConnection(session, lambda: None)

    async def predict(self, row: InputRow) -> Prediction:
        """Return the prediction of a row. Raise StageError if the server is down."""
        # vLLM does not set the waiting time: deploy/answers/local_model.py sets it, for clients of the gateway.
        return await _predict_with_retries(lambda: self._predict_once(row), self._session, use_retry_after=False)

    async def _predict_once(self, row: InputRow) -> Prediction:
        assert row.task_input is not None
        scored = await local_model.query_model(self._engine, self._task, row.task_input, None)
        if scored.parsed.problem is not None:
            return Prediction(refused=f"invalid_answer: {scored.parsed.problem}")
        threshold = self._task.routing.threshold
        return Prediction(
            answer=scored.parsed.value,
            confidence=scored.confidence,
            answered_by=ANSWERED_LOCALLY,
            abstain=is_below_threshold(scored.confidence, threshold),
            probabilities=await self._label_probabilities(row.task_input.text),
        )

    async def _label_probabilities(self, text: str) -> Mapping[str, float] | None:
        if not self._labels:
            return None
        ids, tree = await asyncio.to_thread(self._task.tokens.encode, text)
        model = self._task.internal_name
        probabilities, _ = await label_scores.score_labels(self._engine, tree, model, ids, self._max_concurrency)
        return probabilities


class GatewayClient:
    """A client of a gateway, bound to one version of the task; an API model may answer below the threshold."""

    def __init__(self, task: Task, session: ClientSession, labels: Sequence[str], version: str) -> None:
        self._task, self._session, self._labels, self._version = task, session, labels, version

    async def predict(self, row: InputRow) -> Prediction:
        """Return the prediction of a row. Raise StageError if the gateway is down or has changed the version."""
        return await _predict_with_retries(lambda: self._predict_once(row), self._session)

    async def _predict_once(self, row: InputRow) -> Prediction:
        # The raw input: the gateway redacts it, and answers locally if it contains personal data.
        payload = await self._post(f"/v1/tasks/{self._task.name}", {"input": row.raw_input})
        return Prediction(
            answer=payload["answer"],
            confidence=payload["confidence"],
            answered_by=payload["answered_by"],
            abstain=self._abstains(payload),
            probabilities=await self._label_probabilities(row.raw_input),
        )

    def _abstains(self, payload: Mapping[str, Any]) -> bool | None:
        if payload["answered_by"] != ANSWERED_LOCALLY or payload["reason"] == CONFIDENT_REASON:
            return False
        if payload["degraded"]:
            return True
        return is_below_threshold(payload["local_confidence"], self._task.routing.threshold)

    async def _label_probabilities(self, raw_input: str) -> Mapping[str, float] | None:
        if not self._labels:
            return None
        choices = [{"value": label} for label in self._labels]
        question = {"type": "choice", "instructions": "-", "choices": choices}
        body = {"model": self._task.name, "input": raw_input, "questions": [question]}
        payload = await self._post(decisions.PATH, body)
        return {entry["value"]: entry["probability"] for entry in payload["answers"][0]["probabilities"]}

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        payload, version = await _post_json(self._session, path, body)
        if version != self._version:
            raise StageError(
                f"the gateway changed from version {self._version} to {version}; run the same command again to get "
                "all answers from one version",
                code="INS-P012",
            )
        return payload


async def fetch_deployed_version(session: ClientSession, name: str) -> str:
    """Return the version of a model that a gateway has deployed.

    It requests one token, which is not routed. Raise RecipeError if BASE_URL is no gateway, StageError if it does not
    answer.
    """
    for failures in range(1, MAX_ATTEMPTS + 1):
        try:
            _, version = await _post_json(session, "/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1})
        except RequestError as error:
            if error.status not in RETRY_STATUS or failures == MAX_ATTEMPTS:
                raise StageError(f"the gateway does not answer: {error}", code="INS-P009") from None
            await asyncio.sleep(error.retry_seconds or backoff_seconds(failures))
        else:
            if not version:
                raise RecipeError(
                    "BASE_URL: the server is not a gateway of insource; for a vLLM server set ENGINE=vllm",
                    code="INS-P007",
                )
            return version
    raise AssertionError("the last try returns or raises")


def is_below_threshold(confidence: float | None, threshold: float | None) -> bool | None:
    """Return whether a confidence is below a threshold: True if it is unknown, None without a threshold."""
    return None if threshold is None else confidence is None or confidence < threshold


async def _predict_with_retries(
    predict_once: Callable[[], Awaitable[Prediction]], session: ClientSession, use_retry_after: bool = True
) -> Prediction:
    """Return the prediction, after up to MAX_ATTEMPTS queries. Raise StageError if the server is down.

    The waiting time between attempts is the server's if it sets one and `use_retry_after`, else a backoff.
    """
    for failures in range(1, MAX_ATTEMPTS + 1):
        try:
            return await predict_once()
        except RequestError as error:
            status = error.engine_status if isinstance(error, EngineRequestError) else error.status
            if status in ROW_ERROR_STATUS:
                return Prediction(refused=f"{_refusal_code(error)}: {error}")
            if status not in RETRY_STATUS:
                raise StageError(f"the server answers {status} to a row: {error}", code="INS-P009") from None
            last_error = error
            if failures < MAX_ATTEMPTS:
                await asyncio.sleep((use_retry_after and error.retry_seconds) or backoff_seconds(failures))
    if not await _is_healthy(session):
        raise StageError(
            f"the server no longer answers ({last_error}); finished answers are kept: run the same command to resume",
            code="INS-P009",
        )
    return Prediction(refused=f"{NO_ANSWER_CODE}: {last_error}", final=False)


def _refusal_code(error: RequestError) -> str:
    # 422 from a gateway: the answer does not fit the task's schema; from vLLM: the request cannot be read.
    wrong_answer = error.status == 422 and not isinstance(error, EngineRequestError)
    return "invalid_answer" if wrong_answer else "refused_input"


async def _is_healthy(session: ClientSession) -> bool:
    try:
        async with session.get("/health", timeout=ClientTimeout(total=10)) as response:
            return response.status == 200
    except (ClientError, TimeoutError):
        return False


async def get_json(session: ClientSession, path: str) -> dict[str, Any]:
    """Return the JSON object at a server's path. Raise StageError if it does not answer or rejects the API key."""
    try:
        async with session.get(path) as response:
            payload = await response.json(content_type=None)
    except (ClientError, TimeoutError, ValueError) as error:
        raise StageError(f"BASE_URL: the server does not answer: {error}", code="INS-P009") from None
    _raise_for_access(response.status, payload)
    return payload if isinstance(payload, dict) else {}


async def _post_json(session: ClientSession, path: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a gateway's JSON object and the version that answered.

    Raise RequestError, or StageError if no row will be answered.
    """
    try:
        async with session.post(path, json=body) as response:
            payload = json.loads(await response.read())
    except (ClientError, TimeoutError, ValueError, RuntimeError) as error:
        raise RequestError(503, "overloaded_error", f"no answer: {type(error).__name__}") from None
    if response.status == 200 and isinstance(payload, dict):
        return payload, response.headers.get(VERSION_HEADER, "")
    _raise_for_access(response.status, payload)
    retry_after = response.headers.get("Retry-After", "")
    retry_seconds = int(retry_after) if retry_after.isdigit() else None
    raise RequestError(response.status, "error", local_model.extract_message(payload), retry_seconds)


def _raise_for_access(status: int, payload: Any) -> None:
    if status in (401, 403):
        raise StageError(
            f"the server rejects the API key: {local_model.extract_message(payload)}; set {API_KEY_VARIABLE} "
            "to its key",
            code="INS-P010",
        )
    if status == 404:
        raise StageError(f"the server answers 404: {local_model.extract_message(payload)}", code="INS-P009")
