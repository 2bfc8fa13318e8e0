"""Query vLLM for the probability of every label of a task."""

import asyncio
import math
from collections.abc import Sequence

from deploy.answers import local_model
from deploy.answers.label_tree import LabelTree, TokenIds
from deploy.answers.local_model import EngineConnection

MAX_LOGPROB_TOKENS = 128
"""Maximum number of tokens whose probabilities vLLM 0.32 returns in one request."""


async def score_labels(
    engine: EngineConnection, tree: LabelTree, model: str, prompt_ids: Sequence[int], max_concurrent: int
) -> tuple[dict[str, float], int]:
    """Return the probability of each label after a prompt, and the number of tokens of the prompt.

    At most `max_concurrent` requests are sent to vLLM at a time. Raise RequestError if one fails.
    """
    slots = asyncio.Semaphore(max_concurrent)

    async def query_prefix(prefix: TokenIds, tokens: Sequence[int]) -> dict[int, float]:
        async with slots:
            return await _query_next_token(engine, model, [*prompt_ids, *prefix], tokens)

    chunks = [
        (prefix, tokens[start : start + MAX_LOGPROB_TOKENS])
        for prefix, tokens in tree.choices.items()
        for start in range(0, len(tokens), MAX_LOGPROB_TOKENS)
    ]
    results = await asyncio.gather(*(query_prefix(prefix, tokens) for prefix, tokens in chunks))
    log_probabilities: dict[TokenIds, dict[int, float]] = {}
    for (prefix, _), result in zip(chunks, results, strict=True):
        log_probabilities.setdefault(prefix, {}).update(result)
    return tree.probabilities(log_probabilities), len(prompt_ids)


async def _query_next_token(
    engine: EngineConnection, model: str, ids: Sequence[int], tokens: Sequence[int]
) -> dict[int, float]:
    """Return the log-probabilities (natural logarithm) of possible next tokens."""
    body = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 0,
        "logprob_token_ids": list(tokens),
        "return_tokens_as_token_ids": True,
    }
    payload = await local_model.post_to_engine(engine, "/v1/completions", body)
    try:
        (top,) = payload["choices"][0]["logprobs"]["top_logprobs"]
        by_token = {int(name.rpartition(":")[2]): float(value) for name, value in top.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise local_model.unreadable_answer(error) from None
    return {token: by_token.get(token, -math.inf) for token in tokens}
