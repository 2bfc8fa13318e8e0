"""The comparison from top to bottom: what can be known beforehand is checked, plan into the ledger, test opened, every
system asked, scores, verdict, report.

Writes predictions/, scores.json, routing.json, report.html and report.md into the run folder. Called again it asks for
nothing that it knows, and says `unchanged` where nothing else is new.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compare import eval_dataset, first_request, preflight
from compare.analysis import assemble, system_scores
from compare.decision import answer_profile, preregistration, routing_evaluation
from compare.decision import verdict as verdicts
from compare.report import console
from compare.scoring import completeness, confidence
from compare.systems import catalog, collect
from compare.systems.catalog import SkippedSystem, System
from compare.systems.responses import ComparisonContext
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking import run
from insource.tracking.run import Run

# Raised when the same answers would be compared into something else.
VERSION = 4
SECTIONS = ("compare", "cost", "decide", "route", "privacy", "serve")


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the stage. Raises RecipeError and StageError, told by `recipes.command`."""
    loaded, here = run.load_recipe_and_run(arguments)
    recipe = merge_recipe_settings(loaded, here)
    chosen = catalog.list_systems(recipe, here)
    missing = catalog.skipped_systems(chosen, recipe)
    check_plan(recipe, chosen)
    left_out = {one.name for one in missing}
    running = [one for one in chosen if one.name not in left_out]
    for line in header_lines(loaded, here, running, missing):
        print(line, file=sys.stderr)
    preflight.check(first_request.validation_context(here, loaded.name, recipe), running)
    if arguments.dry_run:
        print(*console.cost_estimate_lines(here, recipe, running), sep="\n")
        return cli.OK
    with run.lock_run(here):
        inputs = input_hashes(here, recipe, running)
        before = here.stage("compare")
        if not arguments.fresh and before.get("state") == "done" and before["inputs"] == inputs and _is_complete(here):
            print(f"compare   unchanged: run {here.id} was compared so (FRESH=1 compares anew)", file=sys.stderr)
            print(*console.summary_lines(here, atomic_files.read_json(here.folder / "scores.json")), sep="\n")
            return cli.OK
        run.start_stage(here, "compare", inputs)
        with run.record_stage(here, "compare"):
            scores = run_comparison(here, loaded.name, recipe, running, missing)
        return finish(here, recipe, scores)


def merge_recipe_settings(loaded: LoadedRecipe, here: Run) -> Recipe:
    """Returns the recipe of the run with what the recipe says now of serving, comparing and deciding."""
    return here.recipe().model_copy(update={name: getattr(loaded.recipe, name) for name in SECTIONS})


def check_plan(recipe: Recipe, chosen: Sequence[System]) -> None:
    """Raises RecipeError where the planned comparison names a system that there is not."""
    if (primary := recipe.compare.primary) is None:
        return
    names = [one.name for one in chosen]
    for key in ("system", "baseline"):
        if (name := getattr(primary, key)) not in names:
            raise RecipeError(f"compare.primary.{key}: given {name!r}, there are {', '.join(names)}")


def check_planned_served(recipe: Recipe, failed: Sequence[SkippedSystem]) -> None:
    """Raises StageError where a system of the plan could not be served."""
    primary = recipe.compare.primary
    for one in failed:
        if primary and one.name in (primary.system, primary.baseline):
            raise StageError(f"compare.primary: {one.title} {one.why}")


def header_lines(
    loaded: LoadedRecipe, here: Run, running: Sequence[System], missing: Sequence[SkippedSystem]
) -> list[str]:
    """Returns the first lines printed: what is compared, and what is not run and why."""
    told = [f"compare   {loaded.name}, run {here.id}: {', '.join(one.name for one in running)}"]
    return told + [f"not run   {one.title}: {one.why}" for one in missing]


