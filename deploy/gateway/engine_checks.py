"""Checks of a vLLM engine that was started elsewhere: its health, and each version before it answers a client.

An engine serves a version if /v1/models lists its name in vLLM (classifier@3f2a90c17b5e44d0). Otherwise the adapter is
loaded by POST /v1/load_lora_adapter, from the folder of the registry, which the engine must see under the same path.
"""

import asyncio
import time

from aiohttp import ClientError, ClientSession

from deploy.answers.engine_pool import Engine
from insource.config.errors import StageError
from insource.config.schema.serving_and_cost import Serve
from serve.parity import reference_check
from serve.vllm import client, launch_plan
from serve.vllm.launch_plan import ServedModel

PROBE_SECONDS = 5.0
"""Seconds without data from an engine after which a health check requests one token from it."""


async def find_problem(engine: Engine, session: ClientSession, hang_seconds: float) -> str | None:
    """Return why an engine cannot answer now, None if it can. It has `hang_seconds` to answer."""
    started_at = time.monotonic()
    try:
        async with asyncio.timeout(hang_seconds):
            async with session.get("/health") as response:
                if response.status != 200:
                    return f"GET /health answers {response.status}"
            checked = set(engine.models)
            listed = await _list_models(session) if checked else set()
            # Versions that were unloaded meanwhile are no longer in engine.models.
            if missing := (checked & engine.models) - listed:
                return f"it no longer lists {min(missing)}: it was restarted"
            # The HTTP server answers GET /health although the engine computes nothing.
            if engine.models and started_at - engine.last_data_at > PROBE_SECONDS:
                return await _find_token_problem(engine, session)
    except TimeoutError:
        if engine.last_data_at < started_at:
            return f"it has sent nothing for {hang_seconds:.0f} s (serve.hang_seconds)"
    except StageError as error:
        return str(error)
    except (ClientError, OSError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


async def _find_token_problem(engine: Engine, session: ClientSession) -> str | None:
    body = {"model": min(engine.models), "prompt": "a", "max_tokens": 1}
    async with session.post("/v1/completions", json=body) as response:
        await response.read()
    if response.status >= 500:
        return f"a request for one token gets status {response.status}"
    engine.record_data()
    return None


async def check_version(engine: Engine, session: ClientSession, served: ServedModel, name: str, serve: Serve) -> float:
    """Load a version into an engine if it does not list it. Return the fraction of its reference answers.

    `name` is that of the version in vLLM. Raise StageError if the engine does not load it, reads other prompts than it
    was trained on, or gives too few of its reference answers. Raise ClientError if the engine breaks off.
    """
    if name not in await _list_models(session):
        try:
            await client.load_adapter(session, name, str(served.folder))
        except StageError as error:
            message = f"{error}; the engine lists no {name} (--lora-modules) and cannot load it"
            raise StageError(f"{message} (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)", code="INS-G010") from None
        engine.loaded.add(name)
    if (expected := served.prompt.prompt_ids) is not None:
        actual = await _fetch_prompt_ids(session, served, name)
        if actual != expected:
            difference = await reference_check.describe_token_difference(session, served, name, expected, actual)
            message = f"the engine reads other token ids for its prompt than were trained on, {difference}"
            raise StageError(message, code="INS-E008")
    rounding = launch_plan.rounding_tolerance(served, serve)
    agreement = await reference_check.measure_agreement(session, served, name, rounding)
    same_weights = launch_plan.has_trained_weights(served, serve)
    required = serve.parity.same_weights if same_weights else reference_check.MIN_AGREEMENT_OTHER_WEIGHTS
    if agreement < required:
        raise StageError(
            f"the engine gives {agreement:.1%} of its reference answers, and at least {required:.1%} are required "
            "(serve.parity.same_weights)",
            code="INS-G005",
        )
    return agreement


async def _list_models(session: ClientSession) -> set[str]:
    async with session.get("/v1/models") as response:
        if response.status != 200:
            raise StageError(
                f"GET /v1/models answers {response.status} (INSOURCE_ENGINE_KEY has the key of the engines)",
                code="INS-G010",
            )
        payload = await response.json(content_type=None)
    try:
        return {str(card["id"]) for card in payload["data"]}
    except (KeyError, TypeError):
        raise StageError("GET /v1/models does not list models: this is no vLLM", code="INS-G010") from None


async def _fetch_prompt_ids(session: ClientSession, served: ServedModel, name: str) -> list[int]:
    async with session.post("/tokenize", json={"model": name, "messages": served.prompt.messages}) as response:
        if response.status != 200:
            raise StageError(
                f"POST /tokenize answers {response.status}: {(await response.text())[:300]}", code="INS-G010"
            )
        return list((await response.json(content_type=None))["tokens"])
