"""A server on loopback instead of vLLM, for tests of bulk prediction. It has OpenAI's API format and counts requests.

    engine = StandInEngine(lambda text: ("late", 0.97))
    with serve_engine(engine) as address:
        ...
    engine.answer_counts["my parcel is late"]    number of complete answers to that input

`python -m tests.helpers.gateway.stand_in_engine PORT` runs a server in a process of its own. The hash of an input
selects the label of its answer.
"""

import asyncio
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.helpers.gateway.task_gateway import LABELS, TASK_NAME, score_tokens
from tests.helpers.provider.provider_answers import stable_number

REFERENCE, PROMPT_IDS = "b", (1, 2, 3)
"""Reference answer and prompt ids of the run that prediction_run.py makes."""
AnswerFunction = Callable[[str], tuple[str, float]]
"""Input -> answer and its probability."""


@dataclass
class StandInEngine:
    """The state of the server: its behaviour, and counts of requests."""

    answer: AnswerFunction
    answer_counts: Counter[str] = field(default_factory=Counter)
    hang_after: int | None = None
    """Number of requests after which it answers no more."""
    n_accepted: int = 0
    delay_seconds: float = 0.0
    """Duration of every answer."""
    failing: bool = False
    """Whether requests and `GET /health` get status 503."""
    refusal_status: Callable[[str, int], int] = lambda text, attempts: 0
    """Input, and number of earlier requests with it -> HTTP status of a refusal, 0 for none."""
    in_flight: int = 0
    max_in_flight: int = 0
    """Largest number of concurrent requests."""
    request_counts: Counter[str] = field(default_factory=Counter)
    inputs: list[str] = field(default_factory=list)
    """Inputs of all requests, in order."""
    loaded_folder: str | None = None
    """The model folder that `GET /v1/models` returns."""
    reference_answer: str = REFERENCE
    """Answer to the prompts of reference answers."""
    prompt_ids: list[int] = field(default_factory=lambda: [*PROMPT_IDS])
    """Token ids that `POST /tokenize` returns."""
    authorizations: set[str] = field(default_factory=set)

    def fail_after(self, requests: int) -> None:
        """Fail after this many further requests, until `recover`."""
        remaining = requests

        def refuse(text: str, attempts: int) -> int:
            nonlocal remaining
            remaining -= 1
            self.failing = remaining < 0
            return 0

        self.refusal_status = refuse

    def recover(self) -> None:
        """Answer all requests again."""
        self.failing, self.refusal_status = False, lambda text, attempts: 0

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.authorizations.add(request.headers.get("Authorization", ""))
        text = body["messages"][-1]["content"].rpartition("Input:\n")[2]
        attempts = self.request_counts[text]
        self.request_counts[text] += 1
        self.inputs.append(text)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            if self.hang_after is not None and self.n_accepted >= self.hang_after:
                await asyncio.sleep(3600)
            self.n_accepted += 1
            await asyncio.sleep(self.delay_seconds)
            if status := self.refusal_status(text, attempts) or (503 if self.failing else 0):
                return web.json_response({"error": {"message": f"refused with {status}"}}, status=status)
            answer, probability = self.answer(text)
            self.answer_counts[text] += 1
            return web.json_response(make_completion(body["model"], answer, probability))
        finally:
            self.in_flight -= 1


def make_completion(model: str, answer: str, probability: float) -> dict[str, Any]:
    """Return vLLM's response for an answer with this probability."""
    token = {"token": answer, "logprob": math.log(probability), "bytes": None, "top_logprobs": []}
    message = {"role": "assistant", "content": answer}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [token]}}
    usage = {"prompt_tokens": 30, "completion_tokens": 3, "total_tokens": 33}
    head = {"id": "c1", "object": "chat.completion", "created": 1, "model": model}
    return {**head, "choices": [choice], "usage": usage}


def make_application(engine: StandInEngine) -> web.Application:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": TASK_NAME, "root": engine.loaded_folder}]})

    async def health(request: web.Request) -> web.Response:
        return web.Response(status=503 if engine.failing else 200)

    async def tokens(request: web.Request) -> web.Response:
        body = await request.json()
        if "logprob_token_ids" not in body:
            return web.json_response({"model": body["model"], "choices": [{"text": engine.reference_answer}]})
        return web.json_response(score_tokens(body))

    async def tokenized(request: web.Request) -> web.Response:
        return web.json_response({"tokens": engine.prompt_ids})

    async def detokenized(request: web.Request) -> web.Response:
        return web.json_response({"prompt": f"tokens {(await request.json())['tokens']}"})

    app = web.Application(client_max_size=2**30)
    app.router.add_post("/tokenize", tokenized)
    app.router.add_post("/detokenize", detokenized)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    app.router.add_post("/v1/chat/completions", engine.chat)
    app.router.add_post("/v1/completions", tokens)
    return app


@contextmanager
def serve_engine(engine: StandInEngine) -> Iterator[str]:
    """Run the server in a thread of its own. Yield its address."""
    with serve_application(make_application(engine)) as address:
        yield address


@contextmanager
def serve_application(app: web.Application) -> Iterator[str]:
    """Run an application in a thread of its own. Yield its address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    state: dict[str, Any] = {}

    async def serve() -> None:
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        state["port"], state["stop"] = runner.addresses[0][1], asyncio.Event()
        started.set()
        await state["stop"].wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{state['port']}"
    finally:
        loop.call_soon_threadsafe(state["stop"].set)
        thread.join()
        loop.close()


def answer_by_hash(text: str) -> tuple[str, float]:
    """Return a label and a probability, both from the hash of an input."""
    number = stable_number(text)
    return LABELS[number % len(LABELS)], 0.5 + (number // 7 % 1000) / 2001


class EmptyCounter(Counter[str]):
    """A counter that stays empty, for a server that answers hundreds of thousands of inputs."""

    def __setitem__(self, key: str, value: int) -> None:
        return


def main() -> None:
    engine = StandInEngine(
        answer_by_hash, answer_counts=EmptyCounter(), request_counts=EmptyCounter(), inputs=EmptyList()
    )
    web.run_app(make_application(engine), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


class EmptyList(list[str]):
    """A list that stays empty."""

    def append(self, value: str) -> None:
        return


if __name__ == "__main__":
    main()
