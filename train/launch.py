"""The stage as it is called: find or make the run, then hand it to `accelerate launch -m train.worker <run folder>`.

Nothing heavy is imported here, so that a wrong recipe and a finished run are told at once.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipes import command
from recipes.errors import StageError
from recipes.load import POCKET, Loaded, load
from recipes.schema import Recipe
from tasks import KINDS, in_figures
from tracking import digests, environment, files, run
from tracking.run import Run


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the stage. Raises RecipeError and StageError, told by `recipes.command`."""
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    for line in heading(loaded):
        print(line, file=sys.stderr)
    if arguments.dry_run:
        print(run.to_yaml(loaded.recipe), end="")
        return command.DONE
    if (processes := loaded.recipe.accelerate.num_processes) > 1:
        raise StageError(f"training in {processes} processes is not built yet; take HARDWARE=gpu")
    data = _prepare(arguments)
    digest = digests.of_training(loaded.recipe, data.name)
    parent = run.runs_folder(arguments.runs) / loaded.name
    known = [] if arguments.fresh else run.with_digest(parent, digest)
    if done := [
        one for one in known if one.stage("train").get("state") == "done" and (one.folder / "adapter").is_dir()
    ]:
        print(f"train     unchanged: run {done[0].id} did this (FRESH=1 trains anew)", file=sys.stderr)
        return _conclude(done[0])
    if known:
        current = known[0]
        print(f"train     going on with the unfinished run {current.id}", file=sys.stderr)
    else:
        current = run.create(parent, loaded.recipe, digest, environment.collect(loaded.recipe), data, loaded.replaced)
        _record_data(current, data)
    _launch(current, loaded.recipe)
    return _conclude(current)


def heading(loaded: Loaded) -> list[str]:
    """Returns the first lines printed: on what, with which model, and what is not as the recipe says."""
    lines = [f"recipe    {loaded.name} on hardware {loaded.hardware}: {loaded.hardware_reason}"]
    if loaded.recipe.model.base == str(POCKET):
        lines.append(
            "model     pocket, the tiny model of the project: it shows the pipeline, not what a real model can do"
        )
    return lines + [f"          {told}" for told in loaded.replaced]


def _prepare(arguments: argparse.Namespace) -> Path:
    """Runs the data stage as a process of its own: stages meet on disk. Exits as it exits where it fails."""
    asked = [sys.executable, "-m", "data_prep", arguments.recipe, *arguments.set]
    asked += ["--hardware", arguments.hardware] if arguments.hardware else []
    asked += ["--runs", arguments.runs] if arguments.runs else []
    answer = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        sys.exit(answer.returncode)
    return Path(answer.stdout.strip())


def _record_data(current: Run, data: Path) -> None:
    report = files.read_json(data / "data.json")
    run.start(current, "data", {source["file"]: source["sha256"] for source in report["sources"]})
    outputs = [current.folder / "data" / name for name in ("data.json", *report["sha256"])]
    run.end(current, "data", "done", "done", outputs, rows=report["rows"])


def _launch(current: Run, recipe: Recipe) -> None:
    """Runs the worker under accelerate. Exits with the code that the worker recorded where it fails."""
    config = current.folder / "accelerate.yaml"
    settings = {"compute_environment": "LOCAL_MACHINE", **recipe.accelerate.model_dump(mode="json", exclude_none=True)}
    files.write_json(config, settings)  # JSON is YAML
    threads = max(1, len(os.sched_getaffinity(0)) // recipe.accelerate.num_processes)
    asked = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(config)]
    asked += ["--num_cpu_threads_per_process", str(threads), "-m", "train.worker", str(current.folder)]
    process = subprocess.Popen(asked, env=_worker_environment(recipe, threads), cwd=Path(__file__).parent.parent)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code:
        stage = current.stage("train")
        if stage.get("state") == "failed":
            sys.exit(stage["metrics"].get("exit_code", command.FAILED))
        raise StageError(f"training ended with exit code {code}; run the same command again to go on with {current.id}")


def _worker_environment(recipe: Recipe, threads: int) -> dict[str, str]:
    quiet = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "BITSANDBYTES_NOWELCOME": "1",
        "PYTHONWARNINGS": "ignore",
    }
    # A folder as base needs no hub, and a machine without one would wait for time-outs.
    offline = {"HF_HUB_OFFLINE": "1"} if Path(recipe.model.base).is_dir() else {}
    # A caller that has W&B running hands its own service down, which may be gone before this run is.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {**quiet, **inherited, **offline}


def _conclude(done: Run) -> int:
    run.point_latest(done)
    for line in summary(done):
        print(line)
    return command.DONE


def summary(done: Run) -> list[str]:
    """Returns what a finished training says of itself: the two scores and where the adapter is."""
    task = KINDS[done.recipe().task.kind]
    scores: dict[str, Any] = done.stage("train")["metrics"]["validation"]
    tuned, base = scores["tuned"], scores["base"]
    # Slices that a row is in or not, such as the vendors that train has never seen.
    inside = {name: values["true"] for name, values in tuned.get("slices", {}).items() if "true" in values}
    return [
        f"adapter   {os.path.relpath(done.folder / 'adapter')}",
        f"tuned     {in_figures(task.headline(tuned))}  ({tuned['n']} validation rows)",
        *(f"          {in_figures(task.headline(one))}  ({one['n']} of them: {name})" for name, one in inside.items()),
        f"untuned   {in_figures(task.headline(base))}  (the same base before training)",
    ]
