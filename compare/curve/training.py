"""Trainings of a learning curve, as processes: `python -m train ... train.max_train_rows=648 --keep-latest`.

Training finds a finished run by its digest, and goes on with an unfinished one. So a repeated curve trains only what is
missing. The prepared data do not depend on `train.max_train_rows`; the base and the untuned base's answers are kept on
disk. `runs/<recipe>/latest` does not change.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from insource.config import cli
from insource.config.errors import StageError
from insource.system.child_processes import make_parent_death_preexec


def prepare_data(arguments: argparse.Namespace) -> Path:
    """Prepare the data of the recipe and return their folder. Exit with the code of data preparation if it fails."""
    return _run_stage(cli.stage_argv("data_prep", arguments, "--no-heading"))


def train_subset(arguments: argparse.Namespace, train_rows: int | None) -> Path:
    """Train on `train_rows` rows, None for all rows, and return the run's folder.

    Exit with the code of training if it fails or is interrupted.
    """
    settings = [] if train_rows is None else [f"train.max_train_rows={train_rows}"]
    return _run_stage(cli.stage_argv("train", arguments, *settings, "--keep-latest"))


def _run_stage(argv: Sequence[str]) -> Path:
    """Run a stage and return the folder that it prints. It ends with this process, however that ends.

    The stage handles Ctrl-C itself, and saves a checkpoint before it ends.
    """
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, preexec_fn=make_parent_death_preexec(signal.SIGTERM)
    )
    while True:
        try:
            output, _ = process.communicate()
            break
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
    if process.returncode in (cli.INTERRUPTED, -signal.SIGINT):
        sys.exit(cli.INTERRUPTED)
    if process.returncode:
        print(
            f"curve     {argv[2]} ended with exit code {process.returncode}; finished sizes are kept", file=sys.stderr
        )
        sys.exit(process.returncode if process.returncode > 0 else cli.FAILED)
    folder = output.strip().rpartition("\n")[2]
    if not folder or not Path(folder).is_dir():
        raise StageError(f"{argv[2]} printed {output[-200:]!r}, which is not a folder", code="INS-T017")
    return Path(folder)
