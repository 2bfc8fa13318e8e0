"""Assemble scores.json and fit the routing policy of routing.json."""

from collections.abc import Sequence
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
from compare.records import Scale, SkippedSystem, SystemResponses
from compare.scoring import confidence, predictions
from insource.config.recipe import Recipe
from insource.config.schema.compare import Primary
from insource.config.schema.serving_and_cost import Route
from insource.system import environment
from insource.system.timestamps import utc_timestamp
from insource.tracking.run import Run

SCHEMA_VERSION = 1
POCKET_MODEL = "pocket/model"


def fit_system_policy(
    responses: SystemResponses,
    dataset: EvalDataset,
    tuned_scale: Scale | None,
    target: Route,
    baseline: SystemResponses | None = None,
) -> RoutingPolicy:
    """Return the routing policy of a system, fitted on the calibration rows.

    `baseline` is the system of the routing target, None if it was not run.
    """
    rows = dataset.calibration if responses.calibration_answers else []
    correct = confidence.row_correctness(
        predictions.score_answers(dataset, rows, responses.calibration_answers), dataset
    )
    confidences = confidence.compute_confidences(responses, tuned_scale, responses.calibration_answers)
    scale = tuned_scale if responses.system.uses_tuned_scale else responses.scale
    baseline_correct, missing_reason = None, None
    if baseline is not None and len(baseline.calibration_answers) == len(dataset.calibration) and baseline.complete:
        baseline_correct = confidence.row_correctness(
            predictions.score_answers(dataset, dataset.calibration, baseline.calibration_answers), dataset
        )
    elif baseline is not None:
        missing_reason = baseline.calibration_missing_reason or baseline.incomplete_reason
    ids = [row["id"] for row in rows]
    answers = routing_policy.CalibrationAnswers(
        ids, confidences, correct, cluster_ids(rows), baseline_correct if rows else None
    )
    return routing_policy.fit_policy(scale, answers, target, missing_reason)


def fit_tuned_policy(
    scored_systems: Sequence[SystemScores], dataset: EvalDataset, tuned_scale: Scale | None, recipe: Recipe
) -> RoutingPolicy:
    """Return the policy of the tuned model, the first of these systems."""
    tuned, *others = (scored.responses for scored in scored_systems)
    baseline = next((responses for responses in others if responses.system.name == recipe.route.not_worse_than), None)
    return fit_system_policy(tuned, dataset, tuned_scale, recipe.route, baseline)


def assemble_scores(
    trained_run: Run,
    recipe: Recipe,
    dataset: EvalDataset,
    scored_systems: Sequence[SystemScores],
    skipped: Sequence[SkippedSystem],
    access: TestSetAccess,
    sha256: str,
    calibrated: bool,
) -> dict[str, Any]:
    """Return scores.json without routing and verdict."""
    primary = recipe.compare.primary
    systems = {
        scored.name: system_scores.system_json(scored, dataset, primary, calibrated) for scored in scored_systems
    }
    for scored in scored_systems[1:]:
        # The traffic that a decision endpoint could answer without a fallback, by the same rule as the tuned model.
        is_routable = scored.responses.scale is not None and recipe.route.target_accuracy is not None
        systems[scored.name]["routing"] = (
            fit_system_policy(scored.responses, dataset, None, recipe.route).json() if is_routable else None
        )
    incomplete = [f"{name}: {system['why_incomplete']}" for name, system in systems.items() if not system["complete"]]
    incomplete += [
        f"{skipped_system.name}: {skipped_system.why}" for skipped_system in skipped if skipped_system.incomplete
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": trained_run.id,
        "recipe": trained_run.recipe_name,
        "created": utc_timestamp(),
        "task": {
            "kind": describe_task_kind(recipe),
            "instruction": recipe.task.instruction,
            "parts": dataset.task.BREAKDOWN_NAME,
            "metrics": list(scored_systems[0].metric_stats),
            "n_train": len(dataset.train),
            "n_test": len(dataset.test),
            "clusters": dataset.n_clusters,
        },
        "base": {
            "name": str(dataset.prompt["base"]["name"]),
            "pocket": used_pocket_model(dataset),
            "quantization": recipe.model.quantization,
            "served_as": recipe.serve.base,
        },
        "hardware": environment.describe_machine(recipe),
        "training_seconds": training_seconds(trained_run),
        "plan": preregistration_json(primary, access),
        "systems": systems,
        "not_run": [asdict(skipped_system) for skipped_system in skipped],
        "comparisons": comparisons.paired_differences(scored_systems, primary),
        "agreement": comparisons.agreement(scored_systems),
        "confusion": comparisons.confusion(scored_systems, dataset),
        "cost": compare_costs(trained_run, recipe, dataset, scored_systems).json(),
        "integrity": {
            "test_sha256": sha256,
            "plan_sha256": access.plan_sha256,
            "openings": [
                {key: opening[key] for key in ("opened", "run", "plan_sha256")} for opening in access.openings
            ],
            # load_test_dataset raises StageError for the first one.
            "leaked_rows": 0,
            "cache_hits": sum(system["reused"] for system in systems.values()),
            "retries": sum(system["retries"] for system in systems.values()),
            "versions": environment.read_package_versions(),
            "git_commit": environment.describe_environment(recipe)["git_commit"],
            "fallbacks": [note for scored in scored_systems for note in scored.responses.notes],
            "incomplete": incomplete,
        },
    }


