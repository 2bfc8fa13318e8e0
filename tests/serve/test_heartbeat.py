"""A server is watched by what it computes: `GET /health` says nothing of that."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serve.vllm import heartbeat
from serve.vllm.heartbeat import Heartbeat
from serve.vllm.server_process import Address

METRICS = """# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:prompt_tokens_total{{engine="0",model_name="small"}} {prompt:.1f}
vllm:generation_tokens_total{{engine="0",model_name="small"}} {written:.1f}
vllm:num_requests_running{{engine="0"}} 3.0
"""


class Server:
    """A server that computes, or does not."""

    def __init__(self) -> None:
        self.freed, self.computes_for_others = threading.Event(), False
        self.counted, self.asked, self.keys = 0, 0, set[str]()
        self.status = 200
        fake_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake_server.asked += 1
                fake_server.keys.add(self.headers.get("Authorization", ""))
                fake_server.freed.wait(20)
                fake_server.counted += body["max_tokens"]
                self.answer(b"{}", fake_server.status)

            def do_GET(self) -> None:
                fake_server.counted += fake_server.computes_for_others
                self.answer(METRICS.format(prompt=7, written=fake_server.counted).encode(), 200)

            def answer(self, body: bytes, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(heartbeat, "PROBE_SECONDS", 0.2)
    fake_server = Server()
    yield fake_server
    fake_server.freed.set()
    fake_server.http.shutdown()
    fake_server.http.server_close()


def beat_of(server: Server, hang_seconds: float = 20.0) -> Heartbeat:
    return Heartbeat(Address("127.0.0.1", server.http.server_port), "small", "secret", hang_seconds)


def until(beat: Heartbeat, reached: Callable[[float], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached(beat.silent_seconds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_idle_server_that_answers_is_not_silent(server: Server) -> None:
    server.freed.set()
    beat = beat_of(server)
    until(beat, lambda silent: server.asked >= 2)
    until(beat, lambda silent: silent < heartbeat.PROBE_SECONDS)
    assert server.keys == {"Bearer secret"}


def test_a_server_that_computes_nothing_is_silent_and_asked_once(server: Server) -> None:
    beat = beat_of(server)
    until(beat, lambda silent: silent > 1.0)
    assert server.asked == 1
    server.freed.set()
    until(beat, lambda silent: silent < heartbeat.PROBE_SECONDS)


def test_a_busy_server_whose_queue_is_long_is_not_silent(server: Server) -> None:
    server.computes_for_others = True
    beat, deadline = beat_of(server), time.monotonic() + 1.0
    while time.monotonic() < deadline:
        assert beat.silent_seconds() < 1.0
        time.sleep(0.05)
    server.computes_for_others = False
    until(beat, lambda silent: silent > 1.0)


def test_what_answers_with_an_error_of_its_own_or_not_at_all_does_not_answer(server: Server) -> None:
    assert not beat_of(server, 0.3).responds()
    server.freed.set()
    assert beat_of(server).responds()
    server.status = 500
    assert not beat_of(server).responds()
    server.status = 400
    assert beat_of(server).responds()


def test_time_in_which_the_watcher_itself_stood_still_does_not_count(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, real_clock = beat_of(server), time.monotonic
    beat.silent_seconds()
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: real_clock() + 3600)
    assert beat.silent_seconds() < 10
