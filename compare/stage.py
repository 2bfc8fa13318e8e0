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
from compare.systems.catalog import NotRun, System
from compare.systems.responses import Place
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import Loaded
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking import run
from insource.tracking.run import Run

# Raised when the same answers would be compared into something else.
VERSION = 4
SECTIONS = ("compare", "cost", "decide", "route", "privacy", "serve")


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the stage. Raises RecipeError and StageError, told by `recipes.command`."""
    loaded, here = run.of_call(arguments)
    recipe = asked_now(loaded, here)
    chosen = catalog.of(recipe, here)
    missing = catalog.not_run(chosen, recipe)
    check_plan(recipe, chosen)
    left_out = {one.name for one in missing}
    running = [one for one in chosen if one.name not in left_out]
    for line in heading(loaded, here, running, missing):
        print(line, file=sys.stderr)
    preflight.check(first_request.place_of(here, loaded.name, recipe), running)
    if arguments.dry_run:
        print(*console.estimated(here, recipe, running), sep="\n")
        return cli.DONE
    with run.locked(here):
        inputs = inputs_of(here, recipe, running)
        before = here.stage("compare")
        if not arguments.fresh and before.get("state") == "done" and before["inputs"] == inputs and _whole(here):
            print(f"compare   unchanged: run {here.id} was compared so (FRESH=1 compares anew)", file=sys.stderr)
            print(*console.lines(here, atomic_files.read_json(here.folder / "scores.json")), sep="\n")
            return cli.DONE
        run.start(here, "compare", inputs)
        with run.recorded(here, "compare"):
            scores = compared(here, loaded.name, recipe, running, missing)
        return conclude(here, recipe, scores)


def asked_now(loaded: Loaded, here: Run) -> Recipe:
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


def check_planned_served(recipe: Recipe, failed: Sequence[NotRun]) -> None:
    """Raises StageError where a system of the plan could not be served."""
    primary = recipe.compare.primary
    for one in failed:
        if primary and one.name in (primary.system, primary.baseline):
            raise StageError(f"compare.primary: {one.title} {one.why}")


def heading(loaded: Loaded, here: Run, running: Sequence[System], missing: Sequence[NotRun]) -> list[str]:
    """Returns the first lines printed: what is compared, and what is not run and why."""
    told = [f"compare   {loaded.name}, run {here.id}: {', '.join(one.name for one in running)}"]
    return told + [f"not run   {one.title}: {one.why}" for one in missing]


def inputs_of(here: Run, recipe: Recipe, running: Sequence[System]) -> dict[str, str]:
    """Returns what a comparison depends on, hashed."""
    found = {"data/test.jsonl": eval_dataset.test_sha256(here), f"adapter/{atomic_files.SUMS}": _sums(here, "adapter")}
    found |= {f"{one.which}/{atomic_files.SUMS}": _sums(here, one.which) for one in running if one.which}
    for one in running:
        if one.baseline and one.baseline.path and Path(one.baseline.path).is_file():
            found[f"answers of {one.name}"] = atomic_files.sha256(Path(one.baseline.path))
    keys = recipe.model_dump(mode="json", include={"task", *SECTIONS})
    found["recipe"] = atomic_files.digest([VERSION, keys, [one.name for one in running]])
    return found


def compared(
    here: Run, name: str, recipe: Recipe, running: Sequence[System], missing: Sequence[NotRun]
) -> dict[str, Any]:
    """Asks, scores and decides. Returns scores.json, which is written with everything else."""
    running, refused = first_request.of_all(first_request.place_of(here, name, recipe), running)
    for one in running:
        for name in one.left_out:
            run.fallback(here, "compare", f"{one.title}: asked without {name}, which its provider refuses")
    sha256 = eval_dataset.test_sha256(here)
    opened = preregistration.open_test(here, recipe.compare.primary, sha256)
    print(
        f"test      opened by plan {opened.plan_sha256}, opening {len(opened.openings)} of this test set",
        file=sys.stderr,
    )
    mine = eval_dataset.of(here)
    place = Place(here, name, recipe, mine)
    gathered, failed = collect.everything(place, running)
    check_planned_served(recipe, failed)
    gathered, missing = completeness.split(gathered, [*missing, *refused, *failed])
    fitted = confidence.scale(here, mine)
    print(f"scoring   {len(gathered)} systems on {len(mine.test):,} rows", file=sys.stderr, flush=True)
    every = [system_scores.scored(one, mine, fitted) for one in gathered]
    policy = assemble.routed(every, mine, fitted, recipe)
    on_a_scale = fitted is not None and fitted.platt is not None
    scores = assemble.scores_json(here, recipe, mine, every, missing, opened, sha256, on_a_scale)
    on_test = routing_evaluation.on_test(
        policy, every[0], routing_evaluation.baseline_of(recipe, every), fitted, scores["cost"]
    )
    held_against = answer_profile.of(every[0].gathered, mine, fitted).json()
    scores["routing"] = {**policy.json(), "test": on_test, answer_profile.KEY: held_against}
    scores["verdict"] = verdicts.of(verdicts.Facts(recipe, scores, policy)).json()
    assemble.write(here, mine, every, scores, recipe)
    return scores


def conclude(here: Run, recipe: Recipe, scores: Mapping[str, Any]) -> int:
    """Records how the comparison ended and prints the summary. Returns the exit code."""
    choice = scores["verdict"]["choice"]
    outputs = [here.folder / name for name in ("scores.json", "routing.json", "report.html", "report.md")]
    values = {
        name: {metric: one["value"] for metric, one in system["metrics"].items()}
        for name, system in scores["systems"].items()
    }
    told = scores["verdict"]["headline"]
    run.end(here, "compare", "done", told, outputs, passed=choice != "closed", verdict=choice, test=values)
    print(*console.lines(here, scores), sep="\n")
    return cli.DONE


def _sums(here: Run, which: str) -> str:
    return atomic_files.sha256(here.folder / which / atomic_files.SUMS)


def _whole(here: Run) -> bool:
    """Whether a comparison is there that nothing was missing from."""
    path = here.folder / "scores.json"
    return path.exists() and not atomic_files.read_json(path)["integrity"]["incomplete"]
