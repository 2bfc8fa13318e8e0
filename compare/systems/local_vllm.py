"""Systems on a local vLLM server: every variant of the tuned model, and its untuned base.

A server is started for the first missing answer, and not at all if every answer is cached. The tuned model must pass
the parity check before it is compared. Other prompt ids, or other answers of the same weights, end the comparison. A
lower score of other weights is a result, and is reported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from compare import eval_dataset
from compare.records import System, SystemResponses
from compare.systems import row_requests
from compare.systems.catalog import is_exploratory
from compare.systems.responses import ComparisonContext, SystemRequests, load_or_store, to_responses
from compare.systems.vllm_servers import VllmServers
from insource.backends.collection import CollectResult
from insource.backends.types import Backend, Completion, RowRequest, Usage
from insource.config.errors import GateError, RecipeError, StageError
from insource.config.schema.compare import TUNED
from insource.system import atomic_files, environment
from insource.system.timestamps import utc_timestamp
from insource.tasks.data_row import Rows
from insource.tracking import run
from serve import server
from serve.parity import check
from serve.vllm import client, launch_plan
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, LaunchPlan, VllmProcess, free_port

# A throughput measured on fewer requests is unreliable.
MIN_REQUESTS_FOR_RATE = 30
PLACEHOLDER_ADDRESS = Address("127.0.0.1", 1)

EvalRequests = tuple[list[RowRequest], int]
"""The requests to a system, and the number of prompts that lost examples."""


def start_servers_ahead(context: ComparisonContext, groups: Sequence[Sequence[System]], servers: VllmServers) -> None:
    """Start the servers of the given groups that have missing answers.

    A server that cannot be planned or started is skipped; its turn reports the reason. Requests with examples are not
    checked, since retrieving the examples takes as long as a start.
    """
    for group in groups:
        with suppress(RecipeError, StageError):
            plan = _launch_plan(context, group[0])
            plain = [system for system in group if not system.shots]
            if any(
                _system_requests(context, system, plan, build_eval_requests(context, system)[0]).count_pending()
                for system in plain
            ):
                servers.start(_server_key(group[0]), _build_process(context, group[0]))


def collect_from_vllm(
    context: ComparisonContext,
    systems: Sequence[System],
    eval_requests: Mapping[str, EvalRequests],
    servers: VllmServers,
) -> dict[str, SystemResponses]:
    """Return the responses of the systems of one server process, by name.

    Raise GateError if that process does not serve what was trained.
    """
    plan = _launch_plan(context, systems[0])
    all_requests = [_system_requests(context, system, plan, eval_requests[system.name][0]) for system in systems]

    def collect(requests_by_system: Sequence[SystemRequests]) -> dict[str, SystemResponses]:
        return {
            requests.system.name: _collect_responses(context, requests, eval_requests[requests.system.name][1])
            for requests in requests_by_system
        }

    if not any(requests.count_pending() for requests in all_requests):
        return collect(all_requests)
    with serve_system(context, systems[0], servers) as (_, address):
        return collect(
            [
                replace(requests, endpoint=_endpoint(context, plan, requests.system, address))
                for requests in all_requests
            ]
        )


@contextmanager
def serve_system(
    context: ComparisonContext, system: System, servers: VllmServers
) -> Iterator[tuple[LaunchPlan, Address]]:
    """Yield launch plan and address of a running server that passed the parity check. Raise GateError if it failed."""
    plan = _launch_plan(context, system)
    with servers.acquire(_server_key(system), _build_process(context, system)) as vllm:
        if system.name == TUNED and context.dataset.task.OBJECTIVE == "imitate":
            _check_parity(context, system, plan, vllm.address)
        yield plan, vllm.address


def _server_key(system: System) -> str:
    """Return the key of the server process of a system: a variant of the tuned model, or "base"."""
    return system.variant or "base"


def _build_process(context: ComparisonContext, system: System) -> VllmProcess:
    log = context.run.folder / f"compare-{system.name}.log"
    return VllmProcess(_launch_plan(context, system), Address("127.0.0.1", free_port()), log)


def _system_requests(
    context: ComparisonContext, system: System, plan: LaunchPlan, requests: Sequence[RowRequest]
) -> SystemRequests:
    """Return the requests to a system before its server has an address."""
    backend = _endpoint(context, plan, system, PLACEHOLDER_ADDRESS)
    return SystemRequests(system, backend, _cache_identity(context, system, plan), requests, context.cache_path(system))


def _launch_plan(context: ComparisonContext, system: System) -> LaunchPlan:
    served, serve = _served_model(context, system), context.recipe.serve
    return launch_plan.plan_launch([served], serve) if system.variant else launch_plan.plan_base_launch(served, serve)


def _served_model(context: ComparisonContext, system: System) -> ServedModel:
    return ServedModel(context.recipe_name, context.run, context.recipe, system.variant or "adapter")


def may_fall_back(context: ComparisonContext, system: System, error: Exception) -> bool:
    """Return whether another variant of the tuned model may replace one that could not be served."""
    return server.may_fall_back(_served_model(context, system), context.recipe.serve, error)


def _notes(context: ComparisonContext, system: System, n_shortened: int) -> list[str]:
    """Return the report's notes on a system: prompts that lost examples, a subset of the test rows, no deployment."""
    notes = []
    if n_shortened:
        limits = "train.max_length and serve.max_model_len" if system.trained_shots else "serve.max_model_len"
        notes.append(f"{n_shortened:,} prompts have fewer examples, to fit {limits}")
    n_rows, n_all = len(_test_rows(context, system)), len(context.dataset.test)
    if n_rows < n_all:
        notes.append(f"queried {n_rows:,} of {n_all:,} test rows (compare.explore_rows); it is exploratory")
    if system.name == TUNED and system.trained_shots:
        notes.append("trained with examples in its prompts (train.shots); insource does not serve or deploy it")
    return [f"{system.title}: {note}" for note in notes]


