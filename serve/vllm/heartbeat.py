"""Does vLLM still compute? Its wire answers `GET /health` although nothing computes any more behind it.

It is asked for one token again and again. On a busy server that waits in the queue: then the tokens that `GET /metrics`
counts tell whether others are answered.
"""

import http.client
import json
import re
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from serve.vllm import client
from serve.vllm.server_process import Address

PROBE_SECONDS = 5.0
"""A server that has computed nothing for so long is asked for a token."""
METRICS_SECONDS = 2.0
_TOKEN_COUNTER = re.compile(r"^vllm:(?:prompt|generation)_tokens_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
# More between two looks means that this process stood still, not vLLM (Ctrl-Z, a laptop that slept).
_MAX_STEP_SECONDS = 5.0


class Heartbeat:
    """Watches one server."""

    def __init__(self, address: Address, model: str, api_key: str | None, hang_seconds: float) -> None:
        self._address, self._model, self._api_key, self._hang_seconds = address, model, api_key, hang_seconds
        self._silent, self._looked = 0.0, time.monotonic()
        self._counted: float | None = None
        self._probe: threading.Thread | None = None
        self._answered = threading.Event()

    def silent_seconds(self) -> float:
        """Returns for how long the server has computed nothing, though it is asked; to be called about each second."""
        now = time.monotonic()
        self._silent += min(now - self._looked, _MAX_STEP_SECONDS)
        self._looked = now
        token_count = self._tokens()
        if self._answered.is_set() or (token_count is not None and token_count != self._counted):
            self._silent = 0.0
            self._answered.clear()
        self._counted = self._counted if token_count is None else token_count
        if self._silent >= PROBE_SECONDS and (self._probe is None or not self._probe.is_alive()):
            self._probe = threading.Thread(target=self._ask, daemon=True)
            self._probe.start()
        return self._silent

    def answers(self) -> bool:
        """Returns whether the server gives a token within hang_seconds."""
        body = {"model": self._model, "prompt": "a", "max_tokens": 1}
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        status, _ = self._asked("POST", "/v1/completions", self._hang_seconds, json.dumps(body), headers)
        return status is not None and status < 500

    def _ask(self) -> None:
        if self.answers():
            self._answered.set()

    def _tokens(self) -> float | None:
        """How many tokens were read and written since the server was started, None where it does not tell."""
        status, text = self._asked("GET", "/metrics", METRICS_SECONDS)
        return sum(map(float, _TOKEN_COUNTER.findall(text))) if status == HTTPStatus.OK else None

    def _asked(
        self, method: str, path: str, seconds: float, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int | None, str]:
        """Status and text of an answer, None where there is none in time. No proxy stands before what is here."""
        url = urlsplit(client.client_url(self._address))
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=seconds)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return None, ""
        finally:
            connection.close()
