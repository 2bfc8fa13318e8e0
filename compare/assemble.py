"""Assemble scores.json and fit the routing policy of routing.json."""

from collections.abc import Mapping, Sequence
from datetime import datetime

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
from insource.tracking import train_labels
from insource.tracking.run import Run
from insource.tracking.scores.comparison import (
    BaseSummary,
    Integrity,
    Measurements,
    NotRun,
    Opening,
    Plan,
    TaskSummary,
    TeacherSummary,
)
from insource.tracking.scores.system_result import SystemResult

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
) -> Measurements:
    """Return scores.json without routing and verdict."""
    primary = recipe.compare.primary
    systems = summarize_systems(recipe, dataset, scored_systems, calibrated)
    return Measurements(
        schema_version=SCHEMA_VERSION,
        run_id=trained_run.id,
        recipe=trained_run.recipe_name,
        created=utc_timestamp(),
        task=summarize_task(trained_run, recipe, dataset, list(scored_systems[0].metric_stats)),
        base=BaseSummary(
            name=dataset.prompt.base.name,
            pocket=used_pocket_model(dataset),
            quantization=recipe.model.quantization,
            served_as=recipe.serve.base,
        ),
        hardware=environment.describe_machine(recipe),
        training_seconds=training_seconds(trained_run),
        plan=summarize_plan(primary, access),
        systems=systems,
        not_run=[
            NotRun(name=entry.name, title=entry.title, reason=entry.reason, incomplete=entry.incomplete)
            for entry in skipped
        ],
        comparisons=comparisons.paired_differences(scored_systems, primary),
        agreement=comparisons.agreement(scored_systems),
        confusion=comparisons.confusion(scored_systems, dataset),
        cost=compare_costs(trained_run, recipe, dataset, scored_systems).summarize(),
        integrity=Integrity(
            test_sha256=sha256,
            plan_sha256=access.plan_sha256,
            openings=[
                Opening(opened=opening["opened"], run=opening["run"], plan_sha256=opening["plan_sha256"])
                for opening in access.openings
            ],
            # load_test_dataset raises StageError for the first one.
            leaked_rows=0,
            cache_hits=sum(system.reused for system in systems.values()),
            retries=sum(system.retries for system in systems.values()),
            versions=environment.read_package_versions(),
            git_commit=environment.describe_environment(recipe)["git_commit"],
            fallbacks=[note for scored in scored_systems for note in scored.responses.notes],
            incomplete=incomplete_lines(systems, skipped),
        ),
    )


def summarize_task(trained_run: Run, recipe: Recipe, dataset: EvalDataset, metrics: Sequence[str]) -> TaskSummary:
    """Return the task and its rows. The key `teacher` is in scores.json only if a teacher labelled train rows."""
    summary = TaskSummary(
        kind=describe_task_kind(recipe),
        instruction=recipe.task.instruction,
        parts=dataset.task.BREAKDOWN_NAME,
        metrics=list(metrics),
        n_train=len(dataset.train),
        n_test=len(dataset.test),
        clusters=dataset.n_clusters,
    )
    share = train_labels.read_teacher_share(recipe, trained_run.folder / "data")
    if share is None:
        return summary
    teacher = TeacherSummary(
        name=share.name, n_train=share.rows, stand_in=share.stand_in, soft_labels=share.soft_labels
    )
    return summary.model_copy(update={"teacher": teacher})


def summarize_systems(
    recipe: Recipe, dataset: EvalDataset, scored_systems: Sequence[SystemScores], calibrated: bool
) -> dict[str, SystemResult]:
    """Return the record of every system, in their order.

    `calibrated` is whether the confidences of the tuned model have a fitted scale.
    """
    results = {
        scored.name: system_scores.summarize_system(scored, dataset, recipe.compare.primary, calibrated)
        for scored in scored_systems
    }
    for scored in scored_systems[1:]:
        # The traffic that a decision endpoint could answer without a fallback, by the same rule as the tuned model.
        is_routable = scored.responses.scale is not None and recipe.route.target_accuracy is not None
        policy = fit_system_policy(scored.responses, dataset, None, recipe.route).summarize() if is_routable else None
        results[scored.name] = results[scored.name].model_copy(update={"routing": policy})
    return results


def incomplete_lines(systems: Mapping[str, SystemResult], skipped: Sequence[SkippedSystem]) -> list[str]:
    """Return a line for each system that lacks rows, and for each that was tried and failed."""
    lines = [f"{name}: {system.incomplete_reason}" for name, system in systems.items() if not system.complete]
    return lines + [f"{entry.name}: {entry.reason}" for entry in skipped if entry.incomplete]


def describe_task_kind(recipe: Recipe) -> str:
    """Return the task kind as the report names it."""
    return recipe.task.kind + (" with several labels a row" if recipe.task.labels_per_row == "many" else "")


def summarize_plan(primary: Primary | None, access: TestSetAccess) -> Plan | None:
    """Return the plan with its registration, None if the recipe plans no comparison."""
    if primary is None:
        return None
    return Plan(
        system=primary.system,
        baseline=primary.baseline,
        metric=primary.metric,
        margin=primary.margin,
        alpha=primary.alpha,
        sha256=access.plan_sha256,
        registered_at=access.registered_at,
        confirmatory=access.exploratory_reason is None,
        exploratory_reason=access.exploratory_reason,
    )


def compare_costs(
    trained_run: Run, recipe: Recipe, dataset: EvalDataset, scored_systems: Sequence[SystemScores]
) -> ownership.CostComparison:
    """Return the costs of self-hosting the tuned model, compared with those of every paid system."""
    tuned, on_gpu = scored_systems[0], not recipe.accelerate.use_cpu
    tokens, throughput = system_scores.tokens_per_request(tuned.responses), tuned.responses.throughput
    reason = None
    if used_pocket_model(dataset) and not recipe.cost.cpu_usd_per_hour:
        reason = "the pocket model stood in for the recipe's own, whose throughput was not measured"
    self_hosted = ownership.SelfHostedMeasurement(
        requests_per_second=float(throughput["requests_per_second"]) if throughput and not reason else None,
        hardware=environment.describe_machine(recipe),
        on_gpu=on_gpu,
        training_seconds=training_seconds(trained_run),
        tokens_per_request=tokens,
        missing_reason=reason
        or (None if throughput else "too few requests were sent concurrently to measure its throughput"),
        correct_fraction=sum(tuned.correct) / len(tuned.correct),
    )
    api_costs = [system_scores.request_cost(scored) for scored in scored_systems if _is_paid(scored.responses)]
    return ownership.CostComparison(recipe.cost, self_hosted, api_costs)


def _is_paid(responses: SystemResponses) -> bool:
    """Return whether answers of the system are paid for, even if the price is unknown.

    A stand-in counts only if the recipe gives it a price.
    """
    return responses.system.kind == "file" or (
        responses.system.kind == "closed" and bool(responses.price or not responses.system.is_stand_in)
    )


def used_pocket_model(dataset: EvalDataset) -> bool:
    """Return whether the pocket model replaced the recipe's base."""
    return dataset.prompt.base.name == POCKET_MODEL


def training_seconds(trained_run: Run) -> float:
    """Return the duration of the training, from the manifest; 0 if it is missing."""
    stage = trained_run.stage("train")
    if not stage.started or not stage.ended:
        return 0.0
    return (datetime.fromisoformat(stage.ended) - datetime.fromisoformat(stage.started)).total_seconds()