def _test_rows(context: ComparisonContext, system: System) -> Rows:
    """Return the test rows that a system gets."""
    rows, recipe = context.dataset.test, context.recipe
    return eval_dataset.sample_rows(rows, recipe.compare.explore_rows) if is_exploratory(system, recipe) else rows


def _check_parity(context: ComparisonContext, system: System, plan: LaunchPlan, address: Address) -> None:
    """Raise GateError if the server's answers are not those of the trained weights.

    The answers to the validation rows are cached like all others, so that a resumed comparison does not request them
    again.
    """
    serve, served = context.recipe.serve, _served_model(context, system)
    probe = check.load_probe(served, serve.parity.start_rows, serve)
    requests = [RowRequest(request.id, 0, request) for request in check.build_requests(probe)]
    backend, identity = _endpoint(context, plan, system, address), _cache_identity(context, system, plan)
    collected = SystemRequests(system, backend, identity, requests, context.cache_path(system)).collect().answers
    answers = [collected[request.id, 0] for request in requests]
    if unanswered := [answer for answer in answers if answer.output is None]:
        raise StageError(
            f"{len(unanswered)} of {len(answers)} validation rows were not answered; the first, {unanswered[0].id}: "
            f"{unanswered[0].error}",
            code="INS-E010",
        )
    completions = [
        Completion(answer.output or "", answer.model_id or "", Usage(), answer.finish_reason or "stop")
        for answer in answers
    ]
    parity = check.run_parity(probe, address, None, check.list_constraint_modes(probe, serve)[:1], completions)
    server.print_parity(served.name, parity)
    load_or_store(_parity_path(context, system), identity, parity_json(parity))
    if mismatches := parity.mismatches(serve.parity):
        raise GateError(
            f"not compared: the served model does not match the trained one: {'; '.join(mismatches)}", code="INS-E007"
        )
    for loss in parity.score_losses(serve.parity):
        print(f"parity    {loss}; it is compared all the same", file=sys.stderr, flush=True)
        run.record_fallback(context.run, "compare", loss)