def input_hashes(here: Run, recipe: Recipe, running: Sequence[System]) -> dict[str, str]:
    """Returns what a comparison depends on, hashed."""
    found = {
        "data/test.jsonl": eval_dataset.hash_test_set(here),
        f"adapter/{atomic_files.CHECKSUMS}": _checksum(here, "adapter"),
    }
    found |= {f"{one.which}/{atomic_files.CHECKSUMS}": _checksum(here, one.which) for one in running if one.which}
    for one in running:
        if one.baseline and one.baseline.path and Path(one.baseline.path).is_file():
            found[f"answers of {one.name}"] = atomic_files.sha256(Path(one.baseline.path))
    keys = recipe.model_dump(mode="json", include={"task", *SECTIONS})
    found["recipe"] = atomic_files.digest([VERSION, keys, [one.name for one in running]])
    return found


def run_comparison(
    here: Run, name: str, recipe: Recipe, running: Sequence[System], missing: Sequence[SkippedSystem]
) -> dict[str, Any]:
    """Asks, scores and decides. Returns scores.json, which is written with everything else."""
    running, refused = first_request.send_first_requests(first_request.validation_context(here, name, recipe), running)
    for one in running:
        for name in one.left_out:
            run.record_fallback(here, "compare", f"{one.title}: asked without {name}, which its provider refuses")
    sha256 = eval_dataset.hash_test_set(here)
    opened = preregistration.register_and_open(here, recipe.compare.primary, sha256)
    print(
        f"test      opened by plan {opened.plan_sha256}, opening {len(opened.openings)} of this test set",
        file=sys.stderr,
    )
    mine = eval_dataset.load_test_dataset(here)
    place = ComparisonContext(here, name, recipe, mine)
    gathered, failed = collect.collect_all(place, running)
    check_planned_served(recipe, failed)
    gathered, missing = completeness.exclude_unanswered(gathered, [*missing, *refused, *failed])
    fitted = confidence.fit_tuned_scale(here, mine)
    print(f"scoring   {len(gathered)} systems on {len(mine.test):,} rows", file=sys.stderr, flush=True)
    every = [system_scores.score_system(one, mine, fitted) for one in gathered]
    policy = assemble.fit_tuned_policy(every, mine, fitted, recipe)
    on_a_scale = fitted is not None and fitted.platt is not None
    scores = assemble.assemble_scores(here, recipe, mine, every, missing, opened, sha256, on_a_scale)
    on_test = routing_evaluation.evaluate_policy(
        policy, every[0], routing_evaluation.select_fallback(recipe, every), fitted, scores["cost"]
    )
    held_against = answer_profile.build_profile(every[0].gathered, mine, fitted).json()
    scores["routing"] = {**policy.json(), "test": on_test, answer_profile.ROUTING_KEY: held_against}
    scores["verdict"] = verdicts.decide(verdicts.VerdictInputs(recipe, scores, policy)).json()
    assemble.write_comparison(here, mine, every, scores, recipe)
    return scores


def finish(here: Run, recipe: Recipe, scores: Mapping[str, Any]) -> int:
    """Records how the comparison ended and prints the summary. Returns the exit code."""
    choice = scores["verdict"]["choice"]
    outputs = [here.folder / name for name in ("scores.json", "routing.json", "report.html", "report.md")]
    values = {
        name: {metric: one["value"] for metric, one in system["metrics"].items()}
        for name, system in scores["systems"].items()
    }
    told = scores["verdict"]["headline"]
    run.end_stage(here, "compare", "done", told, outputs, passed=choice != "closed", verdict=choice, test=values)
    print(*console.summary_lines(here, scores), sep="\n")
    return cli.OK


def _checksum(here: Run, which: str) -> str:
    return atomic_files.sha256(here.folder / which / atomic_files.CHECKSUMS)


def _is_complete(here: Run) -> bool:
    """Whether a comparison is there that nothing was missing from."""
    path = here.folder / "scores.json"
    return path.exists() and not atomic_files.read_json(path)["integrity"]["incomplete"]