def describe_task_kind(recipe: Recipe) -> str:
    """Return the task kind as the report names it."""
    return recipe.task.kind + (" with several labels a row" if recipe.task.labels_per_row == "many" else "")


def preregistration_json(primary: Primary | None, access: TestSetAccess) -> dict[str, Any] | None:
    """Return the entry `plan` of scores.json."""
    if primary is None:
        return None
    reason = access.exploratory_reason
    registration = {
        "sha256": access.plan_sha256,
        "written": access.registered_at,
        "confirmatory": reason is None,
        "why_not": reason,
    }
    return {**primary.model_dump(mode="json"), **registration}


def compare_costs(
    trained_run: Run, recipe: Recipe, dataset: EvalDataset, scored_systems: Sequence[SystemScores]
) -> ownership.CostComparison:
    """Return the costs of self-hosting the tuned model, compared with those of every paid system."""
    tuned, on_gpu = scored_systems[0], not recipe.accelerate.use_cpu
    tokens, throughput = system_scores.tokens_per_request(tuned.responses), tuned.responses.throughput
    reason = None
    if used_pocket_model(dataset) and not recipe.cost.cpu_usd_per_hour:
        reason = "the pocket model stood in for the recipe's own, whose throughput was not measured"
    owned = ownership.SelfHostedMeasurement(
        requests_per_second=float(throughput["requests_per_second"]) if throughput and not reason else None,
        hardware=environment.describe_machine(recipe),
        on_gpu=on_gpu,
        training_seconds=training_seconds(trained_run),
        tokens_per_request=tokens,
        missing_reason=reason
        or (None if throughput else "too few requests were asked at once to measure its throughput"),
        correct_fraction=sum(tuned.correct) / len(tuned.correct),
    )
    api_costs = [system_scores.request_cost(scored) for scored in scored_systems if _is_paid(scored.responses)]
    return ownership.CostComparison(recipe.cost, owned, api_costs)


def _is_paid(responses: SystemResponses) -> bool:
    """Return whether answers of the system are paid for, even if the price is unknown.

    A stand-in counts only if the recipe gives it a price.
    """
    return responses.system.kind == "file" or (
        responses.system.kind == "closed" and bool(responses.price or not responses.system.is_stand_in)
    )


def used_pocket_model(dataset: EvalDataset) -> bool:
    """Return whether the pocket model replaced the recipe's base."""
    return bool(dataset.prompt["base"]["name"] == POCKET_MODEL)


def training_seconds(trained_run: Run) -> float:
    """Return the duration of the training, from the manifest; 0 if it is missing."""
    stage = trained_run.stage("train")
    if not stage.get("started") or not stage.get("ended"):
        return 0.0
    return (datetime.fromisoformat(stage["ended"]) - datetime.fromisoformat(stage["started"])).total_seconds()
