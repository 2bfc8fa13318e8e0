"""Probabilities of all labels: `python -m bench.decisions`.

It serves the pocket model with vLLM and asks for the probability of each of 77 labels in two ways, in turns on the same
messages. It writes bench/results/decisions.json and prints the figures.

    shared    one request for each prefix at which labels diverge, as POST /v1/decisions (answers/label_scores.py)
    each      for each label, one constrained decoding step at each of its tokens where labels diverge

Both multiply the probabilities along a label's tokens, with only labels allowed, so the results must be equal within
TOLERANCE, and `shared` must be MIN_RATIO times as fast. Both have the same number of requests in flight and the same
prefix cache: before a message is timed, a request computes its prompt. Messages and labels are SYNTHETIC.
"""

import argparse
import asyncio
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.training.workloads import LABEL_ISSUES, LABEL_SUBJECTS, SEED
from demo_data.support_tickets import generate_tickets
from deploy.answers import local_model
from deploy.answers.label_scores import score_labels
from deploy.answers.label_tree import LabelTree, TaskTokens, TokenIds
from deploy.answers.local_model import EngineConnection
from insource.config import cli
from insource.config.base_models import POCKET
from insource.config.errors import GateError
from insource.config.load import load
from insource.config.schema.serving_and_cost import Limits
from insource.system import atomic_files, environment
from insource.system.console_log import log_line
from insource.tasks import classification
from serve.vllm import client, lifecycle
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess, free_port

RESULTS = Path(__file__).parent / "results" / "decisions.json"
TOLERANCE = 1e-4
MIN_RATIO = 3.0
"""Target: messages a second of `shared`, divided by those of `each`."""
MODEL = "pocket"
CONCURRENCY = Limits().sequences


@dataclass(frozen=True)
class Measurement:
    """Seconds of both ways for one message, and their largest difference of a probability."""

    shared_seconds: float
    each_seconds: float
    difference: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.decisions", description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=77)
    parser.add_argument("--messages", type=int, default=40)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    spec = make_task(arguments.labels)
    prompts, tree = encode_messages(spec, arguments.messages)
    with tempfile.TemporaryDirectory() as folder:
        vllm = VllmProcess(make_plan(), Address("127.0.0.1", free_port()), Path(folder) / "vllm.log")
        with lifecycle.stop_on_exit(vllm):
            lifecycle.start_and_wait(vllm)
            measurements = asyncio.run(measure_messages(vllm.address, prompts, tree))
    result = summarize(measurements, tree, arguments.labels)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(arguments.results, result)
    print(
        f"shared    {result['shared_per_second']:.2f} messages/s, {result['shared_requests']} requests each\n"
        f"each      {result['each_per_second']:.2f} messages/s, {result['each_requests']} requests each\n"
        f"ratio     {result['ratio']:.2f} (median over messages)\n"
        f"equal     within {result['largest_difference']:.1e}"
    )
    if result["largest_difference"] > TOLERANCE:
        raise GateError(
            f"the probabilities differ by {result['largest_difference']:.1e}; allowed: {TOLERANCE:.0e}", code="INS-X010"
        )
    if result["ratio"] < MIN_RATIO:
        raise GateError(
            f"shared is {result['ratio']:.2f} times as fast as each; target: {MIN_RATIO:.0f}", code="INS-X010"
        )
    return cli.OK


def make_task(n_labels: int) -> classification.Spec:
    """Return a classification task with synthetic labels."""
    names = [f"{subject} {issue}" for subject in LABEL_SUBJECTS for issue in LABEL_ISSUES]
    labels = random.Random(SEED).sample(names, n_labels)
    return classification.Spec("Choose the queue for the customer's message.", dict.fromkeys(labels, ""))


def encode_messages(spec: classification.Spec, count: int) -> tuple[list[list[int]], LabelTree]:
    """Return the token ids of the prompts of `count` messages, and the tree of the labels."""
    tokens = TaskTokens(POCKET, classification, spec)
    encoded = [tokens.encode(ticket.message) for ticket in generate_tickets(count, SEED)]
    return [ids for ids, _ in encoded], encoded[0][1]


def make_plan() -> LaunchPlan:
    """Return the plan of a vLLM with the pocket model, with the settings of this machine's hardware file."""
    recipe = load("classifier", hardware_name="cpu").recipe
    template = POCKET / "chat_template.jinja"
    return LaunchPlan(
        str(POCKET), MODEL, recipe.serve, recipe.accelerate.use_cpu, chat_template=template, tokenizer=POCKET
    )


