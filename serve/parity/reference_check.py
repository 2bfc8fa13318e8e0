"""Check a loaded adapter by its reference answers and the token ids of its prompts, without rows of the data.

Answers are requested by token ids. Prompt ids are compared on the messages of prompt.json.
"""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from insource.system.daemon_thread import run_in_thread
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.reference_row import ReferenceRow, read_references
from serve.vllm import client
from serve.vllm.launch_plan import MAX_ROUNDING_FRACTION, ServedModel

if TYPE_CHECKING:
    from aiohttp import ClientSession

REFERENCE_ROWS = 64
# On another base answers may differ; `make parity` measured the difference before the deployment. An adapter that is
# not applied gives almost none of its reference answers.
MIN_AGREEMENT_OTHER_WEIGHTS = 0.5
# Tokens shown on each side of the first difference of two prompts.
CONTEXT_TOKENS = 12


async def measure_agreement(session: "ClientSession", served: ServedModel, name: str, rounding: float) -> float:
    """Return the fraction of an adapter's first reference answers that the server gives under `name`.

    A different answer counts as equal if its margin is below `rounding` (`launch_plan.rounding_tolerance`), unless
    there are too many for rounding. Raise StageError if the server rejects a request.
    """
    references, prompt = await run_in_thread(_load_references, served.run.references_path), served.prompt
    answers = await asyncio.gather(
        *(_query_prompt(session, reference.prompt_ids, prompt, name) for reference in references)
    )
    differing = [reference for reference, answer in zip(references, answers, strict=True) if answer != reference.answer]
    close = [reference for reference in differing if reference.margin is not None and reference.margin < rounding]
    excused = len(close) if len(close) <= MAX_ROUNDING_FRACTION * len(references) else 0
    return 1 - (len(differing) - excused) / len(references)


async def find_prompt_mismatch(session: "ClientSession", served: ServedModel, name: str) -> str | None:
    """Return where the server's token ids of the messages in prompt.json differ from those in training, None if equal.

    Adapters of an earlier version of this project have no ids to compare and return None. Raise StageError if the
    server rejects a request.
    """
    expected = served.prompt.prompt_ids
    if expected is None:
        return None
    (actual,) = await client.fetch_prompt_ids(session, name, [served.prompt.messages])
    return None if actual == expected else await describe_token_difference(session, served, name, expected, actual)


async def describe_token_difference(
    session: "ClientSession", served: ServedModel, name: str, expected: Sequence[int], actual: Sequence[int]
) -> str:
    """Return the first difference of two different prompts as text of both sides."""
    from insource.tasks.rendering import chat_template

    shared_length = chat_template.shared_prefix_length([list(expected), list(actual)])
    window = slice(max(0, shared_length - CONTEXT_TOKENS), shared_length + CONTEXT_TOKENS)
    tokenizer = await run_in_thread(chat_template.load_saved_tokenizer, str(served.folder))
    trained_text = tokenizer.decode(list(expected[window]))
    server_text = await client.detokenize(session, name, actual[window])
    return (
        f"from token {shared_length + 1} of {len(expected)} on: trained on ...{trained_text!r}, and the server reads "
        f"...{server_text!r}"
    )


def _load_references(path: Path) -> list[ReferenceRow]:
    return list(itertools.islice(read_references(path), REFERENCE_ROWS))


async def _query_prompt(session: "ClientSession", prompt_ids: list[int], prompt: PromptSpec, name: str) -> str:
    body: dict[str, object] = {"model": name, "prompt": prompt_ids, "max_tokens": prompt.max_answer_tokens}
    if prompt.grammar:
        body["structured_outputs"] = {"grammar": prompt.grammar}
    return str((await client.post_json(session, "/v1/completions", body))["choices"][0]["text"])
