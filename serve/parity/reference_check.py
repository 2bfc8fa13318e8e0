"""Is a loaded adapter asked what it was trained on, and does it give its reference answers? No row of the data is
needed: answers are asked for by token ids, and the ids of prompts are compared on the messages of prompt.json."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.errors import StageError
from insource.system import atomic_files
from serve.vllm import client
from serve.vllm.launch_plan import MAX_ROUNDING_FRACTION, ServedModel
from serve.vllm.server_process import Address

if TYPE_CHECKING:
    from aiohttp import ClientSession

REFERENCE_ROWS = 64
# On another base than the one that was trained on, answers may differ, and `make parity` has judged by how much before
# it was deployed; an adapter that is not applied at all gives next to none of its reference answers.
MIN_AGREEMENT_OTHER_WEIGHTS = 0.5
# Tokens that are shown on each side of the place where two prompts differ.
CONTEXT_TOKENS = 12


def measure_agreement(
    served: ServedModel, name: str, address: Address, api_key: str | None = None, rounding: float = 0.0
) -> float:
    """Returns the share of the first reference answers of an adapter that a server gives under `name`; others of rows
    whose margin is below `rounding` (`plan.rounding`) count as given, unless they are too many to be rounding.

    Raises StageError where it refuses to answer.
    """
    references = load_references(served.run.references)
    answers = asyncio.run(_query(references, served.prompt, name, address, api_key))
    return compute_agreement(references, answers, rounding)


def compute_agreement(references: Sequence[Mapping[str, Any]], answers: Sequence[str], rounding: float) -> float:
    """Returns the share of reference answers that were found; others of rows with a margin below `rounding` count as
    found, unless they are too many to be rounding."""
    differing = [
        reference for reference, answer in zip(references, answers, strict=True) if answer != reference["answer"]
    ]
    close = [
        reference for reference in differing if reference.get("margin") is not None and reference["margin"] < rounding
    ]
    excused = len(close) if len(close) <= MAX_ROUNDING_FRACTION * len(references) else 0
    return 1 - (len(differing) - excused) / len(references)


def find_prompt_mismatch(served: ServedModel, name: str, address: Address, api_key: str | None = None) -> str | None:
    """Returns where the ids that a server reads for the messages of prompt.json differ from those that training read,
    None where they are the same; adapters of an earlier version of this project have none to compare.

    Raises StageError where it refuses to answer.
    """
    expected = served.prompt.get("prompt_ids")
    if expected is None:
        return None
    (actual,) = asyncio.run(client.fetch_prompt_ids(address, api_key, name, [served.prompt["messages"]]))
    return describe_token_difference(served, name, address, api_key, expected, actual)


def describe_token_difference(
    served: ServedModel,
    name: str,
    address: Address,
    api_key: str | None,
    expected: Sequence[int],
    actual: Sequence[int],
) -> str | None:
    """Returns the first place where two prompts differ, as text on both sides; None for equal ones."""
    if list(expected) == list(actual):
        return None
    from insource.tasks.rendering import chat_template

    shared_length = chat_template.shared_prefix_length([list(expected), list(actual)])
    window = slice(max(0, shared_length - CONTEXT_TOKENS), shared_length + CONTEXT_TOKENS)
    tokenizer = chat_template.load_saved_tokenizer(str(served.folder))
    server_text = asyncio.run(client.detokenize(address, api_key, name, actual[window]))
    return (
        f"from token {shared_length + 1} of {len(expected)} on: trained on "
        f"...{tokenizer.decode(list(expected[window]))!r}, "
        f"and the server reads ...{server_text!r}"
    )


def load_references(path: Path) -> list[dict[str, Any]]:
    """Returns the reference answers that a server is asked for."""
    return [reference for reference, _ in zip(atomic_files.read_jsonl(path), range(REFERENCE_ROWS), strict=False)]


async def _query(
    references: list[dict[str, Any]], prompt: dict[str, Any], name: str, address: Address, api_key: str | None
) -> list[str]:
    async with client.open_session(address, api_key) as session:
        return await query_references(session, references, prompt, name)


async def query_references(
    session: "ClientSession", references: Sequence[Mapping[str, Any]], prompt: dict[str, Any], name: str
) -> list[str]:
    """Returns what a server answers to the prompts of reference answers. Raises StageError where it refuses."""
    return await asyncio.gather(
        *(_query_prompt(session, reference["prompt_ids"], prompt, name) for reference in references)
    )


async def _query_prompt(session: "ClientSession", prompt_ids: list[int], prompt: dict[str, Any], name: str) -> str:
    body: dict[str, Any] = {"model": name, "prompt": prompt_ids, "max_tokens": prompt["max_answer_tokens"]}
    if prompt["grammar"]:
        body["structured_outputs"] = {"grammar": prompt["grammar"]}
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise StageError(f"/v1/completions answers {response.status}: {(await response.text())[:300]}")
        return str((await response.json())["choices"][0]["text"])
