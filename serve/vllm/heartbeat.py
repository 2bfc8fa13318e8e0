"""Detect a vLLM process that hangs: its HTTP server answers `GET /health` although the engine computes nothing.

A silent server gets a request for one token. On a busy server that request waits in the queue. Then the token counters
of `GET /metrics` show whether other requests make progress.
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
"""Seconds without computed tokens after which a server gets a request for one token."""
METRICS_SECONDS = 2.0
_TOKEN_COUNTER = re.compile(r"^vllm:(?:prompt|generation)_tokens_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
# A longer gap between two checks means that this process was suspended (Ctrl-Z, a sleeping laptop), not vLLM.
_MAX_STEP_SECONDS = 5.0


class Heartbeat:
    """Hang detection for one server."""

    def __init__(self, address: Address, model: str, api_key: str | None, hang_seconds: float) -> None:
        self._address, self._model, self._api_key, self._hang_seconds = address, model, api_key, hang_seconds
        self._silent_seconds, self._checked_at = 0.0, time.monotonic()
        self._token_count: float | None = None
        self._probe: threading.Thread | None = None
        self._responded = threading.Event()

    def silent_seconds(self) -> float:
        """Return the seconds that the server has computed nothing despite a request. Call it about once a second."""
        now = time.monotonic()
        self._silent_seconds += min(now - self._checked_at, _MAX_STEP_SECONDS)
        self._checked_at = now
        token_count = self._read_token_count()
        if self._responded.is_set() or (token_count is not None and token_count != self._token_count):
            self._silent_seconds = 0.0
            self._responded.clear()
        self._token_count = self._token_count if token_count is None else token_count
        if self._silent_seconds >= PROBE_SECONDS and (self._probe is None or not self._probe.is_alive()):
            self._probe = threading.Thread(target=self._probe_once, daemon=True)
            self._probe.start()
        return self._silent_seconds

    def responds(self) -> bool:
        """Return whether the server produces a token within `hang_seconds`."""
        body = {"model": self._model, "prompt": "a", "max_tokens": 1}
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        status, _ = self._request("POST", "/v1/completions", self._hang_seconds, json.dumps(body), headers)
        return status is not None and status < 500

    def _probe_once(self) -> None:
        if self.responds():
            self._responded.set()

    def _read_token_count(self) -> float | None:
        """Return the number of tokens read and generated since the server's start, None if `GET /metrics` fails."""
        status, text = self._request("GET", "/metrics", METRICS_SECONDS)
        return sum(map(float, _TOKEN_COUNTER.findall(text))) if status == HTTPStatus.OK else None

    def _request(
        self, method: str, path: str, seconds: float, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int | None, str]:
        """Return status and text of a response, None and "" if there is none in time. HTTP proxies are not used."""
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
