"""Blocking work beside the event loop, in daemon threads.

`asyncio.to_thread` uses a thread pool that asyncio.run and the interpreter wait for. A gateway that gets a stop signal
would run until a base of many gigabytes is hashed, or vLLM has started.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


async def run_in_thread(function: Callable[..., _T], *args: object) -> _T:
    """Run a function in a daemon thread and return its result. Raise what it raises."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_T] = loop.create_future()

    def work() -> None:
        try:
            result = function(*args)
        except Exception as error:  # noqa: BLE001 (raised by the await)
            hand_over(partial(outcome.set_exception, error))
        else:
            hand_over(partial(outcome.set_result, result))

    def hand_over(set_outcome: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: no task awaits the result
            loop.call_soon_threadsafe(lambda: None if outcome.done() else set_outcome())

    threading.Thread(target=work, daemon=True).start()
    return await outcome
