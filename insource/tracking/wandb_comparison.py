"""The comparison in W&B: a run of its own in the group of the training run, with the figures of scores.json.

    summary   test/<system>/<metric>, test/<system>/cost_usd_per_1k, test/<system>/p95_seconds, test/verdict
    tables    test/systems, test/differences, test/monthly_cost; where data may leave, test/disagreements too

With `privacy.data_may_leave: false` no text of the data, no label and no answer is sent, only figures and settings.
"""

from collections.abc import Sequence
from typing import Any

from insource.config.recipe import Recipe
from insource.tracking import wandb_logging
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Disagreement, Scores

MAX_DISAGREEMENTS = 100


def log_comparison(run: Run, recipe: Recipe, scores: Scores, disagreements: Sequence[Disagreement]) -> None:
    """Log a comparison to W&B, online or into an offline run; do nothing if mode is off."""
    wandb_run = wandb_logging.init_run(run, recipe, build_config(scores), job="compare")
    if wandb_run is None:
        return
    import wandb

    tables = {
        "test/systems": build_systems_table(scores),
        "test/differences": build_differences_table(scores),
        "test/monthly_cost": build_monthly_cost_table(scores),
    }
    if recipe.privacy.data_may_leave:
        tables["test/disagreements"] = build_disagreements_table(disagreements)
    wandb_tables = {name: wandb.Table(columns=rows[0], data=rows[1:]) for name, rows in tables.items() if len(rows) > 1}
    wandb_run.log(wandb_tables)
    wandb_run.summary.update(build_summary(scores))
    wandb_run.finish()


def build_config(scores: Scores) -> dict[str, object]:
    """Return the configuration of the W&B run: the plan, the training run's id and the hardware."""
    plan = {f"plan.{name}": value for name, value in (scores.plan.to_json() if scores.plan else {}).items()}
    return {"of_run": scores.run_id, "hardware": scores.hardware, **plan}


def build_summary(scores: Scores) -> dict[str, object]:
    """Return the figures of the W&B summary, under the names that dashboard panels plot."""
    summary: dict[str, Any] = {"test/verdict": scores.verdict.choice}
    for name, system in scores.systems.items():
        summary |= {f"test/{name}/{metric}": value.value for metric, value in system.metrics.items()}
        if system.cost_usd_per_1k is not None:
            summary[f"test/{name}/cost_usd_per_1k"] = system.cost_usd_per_1k
        if system.latency:
            summary[f"test/{name}/p95_seconds"] = system.latency.p95_seconds
        if system.throughput:
            summary[f"test/{name}/requests_per_second"] = system.throughput.requests_per_second
    return summary


def build_systems_table(scores: Scores) -> list[list[object]]:
    """Return a table with a row for each system and metric, header first."""
    rows: list[list[Any]] = [["system", "stand-in", "complete", "metric", "value", "ci_low", "ci_high", "n"]]
    for system in scores.systems.values():
        for metric, value in system.metrics.items():
            interval = [value.value, value.ci_low, value.ci_high]
            rows.append([system.title, system.stand_in, system.complete, metric, *interval, system.n])
    return rows


def build_differences_table(scores: Scores) -> list[list[object]]:
    """Return a table of the paired differences, header first."""
    names = ["family", "a", "b", "metric", "delta", "ci_low", "ci_high", "p_value", "p_adjusted", "test", "judged", "n"]
    entries = [comparison.to_json() for comparison in scores.comparisons]
    return [names, *([entry[name] for name in names] for entry in entries)]


def build_monthly_cost_table(scores: Scores) -> list[list[object]]:
    """Return a table of monthly costs by volume, header first."""
    rows: list[list[object]] = [["system", "requests", "tokens", "closed_usd", "owned_usd", "machines"]]
    for name, cost in scores.cost.systems.items():
        rows += [
            [name, line.requests, line.tokens, line.api_usd, line.self_hosted_usd, line.machines]
            for line in cost.monthly
        ]
    return rows


def build_disagreements_table(disagreements: Sequence[Disagreement]) -> list[list[object]]:
    """Return a table of the rows that two systems answer differently, header first; [[]] if there are none."""
    if not disagreements:
        return [[]]
    names = list(disagreements[0].answers)
    rows: list[list[Any]] = [["id", "input", "target", *names, *(f"{name} right" for name in names)]]
    for disagreement in disagreements[:MAX_DISAGREEMENTS]:
        answers = [disagreement.answers[name] for name in names] + [disagreement.correct[name] for name in names]
        rows.append([disagreement.id, disagreement.input, disagreement.target, *answers])
    return rows
