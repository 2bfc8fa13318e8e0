"""`python -m train.export RECIPE`: the merged model of a trained run, and its quantizations, each complete or absent.

A further call writes only folders that are missing or out of date, and prints which are unchanged.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.tracking import run
from insource.tracking.run import Run
from train.device.environment import QUIET_ENV
from train.export import merge, quantize

# Increase this number when the same adapter would be exported into something else.
VERSION = 2


def main() -> int:
    parser = cli.build_parser("train.export", "Merge the trained adapter into its base, and quantize the merged model.")
    cli.add_run_option(parser)
    arguments = parser.parse_intermixed_args()
    loaded, trained_run = run.load_recipe_and_run(arguments)
    # Settings of the training come from the run; settings of export and serving come from the current recipe.
    recipe = trained_run.recipe().model_copy(update={"export": loaded.recipe.export, "serve": loaded.recipe.serve})
    schemes = quantize.list_schemes(recipe)
    if schemes and not recipe.export.merge:
        raise RecipeError(
            "export.merge: export.quantize needs the merged model; set merge: true, or quantize: none", code="INS-R006"
        )
    targets = (["merged"] if recipe.export.merge else []) + [f"quantized/{scheme}" for scheme in schemes]
    print(f"export    {loaded.name}: {', '.join(targets) or 'nothing'} of run {trained_run.id}", file=sys.stderr)
    if arguments.dry_run:
        return cli.OK
    check_adapter(trained_run)
    # Progress bars of libraries do not show the progress of this stage.
    os.environ.update({"TQDM_DISABLE": "1", **QUIET_ENV})
    with run.lock_run(trained_run):
        return write_targets(trained_run, recipe, schemes)


def check_adapter(trained_run: Run) -> None:
    """Raise StageError if the files of the adapter folder have changed since training."""
    folder = trained_run.folder / "adapter"
    problems = (
        atomic_files.find_changes(folder)
        if (folder / atomic_files.CHECKSUMS).is_file()
        else [f"{atomic_files.CHECKSUMS} is missing"]
    )
    if problems:
        raise StageError(
            f"{folder} was changed after training: {'; '.join(problems)}. Copy it again, or train again (FRESH=1)",
            code="INS-E014",
        )


@dataclass(frozen=True)
class ExportTarget:
    """A folder of weights to write, its provenance, and the function that writes it."""

    folder: Path
    provenance: dict[str, Any]
    write: Callable[[], Path]


def plan_targets(trained_run: Run, recipe: Recipe, schemes: Sequence[str]) -> list[ExportTarget]:
    """Return the target folders in the order of writing."""
    provenance = {
        "version": VERSION,
        "adapter": atomic_files.sha256(trained_run.folder / "adapter" / atomic_files.CHECKSUMS),
        "base": merge.select_merge_base(trained_run, recipe),
        "max_shard_size": recipe.export.max_shard_size,
    }
    targets = []
    if recipe.export.merge:
        targets.append(
            ExportTarget(
                trained_run.folder / "merged", provenance, partial(merge.write_merged, trained_run, recipe, provenance)
            )
        )
    for scheme in schemes:
        scheme_provenance = provenance | {"scheme": scheme, "calibration_rows": recipe.export.calibration_rows}
        write = partial(quantize.write_quantized, trained_run, recipe, scheme, scheme_provenance)
        targets.append(ExportTarget(trained_run.folder / "quantized" / scheme, scheme_provenance, write))
    return targets


def write_targets(trained_run: Run, recipe: Recipe, schemes: Sequence[str]) -> int:
    """Write the folders that are missing or out of date, each atomically, and print all. Return the exit code."""
    targets = plan_targets(trained_run, recipe, schemes)
    pending = [target for target in targets if not is_up_to_date(target)]
    for target in targets:
        if target not in pending:
            print(f"export    unchanged: {os.path.relpath(target.folder)}", file=sys.stderr)
    if pending or trained_run.stage("export").state != "done":
        run.start_stage(
            trained_run,
            "export",
            {
                f"adapter/{atomic_files.CHECKSUMS}": atomic_files.sha256(
                    trained_run.folder / "adapter" / atomic_files.CHECKSUMS
                )
            },
        )
        with run.record_stage(trained_run, "export"):
            for target in pending:
                started_at = time.monotonic()
                target.write()
                elapsed_seconds = time.monotonic() - started_at
                log_line(f"export    {os.path.relpath(target.folder)} in {elapsed_seconds:.0f} s")
        sizes = {str(target.folder.relative_to(trained_run.folder)): weight_bytes(target.folder) for target in targets}
        run.end_stage(
            trained_run,
            "export",
            "done",
            "done",
            [target.folder / atomic_files.CHECKSUMS for target in targets],
            weight_bytes=sizes,
        )
    for target in targets:
        print(f"{os.path.relpath(target.folder)}  {weight_bytes(target.folder) / 1e6:,.1f} MB")
    return cli.OK


def is_up_to_date(target: ExportTarget) -> bool:
    """Return whether a folder is complete and has the provenance that it would have now."""
    if not (target.folder / "export.json").is_file() or not (target.folder / atomic_files.CHECKSUMS).is_file():
        return False
    return atomic_files.read_json(target.folder / "export.json") == target.provenance and not atomic_files.find_changes(
        target.folder
    )


def weight_bytes(folder: Path) -> int:
    """Return the bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


if __name__ == "__main__":
    cli.run_cli(main)
