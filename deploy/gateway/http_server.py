"""The listening side of the gateway: how many connections it holds, how long silent ones may stay, what it logs.

A connection that has sent no whole header within HEADER_SECONDS, or nothing for so long after an answer, is closed.
Connections beyond what the descriptors allow are answered 503 and closed at once, so that accept never fails.
"""

import asyncio
import json
import logging
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import SimpleQueue

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http import HttpProcessingError

from deploy.gateway import proxy
from insource.tracking.run import utc_timestamp
from serve.vllm.server_process import Address

HEADER_SECONDS = 30.0
MAX_CONNECTIONS = 4096
"""However many descriptors there are: each connection may hold some memory."""
_MAX_DESCRIPTORS = 2**20
_RESERVED_DESCRIPTORS = 64
_LINGER_SECONDS = 5.0
_LOG_BYTES, _LOG_FILES = 16 * 2**20, 4
_OVERLOADED_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def raise_open_file_limit() -> int:
    """Raises the limit of open files to the hard one. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def compute_connection_limits(descriptors: int) -> tuple[int, int]:
    """Returns how many connections may be open, and how many wait to be accepted, with so many descriptors: each
    request that is passed on has another one to vLLM, and all that wait may be accepted at once."""
    backlog = min(1024, descriptors // 4)
    return max(1, min(MAX_CONNECTIONS, (descriptors - _RESERVED_DESCRIPTORS - backlog) // 2)), backlog


def list_stop_signals() -> list[signal.Signals]:
    """Returns the signals that end the gateway; what was ignored when it was started stays ignored (nohup)."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def build_runner(proxy_state: proxy.ProxyState, access_log: logging.Logger | None) -> web.AppRunner:
    """Returns the door as aiohttp runs it, before it listens anywhere."""
    error_logger = logging.getLogger("insource.gateway")
    error_logger.addFilter(_is_server_error)
    return web.AppRunner(
        proxy.build_application(proxy_state),
        handler_cancellation=True,
        access_log=access_log,
        access_log_class=AccessLog,
        logger=error_logger,
        auto_decompress=False,
        keepalive_timeout=HEADER_SECONDS,
        lingering_time=_LINGER_SECONDS,
        shutdown_timeout=1.0,
    )


async def listen(server: web.Server, address: Address) -> asyncio.Server:
    """Returns a socket that listens at an address and answers with `server`, as far as there is room."""
    max_connections, backlog = compute_connection_limits(raise_open_file_limit())

    def accept() -> asyncio.Protocol:
        return server() if len(server.connections) < max_connections else _RejectedConnection()

    loop = asyncio.get_running_loop()
    return await loop.create_server(accept, address.host, address.port, backlog=backlog)


class AccessLog(AbstractAccessLogger):
    """The access log: who asked for what, and how it was answered; nothing of what was said."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        record = request.get(proxy.ACCESS_RECORD, proxy.AccessRecord())
        line = {
            "at": utc_timestamp(),
            "from": request.remote,
            "key": record.key,
            "method": request.method,
            "path": proxy.normalize_path(request.path),
            "model": record.model,
            "status": response.status,
            "bytes_in": request.content_length,
            "bytes_out": response.body_length,
            "seconds": round(time, 3),
        }
        line |= {"answered": dict(record.answered)} if record.answered else {}
        self.logger.info(json.dumps(line))


class _RejectedConnection(asyncio.Protocol):
    """A connection that there is no room for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_OVERLOADED_RESPONSE)
        transport.close()


@contextmanager
def open_access_log(path: Path) -> Iterator[logging.Logger]:
    """Yields a logger to a file of which a few older ones are kept, written in a thread of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    file = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES - 1, encoding="utf-8")
    writer = QueueListener(queue, file)
    logger = logging.getLogger("insource.access")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = QueueHandler(queue)
    logger.addHandler(handler)
    writer.start()
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        writer.stop()
        file.close()


def _is_server_error(record: logging.LogRecord) -> bool:
    """Whether a record is worth a traceback: not where a client sent what is no HTTP, thousands a second perhaps."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
