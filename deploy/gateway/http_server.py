"""The HTTP server of the gateway: its connection limit, timeouts and logs.

A connection is closed if it sends no complete header within HEADER_SECONDS, or nothing for that long after an answer.
Connections beyond the limit of open files get 503 and are closed immediately, so that accept never fails.
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
from deploy.gateway.proxy import ACCESS_RECORD, AccessRecord
from deploy.gateway.proxy_state import ProxyState
from insource.system.timestamps import utc_timestamp
from serve.vllm.server_process import Address

HEADER_SECONDS = 30.0
MAX_CONNECTIONS = 4096
"""Limit regardless of the number of file descriptors: each connection may use some memory."""
_MAX_DESCRIPTORS = 2**20
_RESERVED_DESCRIPTORS = 64
_LINGER_SECONDS = 5.0
_LOG_BYTES, _LOG_FILES = 16 * 2**20, 4
_OVERLOADED_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def raise_open_file_limit() -> int:
    """Raise the soft limit of open files to the hard limit. Return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def compute_connection_limits(descriptors: int) -> tuple[int, int]:
    """Return the maximum numbers of open connections and of connections that wait to be accepted, for `descriptors`.

    A forwarded request needs another connection to vLLM, and all waiting connections may be accepted together.
    """
    backlog = min(1024, descriptors // 4)
    return max(1, min(MAX_CONNECTIONS, (descriptors - _RESERVED_DESCRIPTORS - backlog) // 2)), backlog


def list_stop_signals() -> list[signal.Signals]:
    """Return the signals that stop the gateway. A signal that was ignored at the start remains ignored (nohup)."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def build_runner(proxy_state: ProxyState, access_log: logging.Logger | None) -> web.AppRunner:
    """Return the proxy as an aiohttp runner that does not listen yet."""
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
    """Listen on an address and answer with `server`, up to the connection limit. Return the listening server."""
    max_connections, backlog = compute_connection_limits(raise_open_file_limit())

    def accept() -> asyncio.Protocol:
        return server() if len(server.connections) < max_connections else _RejectedConnection()

    loop = asyncio.get_running_loop()
    return await loop.create_server(accept, address.host, address.port, backlog=backlog)


class AccessLog(AbstractAccessLogger):
    """Access log: client, path, model and status of each request, without contents of requests and answers."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write a request as a line of JSON."""
        record: AccessRecord = request.get(ACCESS_RECORD, AccessRecord())
        line: dict[str, object] = {
            "at": utc_timestamp(),
            "from": request.remote,
            "key": record.client,
            "method": request.method,
            "path": proxy.normalize_path(request.path),
            "model": record.model,
            "status": response.status,
            "bytes_in": request.content_length,
            "bytes_out": response.body_length,
            "seconds": round(time, 3),
        }
        line |= {"answered": dict(record.outcomes)} if record.outcomes else {}
        self.logger.info(json.dumps(line))


class _RejectedConnection(asyncio.Protocol):
    """A connection beyond the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(_OVERLOADED_RESPONSE)
        transport.close()


@contextmanager
def open_access_log(path: Path) -> Iterator[logging.Logger]:
    """Yield a logger to a rotated file, written in a separate thread."""
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
    """Return whether a log record needs a traceback.

    Invalid HTTP from clients, possibly thousands a second, needs none.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
