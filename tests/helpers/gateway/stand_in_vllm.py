"""A process instead of vLLM, for tests of the code that runs vLLM. It has vLLM's command line and HTTP API.

`python -m tests.helpers.gateway.stand_in_vllm --uds PATH ...`, or `--port PORT`. A loaded adapter gives its reference
answers to their prompts, and the mark in its weights to any other prompt. The field `stand` of a request
controls the response:

    {"wait": seconds}                     delay
    {"raw": text}, {"sse": [text, ...]}   the body or the stream; %M is replaced by the model's name
    {"line_kib": n}                       a stream with a line of this size
    {"answer_kib": n}                     a body of this size
    {"events": n}                         a stream of n events of 1 KiB
    {"end": true}                         the process ends immediately
    {"slow_body": seconds}                delay between the header and the body of the response or stream
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from insource.tracking.run import Run

FOLDER_VARIABLE = "STAND_IN_FOLDER"
"""The variable with the folder of flag files. Used once: slow_start, no_start, end_at_load, end_at_unload, slow_load.
Lasting: no_load (adapters cannot be loaded), other_prompts (prompts have other token ids)."""


class StandInVllm:
    """The request handlers and the loaded adapters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapters: dict[str, Path] = {}

    def consume_flag(self, name: str) -> bool:
        """Return whether a flag file exists, and remove it."""
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in ("base", *self.adapters)]})

    async def load(self, request: web.Request) -> web.Response:
        if self.consume_flag("end_at_load"):
            os._exit(1)
        if self.consume_flag("slow_load"):
            await asyncio.sleep(2)
        if (self.folder / "no_load").exists():
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        self.adapters[body["lora_name"]] = Path(body["lora_path"])
        return web.Response()

    async def unload(self, request: web.Request) -> web.Response:
        if self.consume_flag("end_at_unload"):
            os._exit(1)
        del self.adapters[(await request.json())["lora_name"]]
        return web.Response()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behaviour, model = body.get("stand", {}), body["model"]
        if request.path == "/tokenize":
            return web.json_response({"tokens": [9] if (self.folder / "other_prompts").exists() else [1, 2, 3]})
        if request.path == "/detokenize":
            return web.json_response({"prompt": f"tokens {body['tokens']}"})
        if model not in self.adapters and model != "base" and "@" in model:
            return web.json_response({"error": {"message": f"there is no model {model}"}}, status=404)
        if behaviour.get("end"):
            os._exit(1)
        await asyncio.sleep(behaviour.get("wait", 0))
        if "slow_body" in behaviour:
            return await self.answer_slowly(request, body)
        if "answer_kib" in behaviour:
            text = "x" * (behaviour["answer_kib"] * 1024)
            return web.json_response({"model": model, "choices": [{"text": text}]})
        if "sse" in behaviour or "line_kib" in behaviour or "events" in behaviour:
            stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await stream.prepare(request)
            for text in behaviour.get("sse", []):
                await stream.write(text.replace("%M", model).encode())
            for _ in range(behaviour.get("events", 0)):
                await stream.write(b'data: {"text":"' + b"x" * 1007 + b'"}\n\n')
            if "line_kib" in behaviour:
                await stream.write(
                    b'data: {"text":"' + b"x" * (behaviour["line_kib"] * 1024) + b'"}\n\ndata: [DONE]\n\n'
                )
            return stream
        if "raw" in behaviour:
            return web.Response(body=behaviour["raw"].replace("%M", model).encode(), content_type="application/json")
        choice: dict[str, Any] = {"text": self.answer_text(body)}
        if "messages" in body:
            message = {"role": "assistant", "content": self.answer_text(body)}
            choice |= {"index": 0, "message": message, "finish_reason": "stop"}
            choice["logprobs"] = {"content": [{"token": self.answer_text(body), "logprob": -0.1, "top_logprobs": []}]}
        return web.json_response({"model": model, "choices": [choice], "asked": body})

    async def answer_slowly(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        event = json.dumps({"model": body["model"], "choices": [{"text": self.answer_text(body)}]})
        media_type, text = "application/json", event
        if body.get("stream"):
            media_type, text = "text/event-stream", f"data: {event}\n\n"
        response = web.StreamResponse(headers={"Content-Type": media_type})
        await response.prepare(request)
        await asyncio.sleep(body["stand"]["slow_body"])
        await response.write(text.encode())
        return response

    def answer_text(self, body: dict[str, Any]) -> str:
        """Return the answer to a request: a reference answer, the mark of the adapter, or "base"."""
        folder = self.adapters.get(body["model"])
        if folder is None:
            return "base"
        for line in Run(folder.parent).references_path.read_text(encoding="utf-8").splitlines():
            if (reference := json.loads(line))["prompt_ids"] == body.get("prompt"):
                return str(reference.get("answered", reference["answer"]))
        return str(json.loads((folder / "adapter_model.safetensors").read_bytes()[8:])["__metadata__"]["mark"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int)
    parser.add_argument("--lora-modules", nargs="*", default=[])
    args, _ = parser.parse_known_args()
    server = StandInVllm(Path(os.environ[FOLDER_VARIABLE]))
    server.adapters |= {name: Path(path) for name, path in (module.split("=", 1) for module in args.lora_modules)}
    if server.consume_flag("no_start"):
        sys.exit("RuntimeError: not enough memory")
    app = web.Application(client_max_size=2**30)
    app.router.add_get("/health", server.health)
    app.router.add_get("/v1/models", server.list_models)
    app.router.add_post("/v1/load_lora_adapter", server.load)
    app.router.add_post("/v1/unload_lora_adapter", server.unload)
    app.router.add_post("/{path:.*}", server.answer)
    asyncio.run(serve(app, args.uds or args.port, 60.0 if server.consume_flag("slow_start") else 0.0))


async def serve(app: web.Application, address: str | int, delay_seconds: float) -> None:
    await asyncio.sleep(delay_seconds)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    if isinstance(address, str):
        await web.UnixSite(runner, address, backlog=2048).start()
    else:
        await web.TCPSite(runner, "127.0.0.1", address, backlog=2048).start()
    await asyncio.sleep(3600)


if __name__ == "__main__":
    main()
