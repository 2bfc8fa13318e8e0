"""A real vLLM, directly and through the gateway: requests a second and latency at the same concurrency."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from operator import sub, truediv
from pathlib import Path
from statistics import median
from typing import Any

from bench.gateway_load.gateway_run import HEADERS, GatewayRun, run_gateway
from bench.gateway_load.load import CONCURRENCY, OK_STATUS, LoadRequest, Round, Server, run_round
from demo_data.support_tickets import generate_tickets
from deploy.gateway.paths.chat_request import PRIVATE_HEADER

DIRECT = "direct"
MIN_RATIO, MAX_ADDED_MILLISECONDS = 0.9, 5.0
"""Targets: throughput of the gateway divided by that of vLLM, and its addition to the median latency."""
REPEATS, ROUND_SECONDS, WARM_UP_SECONDS = 5, 12.0, 4.0
CHAT_PATH = "/v1/chat/completions"
MODES = {
    "prompt": "chats with the task's own prompt and constraint, forwarded unchanged",
    "chat": "chats with the input alone: the gateway adds prompt and constraint",
    "task": "POST /v1/tasks: the answer is parsed and has a confidence",
}


def measure(folder: Path, scale: float) -> dict[str, Any]:
    """Return the figures of all modes, and the targets that were missed."""
    with run_gateway(folder) as gateway:
        rounds = asyncio.run(run_rounds(gateway, scale))
    outcomes = sum(
        (round_result.outcomes for mode_rounds in rounds.values() for round_result in mode_rounds), Counter[str]()
    )
    modes = {mode: summarize(rounds[mode], rounds[DIRECT]) for mode in (DIRECT, *MODES)}
    missed = [f"{count:,} requests ended with {name}" for name, count in outcomes.items() if name != OK_STATUS]
    for mode, figures in modes.items():
        print_mode(mode, figures)
        if mode != DIRECT and figures["ratio"] < MIN_RATIO:
            missed.append(f"{mode}: {figures['ratio']:.2f} of the throughput of vLLM; target {MIN_RATIO}")
    return {"concurrency": CONCURRENCY, "modes": modes, "requests": outcomes.total(), "missed": missed}


async def run_rounds(gateway: GatewayRun, scale: float) -> dict[str, list[Round]]:
    """Return the rounds of each mode. The modes take turns, after a warm-up of each."""
    requests, engine = make_requests(gateway), gateway.engine
    servers: Mapping[str, Server] = {mode: engine if mode == DIRECT else gateway.server for mode in requests}
    for mode, request in requests.items():
        await run_round(servers[mode], request, WARM_UP_SECONDS * scale)
    rounds = defaultdict(list)
    for number in range(REPEATS):
        # The order is reversed every second time, so that a slow change of the machine favours no mode.
        for mode in list(requests)[:: -1 if number % 2 else 1]:
            rounds[mode].append(await run_round(servers[mode], requests[mode], ROUND_SECONDS * scale, pid=gateway.pid))
    return rounds


def make_requests(gateway: GatewayRun) -> dict[str, LoadRequest]:
    """Return the request of each mode. All make vLLM decode the same prompts under the same grammar."""
    messages = [ticket.message for ticket in generate_tickets(2000, seed=11)]
    template = gateway.prompt["messages"][0]["content"]
    constraint = {"structured_outputs": {"grammar": gateway.prompt["grammar"]}, "temperature": 0.0}
    constraint |= {"max_completion_tokens": gateway.prompt["max_answer_tokens"]}

    def text(number: int) -> str:
        return messages[number % len(messages)]

    def prompt_body(model: str, number: int) -> bytes:
        content = template.replace("{input}", text(number))
        return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **constraint}).encode()

    def chat_body(number: int) -> bytes:
        return json.dumps({"model": gateway.model, "messages": [{"role": "user", "content": text(number)}]}).encode()

    private = HEADERS | {PRIVATE_HEADER: "true"}
    return {
        DIRECT: LoadRequest(CHAT_PATH, lambda number: prompt_body(f"{gateway.model}@{gateway.version}", number)),
        "prompt": LoadRequest(CHAT_PATH, lambda number: prompt_body(gateway.model, number), HEADERS),
        "chat": LoadRequest(CHAT_PATH, chat_body, private),
        "task": LoadRequest(
            f"/v1/tasks/{gateway.model}", lambda number: json.dumps({"input": text(number)}).encode(), private
        ),
    }


def summarize(rounds: Sequence[Round], direct: Sequence[Round]) -> dict[str, Any]:
    """Return the medians over the rounds of a mode, beside the direct rounds of the same turns."""
    rates, direct_rates = ([each.requests_per_second for each in part] for part in (rounds, direct))
    p50, direct_p50 = ([each.percentile_milliseconds(0.5) for each in part] for part in (rounds, direct))
    p99, direct_p99 = ([each.percentile_milliseconds(0.99) for each in part] for part in (rounds, direct))
    return {
        "requests_per_second": round(median(rates), 1),
        "p50_milliseconds": round(median(p50), 1),
        "p99_milliseconds": round(median(p99), 1),
        "ratio": round(median(map(truediv, rates, direct_rates)), 3),
        "added_p50_milliseconds": round(median(map(sub, p50, direct_p50)), 2),
        "added_p99_milliseconds": round(median(map(sub, p99, direct_p99)), 2),
        "rounds_requests_per_second": [round(rate, 1) for rate in rates],
        "gateway_cpu_milliseconds": round(median(each.cpu_milliseconds_per_request for each in rounds), 3),
    }


def print_mode(mode: str, figures: Mapping[str, Any]) -> None:
    """Print a line of the table."""
    print(
        f"{mode:25} {figures['requests_per_second']:8,.1f} requests/s  ratio {figures['ratio']:.3f}  "
        f"p50 {figures['p50_milliseconds']:7,.1f} ms ({figures['added_p50_milliseconds']:+.2f})  "
        f"p99 {figures['p99_milliseconds']:7,.1f} ms ({figures['added_p99_milliseconds']:+.2f})  "
        f"gateway {figures['gateway_cpu_milliseconds']:.3f} ms of processor a request",
        flush=True,
    )
