"""Verification that the server at BASE_URL serves the run, at every call, before a row is queried."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError, ClientSession

from deploy.answers import local_model
from deploy.routing import Routing
from insource.config.errors import RecipeError, StageError
from insource.config.schema.serving_and_cost import Serve
from serve.parity import reference_check
from serve.vllm import launch_plan
from serve.vllm.launch_plan import ServedModel

ModelCard = Mapping[str, Any]
"""{"id", "root", "parent", "max_model_len"} of a model, from /v1/models."""


@dataclass(frozen=True)
class VerifiedServer:
    """A server that serves the run, as far as its API shows."""

    variant: str | None
    """The variant of the run that it serves; None if the API does not show it."""
    cards: list[ModelCard]
    """The cards of the model, and of the base below it."""
    routing: Routing | None
    """Without a threshold if none is known to apply; None if the variant's own threshold applies."""


async def verify_server(
    session: ClientSession, adapter: ServedModel, cards: list[ModelCard], serve: Serve
) -> VerifiedServer:
    """Return the variant, cards and routing of a server that serves a run.

    `adapter` is the run's adapter, `cards` are from `find_model_cards`. Raise RecipeError if the server's prompts or
    answers differ from the run's, StageError if it does not answer.
    """
    variant = _served_variant(str(cards[0]["root"] or ""), adapter)
    try:
        if mismatch := await _find_prompt_mismatch(session, adapter):
            raise RecipeError(_mismatch_message(adapter, mismatch), code="INS-P011")
        if not adapter.run.references_path.is_file():
            reason = f"run {adapter.run.id} has no answers to hold a server to"
            return VerifiedServer(variant, cards, Routing(None, None, reason))
        mismatch = await _find_answer_mismatch(session, adapter, variant, serve)
    except (ClientError, TimeoutError, ValueError) as error:
        raise StageError(
            f"BASE_URL: the server does not answer: {type(error).__name__}: {error}", code="INS-P009"
        ) from None
    if mismatch:
        raise RecipeError(_mismatch_message(adapter, mismatch), code="INS-P011")
    reason = f"the server does not say which form of run {adapter.run.id} it serves"
    return VerifiedServer(variant, cards, None if variant else Routing(None, None, reason))


def find_model_cards(models: Mapping[str, Any], name: str) -> list[ModelCard]:
    """Return the cards of a model and of its base from /v1/models. Raise RecipeError if the model is missing."""
    cards_by_id = {str(card.get("id")): card for card in models.get("data", []) if isinstance(card, dict)}
    if name not in cards_by_id:
        raise RecipeError(
            f"BASE_URL: there is no model {name}; the server has {', '.join(cards_by_id)}", code="INS-P007"
        )
    base_card = cards_by_id.get(str(cards_by_id[name].get("parent")))
    cards = [cards_by_id[name], *([base_card] if base_card else [])]
    return [{key: card.get(key) for key in ("id", "root", "parent", "max_model_len")} for card in cards]


def _served_variant(root: str, adapter: ServedModel) -> str | None:
    """Return the variant in the folder that a server has loaded: runs/<recipe>/<run id>/<variant>."""
    variants = {*launch_plan.available_variants(adapter.run, adapter.recipe), "adapter", "merged"}
    variant = root.replace(os.sep, "/").rpartition(f"/{adapter.run.id}/")[2]
    return variant if variant in variants and variant != root else None


async def _find_prompt_mismatch(session: ClientSession, adapter: ServedModel) -> str | None:
    prompt = adapter.prompt
    if prompt.prompt_ids is None:
        return None
    async with session.post("/tokenize", json={"model": adapter.name, "messages": prompt.messages}) as response:
        payload = await response.json(content_type=None)
    if response.status != 200:
        raise StageError(
            f"BASE_URL: /tokenize answers {response.status}: {local_model.extract_message(payload)}", code="INS-P009"
        )
    if payload["tokens"] == prompt.prompt_ids:
        return None
    difference = await reference_check.describe_token_difference(
        session, adapter, adapter.name, prompt.prompt_ids, payload["tokens"]
    )
    return f"it reads other prompts than the run was trained on, {difference}"


async def _find_answer_mismatch(
    session: ClientSession, adapter: ServedModel, variant: str | None, serve: Serve
) -> str | None:
    rounding = launch_plan.rounding_tolerance(adapter, serve)
    agreement = await reference_check.measure_agreement(session, adapter, adapter.name, rounding)
    # A server that does not report its variant may serve any of them.
    possible_variants = [variant] if variant else launch_plan.available_variants(adapter.run, adapter.recipe)
    may_be_quantized = any("quantized" in possible_variant for possible_variant in possible_variants)
    other_weights = may_be_quantized or not launch_plan.has_trained_weights(adapter, serve)
    min_agreement = reference_check.MIN_AGREEMENT_OTHER_WEIGHTS if other_weights else serve.parity.same_weights
    if agreement >= min_agreement:
        return None
    return f"it gives {agreement:.1%} of the reference answers, and {min_agreement:.1%} are due"


def _mismatch_message(adapter: ServedModel, mismatch: str) -> str:
    return (
        f"BASE_URL: the server's {adapter.name} is not what run {adapter.run.id} trained: {mismatch}. RUN=<id> "
        "names the run that it serves"
    )
