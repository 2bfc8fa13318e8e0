"""Does a loaded adapter give its reference answers? Asked by token ids, so that no row of the data is needed."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import StageError
from serve import wire
from serve.engine import Address
from serve.plan import Served
from tracking import files

if TYPE_CHECKING:
    from aiohttp import ClientSession

ROWS = 64
# On another base than the one that was trained on, answers may differ, and `make parity` has judged by how much before
# it was deployed; an adapter that is not applied at all gives next to none of its reference answers.
OTHER_WEIGHTS = 0.5


def agreement(served: Served, name: str, address: Address, api_key: str | None = None) -> float:
    """Returns the share of the first reference answers of an adapter folder that a server gives under `name`.

    Raises StageError where it refuses to answer.
    """
    references = _first(served.folder / "reference.jsonl")
    return asyncio.run(_agreement(references, served.prompt, name, address, api_key))


def _first(path: Path) -> list[dict[str, Any]]:
    return [one for one, _ in zip(files.read_jsonl(path), range(ROWS), strict=False)]


async def _agreement(
    references: list[dict[str, Any]], prompt: dict[str, Any], name: str, address: Address, api_key: str | None
) -> float:
    async with wire.session(address, api_key) as asking:
        answers = await asyncio.gather(*(_answer(asking, one["prompt_ids"], prompt, name) for one in references))
    wanted = [one["answer"] for one in references]
    equal: list[bool] = [a == b for a, b in zip(answers, wanted, strict=True)]
    return sum(equal) / len(equal)


async def _answer(asking: "ClientSession", prompt_ids: list[int], prompt: dict[str, Any], name: str) -> str:
    asked: dict[str, Any] = {"model": name, "prompt": prompt_ids, "max_tokens": prompt["max_answer_tokens"]}
    if prompt["grammar"]:
        asked["structured_outputs"] = {"grammar": prompt["grammar"]}
    async with asking.post("/v1/completions", json=asked) as answer:
        if answer.status != 200:
            raise StageError(f"/v1/completions answers {answer.status}: {(await answer.text())[:300]}")
        return str((await answer.json())["choices"][0]["text"])
