"""ASGI middleware for `--middleware` of vLLM: an access log with the body of every request."""

import json
import os
from pathlib import Path

from serve.vllm.host_check import Application, Receive, Scope, Send

FILE_VARIABLE = "BODY_LOG_FILE"


class BodyLog:
    """Append a line of JSON for every request to the file that FILE_VARIABLE names: path and body."""

    def __init__(self, app: Application) -> None:
        self._app, self._file = app, Path(os.environ[FILE_VARIABLE])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks: list[bytes] = []

        async def receive_and_log() -> Scope:
            message = await receive()
            chunks.append(message.get("body", b""))
            if message["type"] == "http.request" and not message.get("more_body"):
                line = {"path": scope["path"], "body": b"".join(chunks).decode()}
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            return message

        await self._app(scope, receive_and_log if scope["type"] == "http" else receive, send)
