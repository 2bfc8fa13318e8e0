"""Asks every system, one after the other: servers of ours are started for it, providers are called, files are read.

Each answer is on disk before it counts (`runs/<recipe>/.answers/`), so a comparison that was killed goes on where it
was, and one that is repeated asks for nothing that it knows.
"""

import sys
from collections.abc import Sequence

from compare.scoring.predictions import SystemAnswer
from compare.systems import answer_file, api_models, linear_baseline, local_vllm, preference_pairs, vllm_servers
from compare.systems.catalog import SkippedSystem, System, replace_tuned
from compare.systems.catalog import mark_failed as failed_to_serve
from compare.systems.responses import ComparisonContext, SystemResponses
from compare.systems.vllm_servers import VllmServers
from insource.config.errors import RecipeError, StageError
from insource.config.schema.compare import ENCODER, TUNED
from insource.tracking import run


def collect_all(
    place: ComparisonContext, systems: Sequence[System]
) -> tuple[list[SystemResponses], list[SkippedSystem]]:
    """Returns what each system answered, in their order, and what could not be served.

    Where `serve.model: auto` leaves a choice and the tuned model cannot be served in the form that comes first, the
    next form takes its place. Raises StageError where nothing that the recipe would serve can be, or where it is
    something else than was trained: providers come last, so that nobody was paid by then.
    """
    if place.material.module.OBJECTIVE == "prefer":
        return preference_pairs.collect_preferences(place, systems), []
    place.answers.mkdir(exist_ok=True)
    found: dict[str, SystemResponses] = {}
    with vllm_servers.open_servers() as ours:
        local_vllm.start_servers_ahead(place, group_by_server(systems), ours)
        for one in systems:
            if one.kind in ("linear", "nearest"):
                found[one.name] = fit_baseline(place, one)
            elif one.kind == "file":
                found[one.name] = api_models.load_answer_file(place, one, answer_file.rules_from_recipe(place.recipe))
        served, failed = collect_served(place, systems, ours)
    found |= {one.system.name: one for one in served}
    found |= api_models.collect_from_apis(place, [one for one in systems if one.kind == "closed"])
    last = [one.name for one in systems if one.name in found]
    return [found[name] for name in last], failed


def collect_served(
    place: ComparisonContext, systems: Sequence[System], ours: VllmServers
) -> tuple[list[SystemResponses], list[SkippedSystem]]:
    """Returns what the systems answered that vLLM has to serve, the tuned model first, and what could not be served."""
    found: dict[str, SystemResponses] = {}
    failed: list[SkippedSystem] = []
    todo = group_by_server(systems)
    asked = {one.name: local_vllm.build_eval_requests(place, one) for together in todo for one in together}
    while todo:
        together = todo.pop(0)
        try:
            found |= local_vllm.collect_from_vllm(place, together, asked, ours)
        except (RecipeError, StageError) as error:
            first, *others = together
            forms = [one for group in todo for one in group if one.kind == "tuned"]
            following = next((one for one in forms if local_vllm.may_fall_back(place, one, error)), None)
            if first.name == TUNED and (place.recipe.serve.model != "auto" or following is None):
                raise
            failed.append(report_failed_system(place, first, error, following))
            rest = [one for group in [others, *todo] for one in group]
            if first.name == TUNED and following and following.which:
                todo = group_by_server(replace_tuned(rest, following.which))
            else:
                todo = group_by_server([one for one in rest if one.kind in ("tuned", "base")])
    return list(found.values()), failed


def report_failed_system(
    place: ComparisonContext, system: System, error: Exception, following: System | None
) -> SkippedSystem:
    """Returns what is reported of a system that could not be served; says and records it."""
    told = f"{system.title} could not be served: {error}"
    if system.name == TUNED and following:
        told += f"; {following.title} is compared in its place"
    print(f"fallback  {told}", file=sys.stderr, flush=True)
    run.record_fallback(place.here, "compare", told)
    return failed_to_serve(system, str(error))


def group_by_server(systems: Sequence[System]) -> list[list[System]]:
    """Returns the systems that vLLM has to serve, those together that one process serves: the base goes with an adapter
    that it bears, each other form has a process of its own, and a form with examples goes with the form."""
    tuned, base = ([one for one in systems if one.kind == kind] for kind in ("tuned", "base"))
    forms = {which: [one for one in tuned if one.which == which] for which in dict.fromkeys(one.which for one in tuned)}
    found = [[*together, *base] if which == "adapter" else together for which, together in forms.items()]
    return [*found, base] if base and "adapter" not in forms else found


def fit_baseline(place: ComparisonContext, system: System) -> SystemResponses:
    """Returns what a linear model says, trained here on the rows that training had."""
    material, encoder = place.material, place.recipe.compare.encoder
    print(f"fitting   {system.title} on {len(material.train):,} rows", file=sys.stderr, flush=True)
    module, of_system = material.module, encoder if system.name == ENCODER else None
    if module.IS_MULTILABEL:
        labels, empty = list(material.spec.labels), material.spec.may_be_empty
        guesses = linear_baseline.predict_label_sets(material.train, material.test, labels, empty, of_system)
    elif of_system is not None:
        guesses = linear_baseline.predict_with_encoder(material.train, material.test, material.answers, of_system)
    else:
        guesses = linear_baseline.predict_answers(material.train, material.test, material.answers, module.HAS_LABELS)
    found = [
        SystemAnswer(row["id"], one.output, model_id=system.name, log_probability=one.log_probability)
        for row, one in zip(material.test, guesses, strict=True)
    ]
    return SystemResponses(system, found)
