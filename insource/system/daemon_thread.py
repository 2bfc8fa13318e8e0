"""Work aside of the event loop, in threads that nobody waits for at the end.

`asyncio.to_thread` takes threads of a pool that asyncio.run and the interpreter wait for: a gateway that is asked to
stop would go on until a base of many gigabytes is hashed, or vLLM has started.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


async def run_in_thread(function: Callable[..., _T], *args: object) -> _T:
    """Returns what a function returns that runs in a thread of its own. Raises what it raises."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_T] = loop.create_future()

    def work() -> None:
        try:
            result = function(*args)
        except Exception as error:  # noqa: BLE001 (it is raised where the work is awaited)
            hand_over(partial(outcome.set_exception, error))
        else:
            hand_over(partial(outcome.set_result, result))

    def hand_over(set_outcome: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if outcome.done() else set_outcome())

    threading.Thread(target=work, daemon=True).start()
    return await outcome
