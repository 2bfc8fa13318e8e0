"""`python -m insource.tracking.dashboard RECIPE`: create a W&B workspace for the runs of a recipe.

If the machine is logged in to W&B, the workspace is created there and its address is printed. Otherwise its
specification is written to runs/<recipe>/dashboard.json, and the command that would create it is printed.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from insource.config import cli
from insource.config.load import describe_precedence, load
from insource.config.metric_names import METRICS
from insource.config.recipe import Recipe
from insource.config.schema.compare import LINEAR, TUNED, UNTUNED_BASE
from insource.system import atomic_files
from insource.tasks import metric_label
from insource.tracking import folder_ownership, run
from insource.tracking.wandb_logging import is_online


@dataclass(frozen=True)
class Panel:
    """A panel of the workspace, and the fields that it plots."""

    title: str
    fields: Sequence[str]
    kind: Literal["lines", "bars"] = "lines"


def build_sections(recipe: Recipe) -> dict[str, list[Panel]]:
    """Return the panels of each section.

    Line panels plot metrics.jsonl; bar panels plot the summary of a training or a comparison.
    """
    metrics = METRICS[recipe.task.task_name]
    validation_panels = [Panel(metric_label(metric), [f"validation/{metric}"]) for metric in metrics]
    test_metrics = [name for name, metric in metrics.items() if metric.has_test_value]
    systems = (TUNED, UNTUNED_BASE, LINEAR) if recipe.task.kind != "preference" else (TUNED, UNTUNED_BASE)
    return {
        "Training": [
            Panel("Loss", ["loss"]),
            Panel("Learning rate", ["learning_rate"]),
            Panel("Gradient norm", ["grad_norm"]),
        ],
        "Speed": [
            Panel("Examples a second", ["examples_per_second"]),
            Panel("Tokens a second, computed and saved", ["tokens_per_second", "tokens_saved_per_second"]),
            Panel("Peak memory (bytes)", ["peak_memory_bytes"]),
        ],
        **({"Validation while training": validation_panels} if recipe.train.eval_strategy != "no" else {}),
        "Validation": [
            Panel(
                f"Validation {metric_label(metric)}", [f"validation/{metric}", f"validation/untuned_{metric}"], "bars"
            )
            for metric in test_metrics
        ],
        "Comparison": [
            Panel(f"Test {metric_label(metric)}", [f"test/{name}/{metric}" for name in systems], "bars")
            for metric in test_metrics
        ],
    }


def build_workspace(recipe: Recipe, name: str) -> Any:
    """Return the W&B workspace, unsaved."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    def build_panel(panel: Panel) -> object:
        if panel.kind == "bars":
            return reports.BarPlot(title=panel.title, metrics=list(panel.fields))
        return reports.LinePlot(title=panel.title, x="step", y=list(panel.fields))

    wandb = recipe.tracking.wandb
    return workspaces.Workspace(
        entity=wandb.entity or "",
        project=wandb.project,
        name=f"insource: {name}",
        sections=[
            workspaces.Section(name=title, panels=[build_panel(panel) for panel in panels], is_open=True)
            for title, panels in build_sections(recipe).items()
        ],
    )


def main() -> int:
    """Create the workspace or write its specification. Return the exit code."""
    parser = cli.build_parser("insource.tracking.dashboard", "Make a W&B workspace for the runs of a recipe.")
    arguments = parser.parse_intermixed_args()
    runs = run.runs_folder(arguments.runs)
    loaded = folder_ownership.resolve_name(load(arguments.recipe, arguments.set, arguments.hardware), runs)
    print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    wandb = loaded.recipe.tracking.wandb
    if is_online(loaded.recipe):
        if not arguments.dry_run:
            workspace = build_workspace(loaded.recipe, loaded.name)
            workspace.save()
            print(f"dashboard {workspace.url}")
        return cli.OK
    path = runs / loaded.name / "dashboard.json"
    reason = "tracking.wandb.mode is " + wandb.mode if wandb.mode != "auto" else "this machine is not logged in to W&B"
    print(f"W&B       {reason}: the specification is written instead; `wandb login`, then again", file=sys.stderr)
    if not arguments.dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
        model = build_workspace(loaded.recipe, loaded.name)._to_model()
        specification = model.spec.model_dump(by_alias=True, mode="json")
        atomic_files.write_text(path, json.dumps(specification, indent=1, ensure_ascii=False) + "\n")
        print(f"dashboard {path}")
    return cli.OK


if __name__ == "__main__":
    cli.run_cli(main)
