"""Control loop of the gateway: keep its vLLM running, follow the registry, and stop within 10 s of a signal."""

import asyncio
import time
from logging import Logger

from deploy.gateway import http_server
from deploy.gateway.gateway import POLL_SECONDS, Gateway
from deploy.gateway.pool_gateway import PoolGateway
from deploy.gateway.proxy_state import ProxyState
from insource.config.errors import StageError
from insource.system.console_log import log_line
from insource.system.daemon_thread import run_in_thread
from serve.vllm import lifecycle
from serve.vllm.server_process import Address

RETRY_SECONDS = 2.0
DRAIN_SECONDS = 4.0
"""Time for requests in flight at the end. Together with aiohttp and vLLM stopping takes less than 10 s."""


async def serve_forever(gateway: Gateway | PoolGateway, address: Address, access_log: Logger | None = None) -> None:
    """Serve until a stop signal. Raise StageError if vLLM does not become ready or fails too often."""
    stop_event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in http_server.list_stop_signals():
        loop.add_signal_handler(number, stop_event.set)
    runner = http_server.build_runner(gateway.proxy_state, access_log)
    await runner.setup()
    assert runner.server is not None
    listener = await http_server.listen(runner.server, address)
    control_loop = gateway.run(address) if isinstance(gateway, PoolGateway) else run_control_loop(gateway, address)
    control_task = asyncio.create_task(control_loop)
    monitor_task = asyncio.create_task(gateway.proxy_state.monitor.run())
    stop_task = asyncio.create_task(stop_event.wait())
    try:
        await asyncio.wait({control_task, stop_task}, return_when=asyncio.FIRST_COMPLETED)
        if control_task.done():
            control_task.result()
        log_line("stop      answering the requests in flight")
    finally:
        listener.close()
        gateway.proxy_state.stopping = True
        stop_task.cancel()
        control_task.cancel()
        await asyncio.gather(control_task, stop_task, return_exceptions=True)
        await _wait_for_drain(gateway.proxy_state)
        await gateway.close_traffic()
        await gateway.proxy_state.monitor.close()
        await monitor_task
        await gateway.deployments.close()
        # Concurrently: vLLM has no requests left, and may take as long to stop as the connections.
        await asyncio.gather(run_in_thread(gateway.stop), runner.cleanup())


async def run_control_loop(gateway: Gateway, address: Address) -> None:
    """Start vLLM, then follow the registry and restart vLLM when it fails.

    Raise StageError if vLLM does not become ready at first, or fails too often.
    """
    await gateway.start_engine()
    failures: list[float] = []
    follow_task = asyncio.create_task(gateway.follow_registry(address))
    try:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if follow_task.done():
                follow_task.result()
            if reason := await gateway.find_failure():
                follow_task.cancel()
                await asyncio.gather(follow_task, return_exceptions=True)
                await _restart_engine(gateway, failures, reason)
                follow_task = asyncio.create_task(gateway.follow_registry(address))
    finally:
        follow_task.cancel()
        await asyncio.gather(follow_task, return_exceptions=True)


async def _restart_engine(gateway: Gateway, failures: list[float], reason: str) -> None:
    """Restart vLLM until it becomes ready. Raise StageError if it has failed too often.

    A failed start counts as a failure. The memory of the previous process may not be free yet.
    """
    while True:
        lifecycle.record_failure(failures, reason)
        try:
            await gateway.restart_engine(reason)
            return
        except StageError as error:
            reason = f"did not start again: {error}"
            await asyncio.sleep(RETRY_SECONDS)


async def _wait_for_drain(proxy_state: ProxyState) -> None:
    """Wait until no request is in flight, for at most DRAIN_SECONDS."""
    end = time.monotonic() + DRAIN_SECONDS
    while proxy_state.in_flight_by_client.total() and time.monotonic() < end:
        await asyncio.sleep(0.05)
