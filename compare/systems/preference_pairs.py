"""Log-likelihoods of preference pairs under the served tuned model and its untuned base, read from vLLM.

No text is generated and no API model is compared, because APIs do not return log-probabilities of given text. The
answer of a system to a row is JSON: {"chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_tokens",
"rejected_tokens"}. The values are natural logarithms of complete answers; the reference is the base.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from compare.eval_dataset import EvalDataset
from compare.records import System, SystemAnswer, SystemResponses
from compare.systems import local_vllm, vllm_servers
from compare.systems.responses import ComparisonContext
from compare.systems.vllm_servers import VllmServers
from insource.config.errors import RecipeError
from insource.tasks.preference import PAIR_KEYS
from insource.tasks.rendering import chat_template
from insource.tasks.rendering.chat_template import Example
from serve.vllm import client
from serve.vllm.server_process import Address, LaunchPlan

LogLikelihoods = list[dict[str, float]]


def collect_preferences(context: ComparisonContext, systems: Sequence[System]) -> list[SystemResponses]:
    """Return the log-likelihoods of the test pairs under the tuned model and its base.

    Raise StageError if a server fails, RecipeError if vLLM cannot compute them on this hardware.
    """
    if context.recipe.accelerate.use_cpu and systems[0].variant == "adapter":
        raise RecipeError(
            "serve.model: on a CPU vLLM (0.32) returns no prompt log-probabilities for an adapter; compare the merged "
            "model: SET=serve.model=merged, after `make export`",
            code="INS-E015",
        )
    pairs = _pairs(context)
    with vllm_servers.open_servers() as servers:
        likelihoods = {system.name: _score_pairs(context, system, pairs, servers) for system in systems}
    reference = next(likelihoods[system.name] for system in systems if system.kind == "base")
    tokens = [{f"{side}_tokens": len(pair[side].completion_ids) for side in PAIR_KEYS} for pair in pairs]
    return [
        SystemResponses(system, _answers(context.dataset, likelihoods[system.name], reference, tokens))
        for system in systems
    ]


def _pairs(context: ComparisonContext) -> list[dict[str, Example]]:
    from transformers import AutoTokenizer

    dataset, tokenizer = context.dataset, AutoTokenizer.from_pretrained(context.run.folder / "adapter")
    conversations = [dataset.task.messages(dataset.spec, row["input"]) for row in dataset.test]
    sides = {
        side: chat_template.render_examples(tokenizer, conversations, [row["target"][side] for row in dataset.test])
        for side in PAIR_KEYS
    }
    return [{side: sides[side][index] for side in PAIR_KEYS} for index in range(len(conversations))]


def _score_pairs(
    context: ComparisonContext, system: System, pairs: Sequence[dict[str, Example]], servers: VllmServers
) -> LogLikelihoods:
    with local_vllm.serve_system(context, system, servers) as (plan, address):
        return asyncio.run(_sequence_log_likelihoods(plan, address, pairs, context.recipe.compare.concurrency))


async def _sequence_log_likelihoods(
    plan: LaunchPlan, address: Address, pairs: Sequence[dict[str, Example]], concurrency: int
) -> LogLikelihoods:
    name = next(iter(plan.adapters), plan.name)
    async with client.open_session(address, max_connections=concurrency) as session:

        async def score_example(example: Example) -> float:
            ids = [*example.prompt_ids, *example.completion_ids]
            body = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            payload = await client.post_json(session, "/v1/completions", body)
            log_probabilities = payload["choices"][0]["prompt_logprobs"]
            steps = zip(example.completion_ids, log_probabilities[len(example.prompt_ids) :], strict=True)
            return sum(float(step[str(token)]["logprob"]) for token, step in steps)

        likelihoods = await asyncio.gather(*(score_example(pair[side]) for pair in pairs for side in PAIR_KEYS))
    return [
        dict(zip(PAIR_KEYS, likelihoods[index : index + 2], strict=True)) for index in range(0, len(likelihoods), 2)
    ]


def _answers(
    dataset: EvalDataset, likelihoods: LogLikelihoods, reference: LogLikelihoods, tokens: Sequence[dict[str, int]]
) -> list[SystemAnswer]:
    answers = []
    for row, tuned, untuned, lengths in zip(dataset.test, likelihoods, reference, tokens, strict=True):
        payload: dict[str, Any] = {**tuned, **{f"reference_{side}": untuned[side] for side in PAIR_KEYS}, **lengths}
        answers.append(SystemAnswer(row["id"], json.dumps(payload)))
    return answers
