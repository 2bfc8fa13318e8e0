"""Weights & Biases, through its own client: the run, its curves, its predictions, its adapter.

    history     the rows of metrics.jsonl under the same names, at the same steps
    at the end  validation/confusion_matrix, validation/confusions, validation/predictions, learning_curve, the adapter

What is sent of a recipe is on a list (`ALLOWED`), because a key that gets into a run's configuration stays readable
there. With `privacy.data_may_leave: false` only figures and settings are sent: no text, no row id, no label or field
(they tell of the data too), and no adapter, whose prompt has the labels and whose weights may know rows by heart.

Every function that takes a W&B run does nothing where that is None (mode off).
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from insource.config.recipe import Recipe
from insource.tracking import metrics
from insource.tracking.run import Run

# Sections and keys of the recipe that may stand in a run's configuration. No path, no host, no text of the data.
LOGGED_CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "task": ("kind",),
    "model": ("revision", "quantization"),
    "lora": (),
    "train": (),
    "accelerate": ("distributed_type", "num_machines", "num_processes", "mixed_precision"),
}


# W&B draws at most 10,000 cells of a table; labels beyond are told as one.
MAX_MATRIX_LABELS = 100
OTHER_LABELS, NO_ANSWER = "(other labels)", "(no valid answer)"
MAX_CONFUSIONS = 500
MAX_PREDICTIONS = 100


def build_config(recipe: Recipe, base_name: str) -> dict[str, Any]:
    """Returns the part of the recipe that may be sent; an empty tuple in ALLOWED admits the whole section.

    A base that is a folder goes by its name alone. Where data may not leave, neither do tables of `train`: those with
    a figure for each label.
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


def init_run(run: Run, recipe: Recipe, settings: Mapping[str, Any], job: str = "train") -> Any:
    """Returns the W&B run of this run, named by its id and grouped by its recipe, or None where mode is off. A `job`
    other than training has a W&B run of its own in the same group.

    Mode auto is online where the machine is logged in, else offline (`wandb sync` sends it later). A run that goes on
    goes on in the same W&B run; offline it is written anew, from metrics.jsonl (`replay`), and what the interrupted
    process left offline is removed: synced after each other, the two would overlap.
    """
    tracking = recipe.tracking.wandb
    if tracking.mode == "off":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode = tracking.mode
    if mode == "auto":
        mode = "online" if is_logged_in() else "offline"
    name = run.id if job == "train" else f"{run.id}-{job}"
    if mode == "online" and recipe.privacy.data_may_leave:
        contents = "rows of the data, with labels and answers, and the adapter"
        print(
            f"W&B       {tracking.project} gets {contents} (privacy.data_may_leave: true)", file=sys.stderr, flush=True
        )
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
        # What wandb collects by itself: no source, no console output, no machine's name.
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


def is_logged_in() -> bool:
    """Returns whether this machine has a W&B key, in the environment or where `wandb login` left it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc

    try:
        hosts = netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def log_row(wandb_run: Any, row: metrics.MetricRow) -> None:
    """Sends one row of metrics.jsonl, at its step. What W&B has from before an interruption is not sent twice."""
    if wandb_run is not None and row["step"] >= wandb_run.step:
        wandb_run.log(dict(row), step=row["step"], commit=False)


def replay_rows(wandb_run: Any, path: Path) -> None:
    """Sends those rows of a metrics.jsonl that W&B does not have, before a run goes on."""
    for row in metrics.read_rows(path):
        log_row(wandb_run, row)


def log_predictions(wandb_run: Any, recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> None:
    """Sends a table of at most 100 rows, the wrong ones first, unless data may not leave.

    `rows` are {"id", "input", "target", "answer", "right", "log_probability"}, in any order; of wrong ones those come
    first that the model was surest of, of right ones those that it was least sure of.
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


def log_confusion(wandb_run: Any, recipe: Recipe, targets: Sequence[str], predicted: Sequence[str | None]) -> None:
    """Sends which label was taken for which, unless data may not leave: a matrix, and the pairs with the most rows.

    `predicted` are the predicted labels, None where an answer was none. A matrix of 77 labels shows where to look,
    pairs say what is there.
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


def log_image(wandb_run: Any, path: Path) -> None:
    """Sends the learning curve (curve.draw), where there is one."""
    if wandb_run is None or not path.exists():
        return
    import wandb

    wandb_run.log({path.stem: wandb.Image(str(path))}, commit=False)


def finish_run(wandb_run: Any, run: Run, summary: Mapping[str, float | int], digests: Mapping[str, str]) -> None:
    """Logs the headline figures and the adapter with the digests of its data in its metadata, and closes the run.

    The adapter stays here where data may not leave; the digests are sent.
    """
    if wandb_run is None:
        return
    import wandb

    wandb_run.summary.update({**summary, **digests})
    if run.recipe().privacy.data_may_leave:
        artifact = wandb.Artifact(f"{run.recipe_name}-adapter", type="model", metadata={"run_id": run.id, **digests})
        # Runs of earlier versions have reference answers there, which are rows of the data: they stay.
        for path in sorted((run.folder / "adapter").iterdir()):
            if path.name != "reference.jsonl":
                artifact.add_file(str(path), name=path.name)
        wandb_run.log_artifact(artifact)
    wandb_run.finish()


def _table_cell(value: Any) -> Any:
    """A cell of a table: figures and texts as they are, a record as JSON."""
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False)


def _limit_labels(max_labels: int, targets: Sequence[str], answers: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns {label: label or OTHER_LABELS} and the labels left, those with the most mistakes, in alphabetic order."""
    labels = sorted({*targets, *answers})
    if len(labels) <= max_labels:
        return {label: label for label in labels}, labels
    mistakes = Counter(label for pair in zip(targets, answers, strict=True) if pair[0] != pair[1] for label in pair)
    selected = sorted(sorted(labels, key=lambda label: (-mistakes[label], label))[: max_labels - 1])
    return {label: label if label in selected else OTHER_LABELS for label in labels}, [*selected, OTHER_LABELS]


def set_production_alias(run: Run, recipe: Recipe) -> None:
    """Moves the alias `production` to the adapter of a run, where W&B is online and has that adapter."""
    tracking = recipe.tracking.wandb
    online = tracking.mode == "online" or (tracking.mode == "auto" and is_logged_in())
    if not online or not recipe.privacy.data_may_leave:
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
