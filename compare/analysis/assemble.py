"""What a comparison leaves on disk: scores.json, routing.json, predictions/, report.html and report.md."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from compare.analysis import comparisons, system_scores
from compare.analysis.system_scores import SystemScores
from compare.cost import ownership
from compare.decision import routing_policy
from compare.decision.preregistration import TestSetAccess
from compare.decision.routing_policy import RoutingPolicy
from compare.eval_dataset import EvalDataset, cluster_ids
from compare.report import html_page, wording
from compare.scoring import confidence, predictions
from compare.scoring.confidence import Scale
from compare.systems.catalog import SkippedSystem
from compare.systems.responses import SystemResponses
from insource.config.recipe import Recipe
from insource.config.schema.compare import Primary
from insource.config.schema.serving_and_cost import Route
from insource.system import atomic_files, environment
from insource.tracking import run, wandb_comparison
from insource.tracking.run import Run

SCHEMA_VERSION = 1
# As prompt.json names it.
POCKET_MODEL = "pocket/model"


def fit_system_policy(
    one: SystemResponses,
    mine: EvalDataset,
    fitted: Scale | None,
    target: Route,
    baseline: SystemResponses | None = None,
) -> RoutingPolicy:
    """Returns from which confidence on a system may answer alone, by the calibration rows. `baseline`: the system that
    the target names, None where it was not run."""
    rows = mine.calibration if one.calibration else []
    right = confidence.row_correctness(predictions.score_answers(mine, rows, one.calibration), mine)
    told = confidence.compute_confidences(one, fitted, one.calibration)
    scale = fitted if one.system.on_tuned_scale else one.scale
    theirs, missing = None, None
    if baseline is not None and len(baseline.calibration) == len(mine.calibration) and baseline.complete:
        theirs = confidence.row_correctness(
            predictions.score_answers(mine, mine.calibration, baseline.calibration), mine
        )
    elif baseline is not None:
        missing = baseline.why_not_calibration or baseline.why_incomplete
    ids = [row["id"] for row in rows]
    answers = routing_policy.CalibrationAnswers(ids, told, right, cluster_ids(rows), theirs if rows else None)
    return routing_policy.fit_policy(scale, answers, target, missing)


def fit_tuned_policy(
    every: Sequence[SystemScores], mine: EvalDataset, fitted: Scale | None, recipe: Recipe
) -> RoutingPolicy:
    """Returns the policy of the tuned model, the first of these systems."""
    tuned, *others = (one.gathered for one in every)
    named = next((one for one in others if one.system.name == recipe.route.not_worse_than), None)
    return fit_system_policy(tuned, mine, fitted, recipe.route, named)


def assemble_scores(
    here: Run,
    recipe: Recipe,
    mine: EvalDataset,
    every: Sequence[SystemScores],
    missing: Sequence[SkippedSystem],
    opened: TestSetAccess,
    sha256: str,
    fitted: bool,
) -> dict[str, Any]:
    """Returns scores.json without routing and verdict."""
    primary = recipe.compare.primary
    found = {one.name: system_scores.system_json(one, mine, primary, fitted) for one in every}
    for one in every[1:]:
        # What an endpoint that decides could keep by itself, by the same rule as the tuned model.
        alone = one.gathered.scale is not None and recipe.route.target_accuracy is not None
        found[one.name]["routing"] = fit_system_policy(one.gathered, mine, None, recipe.route).json() if alone else None
    incomplete = [f"{name}: {one['why_incomplete']}" for name, one in found.items() if not one["complete"]]
    incomplete += [f"{one.name}: {one.why}" for one in missing if one.incomplete]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": here.id,
        "recipe": here.recipe_name,
        "created": run.utc_timestamp(),
        "task": {
            "kind": describe_task_kind(recipe),
            "instruction": recipe.task.instruction,
            "parts": mine.module.BREAKDOWN_NAME,
            "metrics": list(every[0].tallies),
            "n_train": len(mine.train),
            "n_test": len(mine.test),
            "clusters": mine.n_clusters,
        },
        "base": {
            "name": str(mine.prompt["base"]["name"]),
            "pocket": used_pocket_model(mine),
            "quantization": recipe.model.quantization,
            "served_as": recipe.serve.base,
        },
        "hardware": environment.describe_machine(recipe),
        "training_seconds": training_seconds(here),
        "plan": preregistration_json(primary, opened),
        "systems": found,
        "not_run": [asdict(one) for one in missing],
        "comparisons": comparisons.paired_differences(every, primary),
        "agreement": comparisons.agreement(every),
        "confusion": comparisons.confusion(every, mine),
        "cost": compare_costs(here, recipe, mine, every).json(),
        "integrity": {
            "test_sha256": sha256,
            "plan_sha256": opened.plan_sha256,
            "openings": [{key: one[key] for key in ("opened", "run", "plan_sha256")} for one in opened.openings],
            # material.of ends the comparison over the first one.
            "leaked_rows": 0,
            "cache_hits": sum(one["reused"] for one in found.values()),
            "retries": sum(one["retries"] for one in found.values()),
            "versions": environment.read_package_versions(),
            "git_commit": environment.describe_environment(recipe)["git_commit"],
            "fallbacks": [note for one in every for note in one.gathered.notes],
            "incomplete": incomplete,
        },
    }


def describe_task_kind(recipe: Recipe) -> str:
    """Returns the kind of the task as the report names it."""
    return recipe.task.kind + (" with several labels a row" if recipe.task.labels_per_row == "many" else "")


def preregistration_json(primary: Primary | None, opened: TestSetAccess) -> dict[str, Any] | None:
    """Returns what scores.json says of the plan."""
    if primary is None:
        return None
    why = opened.why_not_confirmatory
    told = {"sha256": opened.plan_sha256, "written": opened.written, "confirmatory": why is None, "why_not": why}
    return {**primary.model_dump(mode="json"), **told}


def compare_costs(
    here: Run, recipe: Recipe, mine: EvalDataset, every: Sequence[SystemScores]
) -> ownership.CostComparison:
    """Returns the comparison of costs: owning the tuned model as it is served, against every closed one."""
    tuned, on_gpu = every[0], not recipe.accelerate.use_cpu
    tokens, rate = system_scores.tokens_per_request(tuned.gathered), tuned.gathered.rate
    why = None
    if used_pocket_model(mine) and not recipe.cost.cpu_usd_per_hour:
        why = "the pocket model stood in for the recipe's own, whose throughput was not measured"
    owned = ownership.SelfHostedMeasurement(
        requests_per_second=float(rate["requests_per_second"]) if rate and not why else None,
        hardware=environment.describe_machine(recipe),
        on_gpu=on_gpu,
        training_seconds=training_seconds(here),
        tokens_per_request=tokens,
        why_not=why or (None if rate else "too few requests were asked at once to measure its throughput"),
        right=sum(tuned.right) / len(tuned.right),
    )
    closed = [system_scores.request_cost(one) for one in every if _is_paid(one.gathered)]
    return ownership.CostComparison(recipe.cost, owned, closed)


def _is_paid(one: SystemResponses) -> bool:
    """Whether somebody is paid for its answers, whether or not the price is known here; a stand-in has one only if the
    recipe says so."""
    return one.system.kind == "file" or (one.system.kind == "closed" and bool(one.price or not one.system.stand_in))


def used_pocket_model(mine: EvalDataset) -> bool:
    """Returns whether the pocket model stood in for the recipe's own."""
    return bool(mine.prompt["base"]["name"] == POCKET_MODEL)


