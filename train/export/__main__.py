"""`python -m train.export RECIPE`: the merged model of a trained run, and its quantizations, each complete or absent.

Called again it writes what is missing or was made of something else, and says what is unchanged.
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
from insource.tracking import run
from insource.tracking.run import Run
from train.export import merge, quantize
from train.launch import QUIET_ENV

# Raised when the same adapter would be exported into something else.
VERSION = 2


def main() -> int:
    parser = cli.build_parser("train.export", "Merge the trained adapter into its base, and quantize the merged model.")
    cli.add_run_option(parser)
    arguments = parser.parse_intermixed_args()
    loaded, here = run.load_recipe_and_run(arguments)
    # What was trained is the run's to say, what becomes of it the recipe's as it is now.
    recipe = here.recipe().model_copy(update={"export": loaded.recipe.export, "serve": loaded.recipe.serve})
    schemes = quantize.list_schemes(recipe)
    if schemes and not recipe.export.merge:
        raise RecipeError("export.merge: quantize takes the merged model; set merge: true, or quantize: none")
    wanted = (["merged"] if recipe.export.merge else []) + [f"quantized/{scheme}" for scheme in schemes]
    print(f"export    {loaded.name}: {', '.join(wanted) or 'nothing'} of run {here.id}", file=sys.stderr)
    if arguments.dry_run:
        return cli.OK
    check_adapter(here)
    # Progress bars of libraries say nothing of what is done here.
    os.environ.update({"TQDM_DISABLE": "1", **QUIET_ENV})
    with run.lock_run(here):
        return write_targets(here, recipe, schemes)


def check_adapter(here: Run) -> None:
    """Raises StageError where the adapter folder is not as training wrote it."""
    folder = here.folder / "adapter"
    told = (
        atomic_files.find_changes(folder)
        if (folder / atomic_files.CHECKSUMS).is_file()
        else [f"{atomic_files.CHECKSUMS} is missing"]
    )
    if told:
        raise StageError(
            f"{folder} is not as training wrote it: {'; '.join(told)}. Copy it again, or train again (FRESH=1)"
        )


@dataclass(frozen=True)
class ExportTarget:
    """A folder of weights, what it is made of, and what writes it."""

    folder: Path
    made_of: dict[str, Any]
    write: Callable[[], Path]


def plan_targets(here: Run, recipe: Recipe, schemes: Sequence[str]) -> list[ExportTarget]:
    """Returns what is to be there in the end, in the order of writing."""
    made_of = {
        "version": VERSION,
        "adapter": atomic_files.sha256(here.folder / "adapter" / atomic_files.CHECKSUMS),
        "base": merge.select_merge_base(here, recipe),
        "max_shard_size": recipe.export.max_shard_size,
    }
    found = []
    if recipe.export.merge:
        found.append(ExportTarget(here.folder / "merged", made_of, partial(merge.write_merged, here, recipe, made_of)))
    for scheme in schemes:
        more = made_of | {"scheme": scheme, "calibration_rows": recipe.export.calibration_rows}
        write = partial(quantize.write_quantized, here, recipe, scheme, more)
        found.append(ExportTarget(here.folder / "quantized" / scheme, more, write))
    return found


def write_targets(here: Run, recipe: Recipe, schemes: Sequence[str]) -> int:
    """Writes what is missing, each form whole, and prints what there is. Returns the exit code."""
    every = plan_targets(here, recipe, schemes)
    todo = [form for form in every if not is_up_to_date(form)]
    for form in every:
        if form not in todo:
            print(f"export    unchanged: {os.path.relpath(form.folder)}", file=sys.stderr)
    if todo or here.stage("export").get("state") != "done":
        run.start_stage(
            here,
            "export",
            {
                f"adapter/{atomic_files.CHECKSUMS}": atomic_files.sha256(
                    here.folder / "adapter" / atomic_files.CHECKSUMS
                )
            },
        )
        with run.record_stage(here, "export"):
            for form in todo:
                began = time.monotonic()
                form.write()
                spent = time.monotonic() - began
                print(f"export    {os.path.relpath(form.folder)} in {spent:.0f} s", file=sys.stderr, flush=True)
        sizes = {str(form.folder.relative_to(here.folder)): weight_bytes(form.folder) for form in every}
        run.end_stage(
            here, "export", "done", "done", [form.folder / atomic_files.CHECKSUMS for form in every], weight_bytes=sizes
        )
    for form in every:
        print(f"{os.path.relpath(form.folder)}  {weight_bytes(form.folder) / 1e6:,.1f} MB")
    return cli.OK


def is_up_to_date(form: ExportTarget) -> bool:
    """Returns whether a folder is whole, and made of what it would be made of now."""
    if not (form.folder / "export.json").is_file() or not (form.folder / atomic_files.CHECKSUMS).is_file():
        return False
    return atomic_files.read_json(form.folder / "export.json") == form.made_of and not atomic_files.find_changes(
        form.folder
    )


def weight_bytes(folder: Path) -> int:
    """Returns the bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


if __name__ == "__main__":
    cli.run_cli(main)
