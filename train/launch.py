"""The train stage: find or create the run, start the processes that train it, wait for their end.

    one process      python -m train.worker <run folder>
    several, CPU     torchrun through distributed/launcher.py: accelerate's launcher would start one, without a message
    several, GPUs    accelerate launch through distributed/launcher.py: DDP or FSDP2

This module imports nothing heavy, so that a wrong recipe or a finished run is reported without delay.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from insource.config import base_models, cli, hardware
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError, StageError
from insource.config.load import LoadedRecipe, describe_precedence, load
from insource.config.metric_names import select_metrics
from insource.config.recipe import Recipe
from insource.system import atomic_files, environment
from insource.tasks import format_metrics
from insource.tasks.rendering import hub_model
from insource.tracking import digests, folder_ownership, run
from insource.tracking.base_models import gguf_model, smollm2_wheel
from insource.tracking.data_report import DataReport
from insource.tracking.manifest import UNRECORDED_EXIT
from insource.tracking.run import Run
from train.device.environment import GPU_ALLOCATOR_ENV, QUIET_ENV
from train.distributed import rendezvous
from train.distributed.launcher import PARENT_PID_ENV
from train.distributed.rendezvous import Announcement
from train.loop.signals import DUPLICATE_SIGNAL_SECONDS
from train.prompt_examples import WITHOUT_EXAMPLES

ROOT = Path(__file__).parent.parent
# After a second signal the processes have this many seconds to record their end.
KILL_AFTER_SECONDS = 10.0


def main(arguments: argparse.Namespace) -> int:
    """Run the stage and return its exit code. Raise RecipeError or StageError, which `cli.run_cli` reports."""
    runs = run.runs_folder(arguments.runs)
    unresolved = load(arguments.recipe, arguments.set, arguments.hardware)
    loaded = folder_ownership.resolve_name(unresolved, runs)
    for line in header_lines(loaded):
        print(line, file=sys.stderr)
    if arguments.dry_run:
        print(run.to_yaml(loaded.recipe), end="")
        return cli.OK
    _check_gpus(loaded.recipe)
    smollm2_wheel.ensure_smollm2_folder(loaded.recipe.model.base)
    loaded = folder_ownership.claim_folder(unresolved, runs)
    loaded = replace(loaded, recipe=gguf_model.ensure_model_folder(loaded.recipe, runs))
    # Until a worker runs, SIGTERM raises KeyboardInterrupt as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    recipe_folder = runs / loaded.name
    if (node_rank := loaded.recipe.accelerate.machine_rank) > 0:
        return _join_as_node(node_rank, recipe_folder, loaded.recipe)
    is_multi_node = loaded.recipe.accelerate.num_machines > 1
    with rendezvous.publish_launch(recipe_folder, loaded.recipe) if is_multi_node else nullcontext() as announcement:
        return _start_or_resume(arguments, loaded, recipe_folder, announcement)


def _start_or_resume(
    arguments: argparse.Namespace, loaded: LoadedRecipe, recipe_folder: Path, announcement: Announcement | None
) -> int:
    """Find or create the run and train it. With several machines, machine 0 does this and publishes the run."""
    data = cli.prepare_data(arguments)
    digest = digests.compute_training_digest(rendezvous.without_node_settings(loaded.recipe), data.name)
    existing = [] if arguments.fresh else run.find_by_digest(recipe_folder, digest)
    if finished := [
        candidate
        for candidate in existing
        if candidate.stage("train").state == "done" and (candidate.folder / "adapter").is_dir()
    ]:
        print(f"train     unchanged: run {finished[0].id} did this (FRESH=1 trains again)", file=sys.stderr)
        if announcement:
            announcement.set_unchanged(f"run {finished[0].id} did this")
        return _finish(finished[0], arguments.keep_latest)
    if existing:
        current = existing[0]
        print(f"train     going on with the unfinished run {current.id}", file=sys.stderr)
    else:
        current = run.create(
            recipe_folder,
            # The run is resumed and served with the commit that the name stands for now.
            loaded.recipe.with_model(revision=hub_model.pin_commit(loaded.recipe.model).revision),
            digest,
            environment.describe_environment(loaded.recipe),
            data,
            loaded.overridden,
        )
        _record_data(current, data)
    if announcement:
        announcement.set_running(current)
    _launch_training(current, loaded.recipe)
    return _finish(current, arguments.keep_latest)


def header_lines(loaded: LoadedRecipe) -> list[str]:
    """Return the first lines printed: the hardware, the base model, and the settings that differ from the recipe."""
    precedence_line, *replaced = describe_precedence(loaded)
    lines = [precedence_line]
    if loaded.recipe.model.base == str(POCKET):
        lines.append(
            "model     pocket, the tiny model of the project: it shows the pipeline, not what a real model can do"
        )
    if base_models.is_gguf(loaded.recipe.model.base):
        lines.append(f"model     {Path(loaded.recipe.model.base).name}, dequantized: the weights that GGUF left")
    if loaded.recipe.model.base == str(base_models.smollm2_dir()):
        lines.append("model     smollm2: SmolLM2-135M-Instruct, as GGUF's 4 bits (Q4_1) left it")
    lines += replaced
    accelerate, serve = loaded.recipe.accelerate, loaded.recipe.serve
    if accelerate.num_processes > 1:
        strategies = {"MULTI_CPU": "CPU", "MULTI_GPU": "DDP, a GPU each", "FSDP": "FSDP, a GPU each"}
        machines_note = f" on {accelerate.num_machines} machines" if accelerate.num_machines > 1 else ""
        lines.append(f"processes {accelerate.num_processes}{machines_note}: {strategies[accelerate.distributed_type]}")
    elif not accelerate.use_cpu and (idle := hardware.count_gpus() - 1) > 0:
        lines.append(
            f"processes 1 on one GPU; {idle} more {'is' if idle == 1 else 'are'} idle: HARDWARE=multi-gpu takes all"
        )
    if (reason := loaded.recipe.lora.unservable_reason) and serve.model == "merged":
        lines.append(f"serving   merged into the base: lora.{reason}")
    return lines


def _check_gpus(recipe: Recipe) -> None:
    """Raise RecipeError if this machine has fewer GPUs than processes that are to train on it."""
    accelerate = recipe.accelerate
    if accelerate.distributed_type not in ("MULTI_GPU", "FSDP"):
        return
    available, required = hardware.count_gpus(), accelerate.num_processes // accelerate.num_machines
    if available == 0:
        raise RecipeError(
            f"accelerate.distributed_type: {accelerate.distributed_type} needs GPUs, but this machine has none; "
            "set HARDWARE=cpu",
            code="INS-X005",
        )
    if available < required:
        raise RecipeError(
            f"accelerate.num_processes: given {required} processes on this machine, which has {available} GPUs; "
            "set num_processes: auto, or fewer",
            code="INS-X006",
        )


def _join_as_node(node_rank: int, recipe_folder: Path, recipe: Recipe) -> int:
    """Train this machine's part of the run that machine 0 launches. Return the exit code."""
    print(f"machine   {node_rank}: waiting for machine 0 to launch the run below {recipe_folder}", file=sys.stderr)
    current = rendezvous.wait_for_run(recipe_folder, recipe)
    if current is None:
        return cli.OK
    print(f"machine   {node_rank}: joins run {current.id}", file=sys.stderr)
    _launch_training(current, recipe)
    print(f"machine   {node_rank}: has done its part; machine 0 concludes run {current.id}", file=sys.stderr)
    return cli.OK