async def measure_messages(address: Address, prompts: Sequence[list[int]], tree: LabelTree) -> list[Measurement]:
    """Return the measurement of each message. Every second message starts with the other way."""
    measurements = []
    async with client.open_session(address, max_connections=CONCURRENCY) as session:
        engine = EngineConnection(session, lambda: None)
        await measure_message(engine, prompts[0], tree, shared_first=True)  # warms up both ways
        for number, ids in enumerate(prompts):
            measurement = await measure_message(engine, ids, tree, shared_first=number % 2 == 0)
            measurements.append(measurement)
            log_line(f"message   {number + 1} of {len(prompts)}")
    return measurements


async def measure_message(engine: EngineConnection, ids: list[int], tree: LabelTree, shared_first: bool) -> Measurement:
    """Return the measurement of one message, whose prompt is computed before the clock starts."""
    await query_steps(engine, ids, tree, [()] if () in tree.choices else [])
    seconds, probabilities = {}, {}
    for way in ("shared", "each") if shared_first else ("each", "shared"):
        started_at = time.perf_counter()
        if way == "shared":
            probabilities[way], _ = await score_labels(engine, tree, MODEL, ids, CONCURRENCY)
        else:
            probabilities[way] = await decode_each_label(engine, ids, tree)
        seconds[way] = time.perf_counter() - started_at
    difference = max(abs(probabilities["shared"][label] - probabilities["each"][label]) for label in tree.paths)
    return Measurement(seconds["shared"], seconds["each"], difference)


async def decode_each_label(engine: EngineConnection, ids: list[int], tree: LabelTree) -> dict[str, float]:
    """Return the probability of each label from constrained decoding steps of its own, CONCURRENCY at a time."""
    steps = [(label, prefix) for label, path in tree.paths.items() for prefix in find_choices(path, tree)]
    distributions = await query_steps(engine, ids, tree, [prefix for _, prefix in steps])
    probabilities = dict.fromkeys(tree.paths, 1.0)
    for (label, prefix), distribution in zip(steps, distributions, strict=True):
        probabilities[label] *= math.exp(distribution[tree.paths[label][len(prefix)]])
    return probabilities


def find_choices(path: TokenIds, tree: LabelTree) -> list[TokenIds]:
    """Return the prefixes of a label's tokens at which other labels continue differently."""
    return [path[:length] for length in range(len(path)) if path[:length] in tree.choices]


async def query_steps(
    engine: EngineConnection, ids: list[int], tree: LabelTree, prefixes: Sequence[TokenIds]
) -> list[dict[int, float]]:
    """Return the log-probabilities (natural logarithm) of the allowed next tokens after each prefix."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def decode(prefix: TokenIds) -> dict[int, float]:
        allowed = tree.choices[prefix]
        body: dict[str, Any] = {"model": MODEL, "prompt": [*ids, *prefix], "max_tokens": 1, "temperature": 0.0}
        body |= {"allowed_token_ids": list(allowed), "logprobs": 0, "logprob_token_ids": list(allowed)}
        async with slots:
            payload = await local_model.post_to_engine(
                engine, "/v1/completions", body | {"return_tokens_as_token_ids": True}
            )
        (top,) = payload["choices"][0]["logprobs"]["top_logprobs"]
        return {int(name.rpartition(":")[2]): float(value) for name, value in top.items()}

    return await asyncio.gather(*(decode(prefix) for prefix in prefixes))


def summarize(measurements: Sequence[Measurement], tree: LabelTree, n_labels: int) -> dict[str, Any]:
    """Return the figures of the bench."""
    return {
        "labels": n_labels,
        "messages": len(measurements),
        "concurrency": CONCURRENCY,
        "shared_requests": len(tree.choices),
        "each_requests": sum(len(find_choices(path, tree)) for path in tree.paths.values()),
        "shared_per_second": len(measurements) / sum(measurement.shared_seconds for measurement in measurements),
        "each_per_second": len(measurements) / sum(measurement.each_seconds for measurement in measurements),
        "ratio": statistics.median(
            measurement.each_seconds / measurement.shared_seconds for measurement in measurements
        ),
        "largest_difference": max(measurement.difference for measurement in measurements),
        "version": environment.read_vllm_version(),
        **machine.describe_call("python -m bench.decisions"),
    }


if __name__ == "__main__":
    cli.run_cli(main)