def parity_json(parity: check.ParityResult) -> dict[str, object]:
    """Return the entry `parity` of a system in scores.json."""
    return {
        "n": parity.n,
        "prompt_ids_equal": parity.prompt_ids_equal,
        "agreement": parity.same_weights.agreement if parity.same_weights else None,
        "metric": parity.score_difference.metric,
        "trained": parity.score_difference.trained,
        "served": parity.score_difference.value,
        "difference": parity.score_difference.difference.delta,
        "ci_low": parity.score_difference.difference.low,
        "ci_high": parity.score_difference.difference.high,
    }


def _parity_path(context: ComparisonContext, system: System) -> Path:
    return context.cache_path(system).with_suffix(".parity.json")


def _collect_responses(
    context: ComparisonContext, system_requests: SystemRequests, n_shortened: int
) -> SystemResponses:
    collected = system_requests.collect()
    throughput = _throughput(context, system_requests, collected)
    if collected.n_requested:
        speed = f", {throughput['requests_per_second']:.1f} requests/s" if throughput else ""
        print(
            f"queried   {system_requests.system.title}: {collected.n_requested:,} requests{speed}",
            file=sys.stderr,
            flush=True,
        )
    parity = load_or_store(_parity_path(context, system_requests.system), system_requests.identity, None)
    responses = to_responses(system_requests, collected, context)
    notes = _notes(context, system_requests.system, n_shortened)
    return replace(responses, throughput=throughput, parity=parity, notes=notes)


def build_eval_requests(context: ComparisonContext, system: System) -> EvalRequests:
    """Return the requests to a local server: test rows, and for the tuned model also calibration rows."""
    dataset, adapter = context.dataset, context.run.folder / "adapter"
    rows = [*_test_rows(context, system), *(dataset.calibration if system.name == TUNED else ())]
    examples, n_shortened = row_requests.fit_examples(
        system, dataset, rows, adapter, context.recipe.serve.max_model_len
    )
    requests = row_requests.build_requests(system, dataset, rows, examples)
    return [RowRequest(request.id, 0, request) for request in requests], n_shortened


def _endpoint(context: ComparisonContext, plan: LaunchPlan, system: System, address: Address) -> Backend:
    constrained = context.recipe.serve.structured_output and context.dataset.prompt.grammar
    return Backend(
        api_format="openai",
        model=context.recipe_name if system.variant else plan.name,
        base_url=client.base_url(address),
        structured="grammar" if constrained else "none",
        log_probabilities=True,
        timeout_seconds=600,
        retries=2,
        concurrency=context.recipe.compare.concurrency,
    )


def _cache_identity(context: ComparisonContext, system: System, plan: LaunchPlan) -> list[object]:
    """Return the identity of a local server, without its port.

    It has hashes of weights and template, the stop setting, the vLLM version and the dtype.
    """
    weights: object = context.dataset.prompt.base.to_json()
    if system.variant:
        weights = [weights, atomic_files.sha256(context.run.folder / system.variant / atomic_files.CHECKSUMS)]
    prompt, vllm_version = context.dataset.prompt, environment.read_vllm_version()
    return [weights, prompt.chat_template_sha256, prompt.stop, vllm_version, plan.dtype]


def _throughput(
    context: ComparisonContext, system_requests: SystemRequests, collected: CollectResult
) -> Mapping[str, object] | None:
    """Return the throughput of the server, measured now or when its cached answers were requested."""
    throughput = None
    if collected.n_requested >= MIN_REQUESTS_FOR_RATE and collected.complete:
        new_answers = [answer for answer in collected.answers.values() if not answer.reused]
        tokens = sum((answer.input_tokens or 0) + (answer.output_tokens or 0) for answer in new_answers)
        throughput = {
            "requests_per_second": collected.n_requested / collected.wall_seconds,
            "tokens_per_second": tokens / collected.wall_seconds,
            "concurrency": system_requests.endpoint.concurrency,
            "n": collected.n_requested,
            "hardware": environment.describe_machine(context.recipe),
            "measured": utc_timestamp(),
        }
    path = system_requests.cache_path.with_suffix(".rate.json")
    return load_or_store(path, [system_requests.identity, system_requests.endpoint.concurrency], throughput)
