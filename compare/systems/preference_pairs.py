"""Pairs of answers: how probable the tuned model and its untuned base find each, read by vLLM as they are served.

Nothing is decoded and nobody else is asked: what APIs answer has no probability of a text that they did not write. The
answer of a system to a row is {"chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_tokens",
"rejected_tokens"} in JSON, natural logarithms of whole answers, the base being the reference.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from compare.eval_dataset import Material
from compare.scoring.predictions import Answer
from compare.systems import local_vllm, vllm_servers
from compare.systems.catalog import System
from compare.systems.responses import Gathered, Place
from compare.systems.vllm_servers import Engines
from insource.config.errors import RecipeError, StageError
from insource.tasks.preference import SIDES
from insource.tasks.rendering import chat_template
from insource.tasks.rendering.chat_template import Example
from serve.vllm import client
from serve.vllm.server_process import Address, Plan

Likelihoods = list[dict[str, float]]


def everything(place: Place, systems: Sequence[System]) -> list[Gathered]:
    """Returns how the tuned model and its base judge the pairs of the test set. Raises StageError where a server
    fails, and RecipeError where vLLM cannot tell it here."""
    if place.recipe.accelerate.use_cpu and systems[0].which == "adapter":
        raise RecipeError(
            "serve.model: on a CPU vLLM (0.32) cannot tell how probable a text is to an adapter; compare it merged: "
            "SET=serve.model=merged, after `make export`"
        )
    pairs = _pairs(place)
    with vllm_servers.opened() as ours:
        found = {one.name: _asked(place, one, pairs, ours) for one in systems}
    reference = next(found[one.name] for one in systems if one.kind == "base")
    tokens = [{f"{side}_tokens": len(pair[side].completion_ids) for side in SIDES} for pair in pairs]
    return [Gathered(one, _answers(place.material, found[one.name], reference, tokens)) for one in systems]


def _pairs(place: Place) -> list[dict[str, Example]]:
    from transformers import AutoTokenizer

    material, tokenizer = place.material, AutoTokenizer.from_pretrained(place.here.folder / "adapter")
    talks = [material.module.messages(material.spec, row["input"]) for row in material.test]
    sides = {
        side: chat_template.examples(tokenizer, talks, [row["target"][side] for row in material.test]) for side in SIDES
    }
    return [{side: sides[side][at] for side in SIDES} for at in range(len(talks))]


def _asked(place: Place, system: System, pairs: Sequence[dict[str, Example]], ours: Engines) -> Likelihoods:
    with local_vllm.running(place, system, ours) as (asked, address):
        return asyncio.run(_likelihoods(asked, address, pairs, place.recipe.compare.concurrency))


async def _likelihoods(asked: Plan, address: Address, pairs: Sequence[dict[str, Example]], at_once: int) -> Likelihoods:
    name = next(iter(asked.adapters), asked.name)
    async with client.session(address, at_once=at_once) as asking:

        async def one(example: Example) -> float:
            ids = [*example.prompt_ids, *example.completion_ids]
            body = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            async with asking.post("/v1/completions", json=body) as answer:
                if answer.status != 200:
                    raise StageError(f"/v1/completions answers {answer.status}: {(await answer.text())[:300]}")
                told = (await answer.json())["choices"][0]["prompt_logprobs"]
            last = zip(example.completion_ids, told[len(example.prompt_ids) :], strict=True)
            return sum(float(step[str(token)]["logprob"]) for token, step in last)

        every = await asyncio.gather(*(one(pair[side]) for pair in pairs for side in SIDES))
    return [dict(zip(SIDES, every[at : at + 2], strict=True)) for at in range(0, len(every), 2)]


def _answers(
    material: Material, found: Likelihoods, reference: Likelihoods, tokens: Sequence[dict[str, int]]
) -> list[Answer]:
    answers = []
    for row, own, base, lengths in zip(material.test, found, reference, tokens, strict=True):
        told: dict[str, Any] = {**own, **{f"reference_{side}": base[side] for side in SIDES}, **lengths}
        answers.append(Answer(row["id"], json.dumps(told)))
    return answers