def _record_data(current: Run, data: Path) -> None:
    report = DataReport.read(data)
    inputs = {source.file: source.sha256 for source in report.sources}
    if teacher := report.teacher:
        inputs["teacher/labels.jsonl"] = teacher.labels_sha256
    run.start_stage(current, "data", inputs)
    outputs = [current.folder / "data" / name for name in ("data.json", *report.sha256)]
    run.end_stage(current, "data", "done", "done", outputs, rows=report.rows.to_json())


def _launch_training(current: Run, recipe: Recipe) -> None:
    """Train the run. Exit with the code that the worker recorded if it fails, and with 130 if it was interrupted.

    Raise StageError if training ends without a recorded exit code.
    """
    accelerate, previous = recipe.accelerate, current.stage("train")
    threads = max(1, len(os.sched_getaffinity(0)) * accelerate.num_machines // accelerate.num_processes)
    command = _worker_command(current.folder, recipe, threads)
    code, stopped = run_program(command, worker_environment(recipe, threads))
    stage = current.stage("train")
    if code and stage != previous and stage.state == "failed":
        sys.exit(stage.metrics.get("exit_code", cli.FAILED))
    # Only process 0 of all machines records and returns exit code 130.
    if code == cli.INTERRUPTED or (stopped and (code or accelerate.machine_rank)):
        if stage.exit_reason == UNRECORDED_EXIT and not accelerate.machine_rank:
            run.end_stage(current, "train", "interrupted", "killed after a second signal", exit_code=cli.INTERRUPTED)
        print(f"interrupted: the same command resumes run {current.id}", file=sys.stderr)
        sys.exit(cli.INTERRUPTED)
    if code:
        raise StageError(
            f"training ended with exit code {code}; run the same command again to resume {current.id}", code="INS-T017"
        )


def _worker_command(folder: Path, recipe: Recipe, threads: int) -> list[str]:
    """Return the command that trains a run on this machine."""
    accelerate = recipe.accelerate
    local_processes, worker = accelerate.num_processes // accelerate.num_machines, ["-m", "train.worker", str(folder)]
    if accelerate.num_processes == 1 and accelerate.distributed_type != "FSDP":
        return [sys.executable, *worker]
    launcher = [sys.executable, "-m", "train.distributed.launcher"]
    if accelerate.use_cpu:
        rendezvous_args = ["--standalone"]
        if accelerate.num_machines > 1:
            rendezvous_args = [f"--nnodes={accelerate.num_machines}", f"--node-rank={accelerate.machine_rank}"]
            rendezvous_args += [f"--rdzv-backend={accelerate.rdzv_backend}", f"--rdzv-id={folder.name}"]
            rendezvous_args += [f"--rdzv-endpoint={accelerate.main_process_ip}:{accelerate.main_process_port}"]
        return [*launcher, "torch.distributed.run", f"--nproc-per-node={local_processes}", *rendezvous_args, *worker]
    suffix = f"-{accelerate.machine_rank}" if accelerate.num_machines > 1 else ""
    config = folder / f"accelerate{suffix}.yaml"
    settings = {"compute_environment": "LOCAL_MACHINE", **accelerate.model_dump(mode="json", exclude_none=True)}
    atomic_files.write_json(config, settings)  # JSON is YAML
    launch_args = ["--config_file", str(config), "--num_cpu_threads_per_process", str(threads)]
    # Port 0 means any free port. Only other machines need to know the port.
    launch_args += [] if accelerate.main_process_port else ["--main_process_port", "0"]
    return [*launcher, "accelerate.commands.launch", *launch_args, *worker]


def run_program(command: list[str], env: Mapping[str, str]) -> tuple[int, bool]:
    """Run a program to its end. Return its exit code and whether a signal requested a stop.

    SIGINT, SIGTERM and SIGHUP are forwarded to the program, each time they arrive. SIGHUP is forwarded as SIGTERM. The
    program has its own session, which signals of the terminal do not reach. The session is killed if it still runs
    KILL_AFTER_SECONDS after a second signal.
    """
    signal_times: list[float] = []
    process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)

    def forward_signal(number: int, _: FrameType | None) -> None:
        signal_times.append(time.monotonic())
        process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    # An ignored signal stays ignored: nohup ignores SIGHUP.
    numbers = [
        signal_number
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signal_number) != signal.SIG_IGN
    ]
    previous_handlers = {number: signal.signal(number, forward_signal) for number in numbers}
    try:
        while True:
            try:
                return process.wait(timeout=0.5), bool(signal_times)
            except subprocess.TimeoutExpired:
                second_signal_at = next(
                    (
                        received_at
                        for received_at in signal_times
                        if received_at > signal_times[0] + DUPLICATE_SIGNAL_SECONDS
                    ),
                    None,
                )
                if second_signal_at is not None and time.monotonic() > second_signal_at + KILL_AFTER_SECONDS:
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def worker_environment(recipe: Recipe, threads: int) -> dict[str, str]:
    """Return the environment of the processes that compute.

    Libraries are quiet, threads are limited, and a local base needs no hub. The processes end with this one
    (`distributed.launcher.die_with_parent`).
    """
    accelerate = recipe.accelerate
    defaults = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONWARNINGS": "ignore",
        **QUIET_ENV,
    }
    defaults |= {} if accelerate.use_cpu else GPU_ALLOCATOR_ENV
    # On a CPU training uses its own autocast (train/device/precision.py).
    mixed_precision = "no" if accelerate.use_cpu else accelerate.mixed_precision
    overrides = {"ACCELERATE_MIXED_PRECISION": mixed_precision, PARENT_PID_ENV: str(os.getpid())}
    if accelerate.use_cpu:
        overrides["ACCELERATE_USE_CPU"] = "true"
    elif accelerate.num_processes == 1 and accelerate.distributed_type != "FSDP":
        # Without this Trainer would use all visible GPUs through nn.DataParallel.
        overrides["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # A local base needs no hub. Without this a machine without network would wait for time-outs.
    if Path(recipe.model.base).is_dir():
        overrides["HF_HUB_OFFLINE"] = "1"
    # A caller with a running W&B service passes it on. That service may end before this run does.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {**defaults, **inherited, **overrides}


def _finish(finished_run: Run, keep_latest: bool) -> int:
    """Print the summary and make the run the latest one. With `keep_latest` print its folder instead.

    A stage that trains several runs reads that folder (compare/curve).
    """
    if keep_latest:
        print(finished_run.folder)
        return cli.OK
    run.set_latest(finished_run)
    for line in summary_lines(finished_run):
        print(line)
    return cli.OK


def summary_lines(finished_run: Run) -> list[str]:
    """Return the summary of a finished training: its scores, those of the untuned base, and the adapter folder."""
    recipe = finished_run.recipe()
    kind, shots = recipe.task.task_name, recipe.train.shots
    examples_note = f", each prompt with {shots} similar train rows" if shots else ""
    scores: dict[str, Any] = finished_run.stage("train").metrics["validation"]
    tuned, base = scores["tuned"], scores["base"]
    # Slices with the values true and false, such as the vendors that the train rows do not contain.
    scores_by_slice = {name: values["true"] for name, values in tuned.get("slices", {}).items() if "true" in values}
    return [
        f"adapter   {os.path.relpath(finished_run.folder / 'adapter')}",
        f"tuned     {format_metrics(select_metrics(kind, tuned))}  ({tuned['n']} validation rows{examples_note})",
        *(
            f"          {format_metrics(select_metrics(kind, slice_scores))}  ({slice_scores['n']} of them: {name})"
            for name, slice_scores in scores_by_slice.items()
        ),
        *(
            f"          {format_metrics(select_metrics(kind, scores[name]))}  (the same rows, without examples)"
            for name in scores.keys() & {WITHOUT_EXAMPLES}
        ),
        f"untuned   {format_metrics(select_metrics(kind, base))}  (the same base before training)",
    ]
