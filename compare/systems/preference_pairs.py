"""Pairs of answers: how probable the tuned model and its untuned base find each, read by vLLM as they are served.

Nothing is decoded and nobody else is asked: what APIs answer has no probability of a text that they did not write. The
answer of a system to a row is {"chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_tokens",
"rejected_tokens"} in JSON, natural logarithms of whole answers, the base being the reference.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from compare.eval_dataset import EvalDataset
from compare.scoring.predictions import SystemAnswer
from compare.systems import local_vllm, vllm_servers
from compare.systems.catalog import System
from compare.systems.responses import ComparisonContext, SystemResponses
from compare.systems.vllm_servers import VllmServers
from insource.config.errors import RecipeError, StageError
from insource.tasks.preference import PAIR_KEYS
from insource.tasks.rendering import chat_template
from insource.tasks.rendering.chat_template import Example
from serve.vllm import client
from serve.vllm.server_process import Address, LaunchPlan

LogLikelihoods = list[dict[str, float]]


def collect_preferences(place: ComparisonContext, systems: Sequence[System]) -> list[SystemResponses]:
    """Returns how the tuned model and its base judge the pairs of the test set. Raises StageError where a server
    fails, and RecipeError where vLLM cannot tell it here."""
    if place.recipe.accelerate.use_cpu and systems[0].which == "adapter":
        raise RecipeError(
            "serve.model: on a CPU vLLM (0.32) cannot tell how probable a text is to an adapter; compare it merged: "
            "SET=serve.model=merged, after `make export`"
        )
    pairs = _pairs(place)
    with vllm_servers.open_servers() as ours:
        found = {one.name: _score_pairs(place, one, pairs, ours) for one in systems}
    reference = next(found[one.name] for one in systems if one.kind == "base")
    tokens = [{f"{side}_tokens": len(pair[side].completion_ids) for side in PAIR_KEYS} for pair in pairs]
    return [SystemResponses(one, _answers(place.material, found[one.name], reference, tokens)) for one in systems]


def _pairs(place: ComparisonContext) -> list[dict[str, Example]]:
    from transformers import AutoTokenizer

    material, tokenizer = place.material, AutoTokenizer.from_pretrained(place.here.folder / "adapter")
    talks = [material.module.messages(material.spec, row["input"]) for row in material.test]
    sides = {
        side: chat_template.render_examples(tokenizer, talks, [row["target"][side] for row in material.test])
        for side in PAIR_KEYS
    }
    return [{side: sides[side][at] for side in PAIR_KEYS} for at in range(len(talks))]


def _score_pairs(
    place: ComparisonContext, system: System, pairs: Sequence[dict[str, Example]], ours: VllmServers
) -> LogLikelihoods:
    with local_vllm.serve_system(place, system, ours) as (asked, address):
        return asyncio.run(_sequence_log_likelihoods(asked, address, pairs, place.recipe.compare.concurrency))


async def _sequence_log_likelihoods(
    asked: LaunchPlan, address: Address, pairs: Sequence[dict[str, Example]], at_once: int
) -> LogLikelihoods:
    name = next(iter(asked.adapters), asked.name)
    async with client.open_session(address, at_once=at_once) as asking:

        async def one(example: Example) -> float:
            ids = [*example.prompt_ids, *example.completion_ids]
            body = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            async with asking.post("/v1/completions", json=body) as answer:
                if answer.status != 200:
                    raise StageError(f"/v1/completions answers {answer.status}: {(await answer.text())[:300]}")
                told = (await answer.json())["choices"][0]["prompt_logprobs"]
            last = zip(example.completion_ids, told[len(example.prompt_ids) :], strict=True)
            return sum(float(step[str(token)]["logprob"]) for token, step in last)

        every = await asyncio.gather(*(one(pair[side]) for pair in pairs for side in PAIR_KEYS))
    return [dict(zip(PAIR_KEYS, every[at : at + 2], strict=True)) for at in range(0, len(every), 2)]


def _answers(
    material: EvalDataset, found: LogLikelihoods, reference: LogLikelihoods, tokens: Sequence[dict[str, int]]
) -> list[SystemAnswer]:
    answers = []
    for row, own, base, lengths in zip(material.test, found, reference, tokens, strict=True):
        told: dict[str, Any] = {**own, **{f"reference_{side}": base[side] for side in PAIR_KEYS}, **lengths}
        answers.append(SystemAnswer(row["id"], json.dumps(told)))
    return answers
