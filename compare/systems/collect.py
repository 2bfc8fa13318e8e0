"""Collect the answers of every system: start local servers, query providers, read files.

Each answer is on disk before it counts (`runs/<recipe>/.answers/`). A comparison that was killed resumes, and a
repeated one sends no request for a cached answer.
"""

import sys
from collections.abc import Sequence

from compare.records import SkippedSystem, System, SystemAnswer, SystemResponses
from compare.systems import (
    answer_file,
    api_models,
    classification_head,
    linear_baseline,
    local_vllm,
    preference_pairs,
    vllm_servers,
)
from compare.systems.catalog import replace_tuned, to_skipped_system
from compare.systems.responses import ComparisonContext
from compare.systems.vllm_servers import VllmServers
from insource.config.errors import RecipeError, StageError
from insource.config.schema.compare import ENCODER, TUNED
from insource.tracking import run


def collect_all(
    context: ComparisonContext, systems: Sequence[System]
) -> tuple[list[SystemResponses], list[SkippedSystem]]:
    """Return the responses of each system, in their order, and the systems that could not be served.

    If `serve.model: auto` leaves a choice and the first variant of the tuned model cannot be served, the next variant
    replaces it. Providers come last, so that a failure before them costs nothing.

    Raise StageError if no variant can be served that the recipe allows, or if a server does not serve what was trained.
    """
    if context.dataset.task.OBJECTIVE == "prefer":
        return preference_pairs.collect_preferences(context, systems), []
    context.cache_dir.mkdir(exist_ok=True)
    responses: dict[str, SystemResponses] = {}
    with vllm_servers.open_servers() as servers:
        local_vllm.start_servers_ahead(context, group_by_server(systems), servers)
        for system in systems:
            if system.kind in ("linear", "nearest"):
                responses[system.name] = fit_baseline(context, system)
            elif system.kind == "file":
                rules = answer_file.build_rules(context.recipe)
                responses[system.name] = api_models.load_answer_file(context, system, rules)
        served, failed = collect_served(context, systems, servers)
    responses |= {result.system.name: result for result in served}
    responses |= {
        system.name: classification_head.collect(context, system) for system in systems if system.kind == "head"
    }
    responses |= api_models.collect_from_apis(context, [system for system in systems if system.kind == "closed"])
    names = [system.name for system in systems if system.name in responses]
    return [responses[name] for name in names], failed


def collect_served(
    context: ComparisonContext, systems: Sequence[System], servers: VllmServers
) -> tuple[list[SystemResponses], list[SkippedSystem]]:
    """Return the responses of the systems that vLLM serves, the tuned model first.

    Also return the systems that could not be served.
    """
    responses: dict[str, SystemResponses] = {}
    failed: list[SkippedSystem] = []
    pending_groups = group_by_server(systems)
    requests = {
        system.name: local_vllm.build_eval_requests(context, system) for group in pending_groups for system in group
    }
    while pending_groups:
        current_group = pending_groups.pop(0)
        try:
            responses |= local_vllm.collect_from_vllm(context, current_group, requests, servers)
        except (RecipeError, StageError) as error:
            failing, *others = current_group
            variants = [system for group in pending_groups for system in group if system.kind == "tuned"]
            fallback = next((system for system in variants if local_vllm.may_fall_back(context, system, error)), None)
            if failing.name == TUNED and (context.recipe.serve.model != "auto" or fallback is None):
                raise
            failed.append(report_failed_system(context, failing, error, fallback))
            remaining = [system for group in [others, *pending_groups] for system in group]
            if failing.name == TUNED and fallback and fallback.variant:
                pending_groups = group_by_server(replace_tuned(remaining, fallback.variant))
            else:
                pending_groups = group_by_server([system for system in remaining if system.kind in ("tuned", "base")])
    return list(responses.values()), failed


def report_failed_system(
    context: ComparisonContext, system: System, error: Exception, fallback: System | None
) -> SkippedSystem:
    """Return the report entry of a system that could not be served. Print it and record it as a fallback."""
    message = f"{system.title} could not be served: {error}"
    if system.name == TUNED and fallback:
        message += f"; {fallback.title} is compared in its place"
    print(f"fallback  {message}", file=sys.stderr, flush=True)
    run.record_fallback(context.run, "compare", message)
    return to_skipped_system(system, str(error))


def group_by_server(systems: Sequence[System]) -> list[list[System]]:
    """Return the systems that vLLM serves, grouped by server process.

    The base shares a process with an adapter. Each other variant has its own process. A variant with examples shares
    the process of the variant.
    """
    tuned, base = ([system for system in systems if system.kind == kind] for kind in ("tuned", "base"))
    by_variant = {
        variant: [system for system in tuned if system.variant == variant]
        for variant in dict.fromkeys(system.variant for system in tuned)
    }
    groups = [[*group, *base] if variant == "adapter" else group for variant, group in by_variant.items()]
    return [*groups, base] if base and "adapter" not in by_variant else groups


def fit_baseline(context: ComparisonContext, system: System) -> SystemResponses:
    """Return the answers of a linear baseline, fitted on the train rows."""
    dataset = context.dataset
    print(f"fitting   {system.title} on {len(dataset.train):,} rows", file=sys.stderr, flush=True)
    encoder = context.recipe.compare.encoder if system.name == ENCODER else None
    predicted = linear_baseline.predict_dataset(dataset, encoder)
    answers = [
        SystemAnswer(row["id"], prediction.output, model_id=system.name, log_probability=prediction.log_probability)
        for row, prediction in zip(dataset.test, predicted, strict=True)
    ]
    return SystemResponses(system, answers)
