"""Weights & Biases logging, through its own client: run, curves, predictions and adapter.

    history     the rows of metrics.jsonl under the same names, at the same steps
    at the end  validation/confusion_matrix, validation/confusions, validation/predictions, learning_curve, the adapter

Only recipe keys in `LOGGED_CONFIG_KEYS` are sent, because a key in a W&B run's configuration stays readable there. With
`privacy.data_may_leave: false` only figures and settings are sent. No text, row id, label or field is sent, because
these reveal data too; and no adapter, whose prompt contains the labels and whose weights may have memorized rows.

Every function that takes a W&B run does nothing if it is None (mode off).
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from insource.config.recipe import Recipe
from insource.system.console_log import log_line
from insource.tracking import metrics
from insource.tracking.run import Run

if TYPE_CHECKING:
    import wandb

# Sections and keys of the recipe that may be in a run's configuration. No path, no host, no text of the data.
LOGGED_CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "task": ("kind",),
    "model": ("revision", "quantization"),
    "lora": (),
    "train": (),
    "accelerate": ("distributed_type", "num_machines", "num_processes", "mixed_precision"),
}

# W&B draws at most 10,000 cells of a table; labels beyond MAX_MATRIX_LABELS are merged into one.
MAX_MATRIX_LABELS = 100
OTHER_LABELS, NO_ANSWER = "(other labels)", "(no valid answer)"
MAX_CONFUSIONS = 500
MAX_PREDICTIONS = 100


def build_config(recipe: Recipe, base_name: str) -> dict[str, object]:
    """Return the part of the recipe that may be sent.

    An empty tuple in LOGGED_CONFIG_KEYS permits the complete section. A base in a local folder is sent by its name
    only. If data may not leave, tables of `train` are dropped, because they have a value for each label.
    """
    sections = recipe.model_dump(mode="json", include=set(LOGGED_CONFIG_KEYS))
    allowed = {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in section.items()
        if (not LOGGED_CONFIG_KEYS[name] or key in LOGGED_CONFIG_KEYS[name])
        and (recipe.privacy.data_may_leave or name != "train" or not isinstance(value, dict))
    }
    return {"model.base": Path(base_name).name if Path(base_name).is_absolute() else base_name, **allowed}


def init_run(run: Run, recipe: Recipe, settings: Mapping[str, object], job: str = "train") -> "wandb.Run | None":
    """Return the W&B run of this run, named by its id and grouped by its recipe, or None if mode is off.

    A `job` other than training has a W&B run of its own in the same group. Mode auto is online if the machine is logged
    in, else offline (`wandb sync` sends it later). A resumed run continues the same W&B run online. Offline it is
    written again from metrics.jsonl (`replay_rows`), and the interrupted process's offline folder is removed: synced
    one after the other, the two would overlap.
    """
    tracking = recipe.tracking.wandb
    if tracking.mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode: Literal["online", "offline"] = "online" if is_online(recipe) else "offline"
    name = run.id if job == "train" else f"{run.id}-{job}"
    if mode == "online" and recipe.privacy.data_may_leave:
        contents = "rows of the data, with labels and answers, and the adapter"
        log_line(f"W&B       {tracking.project} gets {contents} (privacy.data_may_leave: true)")
    if mode == "offline":
        for stale_folder in (run.folder / "wandb").glob(f"offline-run-*-{name}"):
            shutil.rmtree(stale_folder)
    wandb_run = wandb.init(
        project=tracking.project,
        entity=tracking.entity,
        group=run.recipe_name,
        job_type=job,
        name=name,
        id=name,
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=run.folder,
        config=dict(settings),
        # Disable what wandb collects itself: source, console output, host name.
        settings=wandb.Settings(
            disable_git=True,
            disable_code=True,
            console="off",
            x_disable_meta=True,
            x_disable_stats=True,
            host="",
            silent=True,
        ),
    )
    wandb_run.define_metric("*", step_metric="step")
    return wandb_run


def is_online(recipe: Recipe) -> bool:
    """Return whether runs of a recipe are sent to W&B at once: mode online, or auto on a machine that is logged in."""
    mode = recipe.tracking.wandb.mode
    return mode == "online" or (mode == "auto" and is_logged_in())


def is_logged_in() -> bool:
    """Return whether this machine has a W&B key, in the environment or from `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc

    try:
        hosts = netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def log_row(wandb_run: "wandb.Run | None", row: metrics.MetricRow) -> None:
    """Log one row of metrics.jsonl, at its step. Steps that W&B has from before an interruption are skipped."""
    if wandb_run is not None and row["step"] >= wandb_run.step:
        wandb_run.log(dict(row), step=row["step"], commit=False)


def replay_rows(wandb_run: "wandb.Run | None", path: Path) -> None:
    """Log the rows of a metrics.jsonl that W&B lacks, before a run resumes."""
    for row in metrics.read_rows(path):
        log_row(wandb_run, row)


def log_predictions(wandb_run: "wandb.Run | None", recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log a table of at most 100 rows, wrong ones first, unless data may not leave.

    `rows` are {"id", "input", "target", "answer", "right", "log_probability"}, in any order. Wrong rows are sorted by
    falling confidence of the model, right rows by rising confidence.
    """
    if wandb_run is None or not recipe.privacy.data_may_leave:
        return
    import wandb

    columns = ["id", "input", "target", "answer", "right", "log_probability"]

    def worst_first(row: Mapping[str, Any]) -> tuple[bool, float]:
        return row["right"], row["log_probability"] if row["right"] else -row["log_probability"]

    worst = sorted(rows, key=worst_first)[:MAX_PREDICTIONS]
    table = wandb.Table(columns=columns, data=[[_table_cell(row[name]) for name in columns] for row in worst])
    wandb_run.log({"validation/predictions": table}, commit=False)


def log_confusion(
    wandb_run: "wandb.Run | None", recipe: Recipe, targets: Sequence[str], predicted: Sequence[str | None]
) -> None:
    """Log the confusions of labels, unless data may not leave: a matrix, and the pairs with the most rows.

    `predicted` are the predicted labels, None for an invalid answer. A matrix of 77 labels shows where to look; the
    pairs are readable.
    """
    if wandb_run is None or not recipe.privacy.data_may_leave:
        return
    import wandb

    answers = [NO_ANSWER if label is None else label for label in predicted]
    pairs = Counter((t, a) for t, a in zip(targets, answers, strict=True) if t != a)
    target_counts = Counter(targets)
    worst = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_CONFUSIONS]
    table = wandb.Table(
        columns=["target", "answer", "rows", "share of the target's rows"],
        data=[[t, a, count, round(count / target_counts[t], 4)] for (t, a), count in worst],
    )
    display_labels, labels = _limit_labels(MAX_MATRIX_LABELS, targets, answers)
    matrix = wandb.plot.confusion_matrix(
        y_true=[labels.index(display_labels[label]) for label in targets],
        preds=[labels.index(display_labels[label]) for label in answers],
        class_names=labels,
        title="Validation: target by answer",
    )
    wandb_run.log({"validation/confusion_matrix": matrix, "validation/confusions": table}, commit=False)


def log_image(wandb_run: "wandb.Run | None", path: Path) -> None:
    """Log the learning curve (`learning_curve.draw`), if there is one."""
    if wandb_run is None or not path.exists():
        return
    import wandb

    wandb_run.log({path.stem: wandb.Image(str(path))}, commit=False)


def finish_run(
    wandb_run: "wandb.Run | None", run: Run, summary: Mapping[str, float | int], digests: Mapping[str, str]
) -> None:
    """Log the headline metrics and the adapter, and close the run.

    The adapter's metadata has the digests of its data. If data may not leave, only the digests are sent.
    """
    if wandb_run is None:
        return
    import wandb

    wandb_run.summary.update({**summary, **digests})
    if run.recipe().privacy.data_may_leave:
        artifact = wandb.Artifact(f"{run.recipe_name}-adapter", type="model", metadata={"run_id": run.id, **digests})
        # The adapter folder of earlier versions has reference answers, which are rows of the data: they are not sent.
        for path in sorted((run.folder / "adapter").iterdir()):
            if path.name != "reference.jsonl":
                artifact.add_file(str(path), name=path.name)
        wandb_run.log_artifact(artifact)
    wandb_run.finish()


def set_production_alias(run: Run, recipe: Recipe) -> None:
    """Move the alias `production` to the adapter of a run, if W&B is online and has that adapter."""
    tracking = recipe.tracking.wandb
    if not is_online(recipe) or not recipe.privacy.data_may_leave:
        return
    import wandb

    run_path = "/".join(part for part in (tracking.entity, tracking.project, run.id) if part)
    try:
        for artifact in wandb.Api().run(run_path).logged_artifacts():
            if artifact.type == "model":
                artifact.aliases.append("production")
                artifact.save()
    except wandb.errors.Error as error:
        print(f"W&B       the alias `production` was not moved: {error}", file=sys.stderr)


def _table_cell(value: object) -> object:
    """Return a table cell: numbers and texts unchanged, a record as JSON."""
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False)


def _limit_labels(max_labels: int, targets: Sequence[str], answers: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return {label: label or OTHER_LABELS} and the labels kept: those with the most mistakes, in alphabetic order."""
    labels = sorted({*targets, *answers})
    if len(labels) <= max_labels:
        return {label: label for label in labels}, labels
    mistakes = Counter(label for pair in zip(targets, answers, strict=True) if pair[0] != pair[1] for label in pair)
    selected = sorted(sorted(labels, key=lambda label: (-mistakes[label], label))[: max_labels - 1])
    return {label: label if label in selected else OTHER_LABELS for label in labels}, [*selected, OTHER_LABELS]
