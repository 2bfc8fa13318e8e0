"""The comparison from top to bottom: checks, plan into the ledger, test set read, answers, scores, verdict, report.

Writes predictions/, scores.json, routing.json, report.html and report.md into the run folder. A repeated comparison
takes all answers from the cache, and prints `unchanged` if nothing else changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compare import assemble, eval_dataset, first_request, preflight
from compare.analysis import system_scores
from compare.cost import estimate
from compare.decision import answer_profile, preregistration, routing_evaluation, verdict
from compare.decision.verdict_inputs import VerdictInputs
from compare.recipe_settings import SECTIONS, merge_recipe_settings
from compare.records import SkippedSystem, System
from compare.report import console, write
from compare.scoring import completeness, confidence
from compare.systems import catalog, classification_head, collect
from compare.systems.responses import ComparisonContext
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking import run
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Scores, build_scores, read_scores

# Increase it if the same answers would give another scores.json.
VERSION = 4


def main(arguments: argparse.Namespace) -> int:
    """Run the stage and return its exit code. Raise RecipeError or StageError, which `insource.config.cli` prints."""
    loaded, trained_run = run.load_recipe_and_run(arguments)
    recipe = merge_recipe_settings(loaded, trained_run)
    systems = catalog.list_systems(recipe, trained_run)
    skipped = catalog.skipped_systems(systems, recipe)
    check_plan(recipe, systems)
    skipped_names = {system.name for system in skipped}
    runnable = [system for system in systems if system.name not in skipped_names]
    for line in header_lines(loaded, trained_run, runnable, skipped):
        print(line, file=sys.stderr)
    preflight.check(first_request.validation_context(trained_run, loaded.name, recipe), runnable)
    if arguments.dry_run:
        print(*estimate.cost_estimate_lines(trained_run, recipe, runnable), sep="\n")
        return cli.OK
    if recipe.compare.head:
        # Before the run is locked: the training of the head locks it too.
        classification_head.train_if_missing(arguments, trained_run)
    with run.lock_run(trained_run):
        inputs = input_hashes(trained_run, recipe, runnable)
        previous = trained_run.stage("compare")
        if not arguments.fresh and previous.state == "done" and previous.inputs == inputs and _is_complete(trained_run):
            print(
                f"compare   unchanged: run {trained_run.id} was compared with these inputs (FRESH=1 compares again)",
                file=sys.stderr,
            )
            print(*console.summary_lines(trained_run, read_scores(trained_run.folder / "scores.json")), sep="\n")
            return cli.OK
        run.start_stage(trained_run, "compare", inputs)
        with run.record_stage(trained_run, "compare"):
            scores = run_comparison(trained_run, loaded.name, recipe, runnable, skipped)
        return finish(trained_run, recipe, scores)


def check_plan(recipe: Recipe, systems: Sequence[System]) -> None:
    """Raise RecipeError if the planned comparison names a system that does not exist."""
    if (primary := recipe.compare.primary) is None:
        return
    names = [system.name for system in systems]
    for key in ("system", "baseline"):
        if (name := getattr(primary, key)) not in names:
            raise RecipeError(f"compare.primary.{key}: given {name!r}, allowed: {', '.join(names)}", code="INS-C001")


def check_planned_served(recipe: Recipe, failed: Sequence[SkippedSystem]) -> None:
    """Raise StageError if a system of the plan could not be served."""
    primary = recipe.compare.primary
    for skipped in failed:
        if primary and skipped.name in (primary.system, primary.baseline):
            raise StageError(f"compare.primary: {skipped.title} {skipped.reason}", code="INS-C002")


def header_lines(
    loaded: LoadedRecipe, trained_run: Run, systems: Sequence[System], skipped: Sequence[SkippedSystem]
) -> list[str]:
    """Return the first lines printed: the systems, and those that are not run with their reasons."""
    lines = [f"compare   {loaded.name}, run {trained_run.id}: {', '.join(system.name for system in systems)}"]
    return lines + [f"not run   {skipped_system.title}: {skipped_system.reason}" for skipped_system in skipped]


def input_hashes(trained_run: Run, recipe: Recipe, systems: Sequence[System]) -> dict[str, str]:
    """Return {input: hash} of everything that a comparison depends on."""
    hashes = {
        "data/test.jsonl": eval_dataset.hash_test_set(trained_run),
        f"adapter/{atomic_files.CHECKSUMS}": _checksum(trained_run, "adapter"),
    }
    hashes |= {
        f"{system.variant}/{atomic_files.CHECKSUMS}": _checksum(trained_run, system.variant)
        for system in systems
        if system.variant
    }
    for system in systems:
        if system.baseline and system.baseline.path and Path(system.baseline.path).is_file():
            hashes[f"answers of {system.name}"] = atomic_files.sha256(Path(system.baseline.path))
        if system.kind == "head":
            hashes[f"head/{atomic_files.CHECKSUMS}"] = _checksum(trained_run, classification_head.FOLDER)
    settings = recipe.model_dump(mode="json", include={"task", *SECTIONS})
    hashes["recipe"] = atomic_files.digest([VERSION, settings, [system.name for system in systems]])
    return hashes


def run_comparison(
    trained_run: Run, name: str, recipe: Recipe, systems: Sequence[System], skipped: Sequence[SkippedSystem]
) -> Scores:
    """Collect the answers, score them, decide, write all files and return scores.json."""
    systems, refused = first_request.send_first_requests(
        first_request.validation_context(trained_run, name, recipe), systems
    )
    for system in systems:
        for parameter in system.omitted_parameters:
            run.record_fallback(
                trained_run, "compare", f"{system.title}: queried without {parameter}, which its provider refuses"
            )
    sha256 = eval_dataset.hash_test_set(trained_run)
    access = preregistration.register_and_open(trained_run, recipe.compare.primary, sha256)
    print(
        f"test      opened by plan {access.plan_sha256}, opening {len(access.openings)} of this test set",
        file=sys.stderr,
    )
    dataset = eval_dataset.load_test_dataset(trained_run)
    context = ComparisonContext(trained_run, name, recipe, dataset)
    all_responses, failed = collect.collect_all(context, systems)
    check_planned_served(recipe, failed)
    all_responses, skipped = completeness.exclude_unanswered(all_responses, [*skipped, *refused, *failed])
    tuned_scale = confidence.fit_tuned_scale(trained_run, dataset)
    print(f"scoring   {len(all_responses)} systems on {len(dataset.test):,} rows", file=sys.stderr, flush=True)
    scored_systems = [system_scores.score_system(responses, dataset, tuned_scale) for responses in all_responses]
    policy = assemble.fit_tuned_policy(scored_systems, dataset, tuned_scale, recipe)
    is_calibrated = tuned_scale is not None and tuned_scale.platt is not None
    measurements = assemble.assemble_scores(
        trained_run, recipe, dataset, scored_systems, skipped, access, sha256, is_calibrated
    )
    test_result = routing_evaluation.evaluate_policy(
        policy,
        scored_systems[0],
        routing_evaluation.select_fallback(recipe, scored_systems),
        tuned_scale,
        measurements.cost.self_hosted,
    )
    profile = answer_profile.build_profile(scored_systems[0].responses, dataset, tuned_scale)
    routing = policy.summarize().model_copy(update={"test": test_result, "calibration": profile.summarize()})
    scores = build_scores(measurements, routing, verdict.decide(VerdictInputs(recipe, measurements, policy)))
    write.write_comparison(trained_run, dataset, scored_systems, scores, recipe)
    return scores


def finish(trained_run: Run, recipe: Recipe, scores: Scores) -> int:
    """Record the end of the comparison, print the summary and return the exit code."""
    choice = scores.verdict.choice
    outputs = [trained_run.folder / name for name in ("scores.json", "routing.json", "report.html", "report.md")]
    values = {
        name: {metric: value.value for metric, value in system.metrics.items()}
        for name, system in scores.systems.items()
    }
    headline = scores.verdict.headline
    run.end_stage(
        trained_run, "compare", "done", headline, outputs, passed=choice != "closed", verdict=choice, test=values
    )
    print(*console.summary_lines(trained_run, scores), sep="\n")
    return cli.OK


def _checksum(trained_run: Run, variant: str) -> str:
    return atomic_files.sha256(trained_run.folder / variant / atomic_files.CHECKSUMS)


def _is_complete(trained_run: Run) -> bool:
    """Return whether the run folder has a comparison without missing parts."""
    path = trained_run.folder / "scores.json"
    return path.exists() and not read_scores(path).integrity.incomplete