def training_seconds(here: Run) -> float:
    """Returns how long the run was trained, as its manifest tells."""
    stage = here.stage("train")
    if not stage.get("started") or not stage.get("ended"):
        return 0.0
    return (datetime.fromisoformat(stage["ended"]) - datetime.fromisoformat(stage["started"])).total_seconds()


def write_comparison(
    here: Run, mine: EvalDataset, every: Sequence[SystemScores], scores: Mapping[str, Any], recipe: Recipe
) -> None:
    """Writes predictions, routing policy, scores and report."""
    folder = here.folder / "predictions"
    for one in every:
        predictions.write_predictions(folder, one.name, "test", one.found, one.confidences)
        if again := one.gathered.again:
            found = predictions.score_answers(mine, mine.test[: len(again)], again)
            predictions.write_predictions(folder, one.name, "test", found, [None] * len(again), repeat=1)
    atomic_files.write_json(here.folder / "routing.json", scores["routing"])
    atomic_files.write_json(here.folder / "scores.json", scores)
    by_name = {one.name: one for one in every}
    own, other = wording.primary_pair(scores)
    told = comparisons.disagreements(by_name[own], by_name[other], mine) if own and other else []
    html_page.write_report(here.folder, scores, told)
    wandb_comparison.log_comparison(here, recipe, scores, told)
