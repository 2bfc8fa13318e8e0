"""`python -m deploy RECIPE`: makes the adapter of a run the deployed one; `--rollback` goes back to the one before."""

import os
import sys

from recipes import command
from recipes.load import load


def main() -> int:
    parser = command.parser("deploy", "Promote a trained adapter to the deployed version, or roll back.")
    command.add_run(parser)
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    parser.add_argument("--rollback", action="store_true", help="make the version before the current one current")
    parser.add_argument("--to", help="with --rollback: this version")
    forced = os.environ.get("FORCE", "") not in ("", "0")
    parser.add_argument("--force", action="store_true", default=forced, help="deploy though a gate says no; recorded")
    arguments = parser.parse_intermixed_args()

    from deploy import gates, registry
    from tracking import run, weights_and_biases

    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    place = registry.folder(arguments.registry) / loaded.name
    if arguments.rollback:
        if arguments.dry_run:
            here = registry.current(place)
            print(f"{here} -> {arguments.to or (here and registry.before(place, here))}")
            return command.DONE
        old, new = registry.roll_back(place, arguments.to)
        print(f"deployed  {loaded.name}: version {new} again, {old} before; a running gateway changes over by itself")
        return command.DONE
    here = run.find(run.runs_folder(arguments.runs) / loaded.name, arguments.run)
    closed = gates.closed(here, here.recipe())
    for told in closed:
        print(f"gate      {told}", file=sys.stderr)
    if closed and not arguments.force:
        print("gate      not deployed; FORCE=1 deploys all the same, and is recorded", file=sys.stderr)
        return command.GATE
    if arguments.dry_run:
        print(f"{registry.current(place)} -> {registry.version_of(here.folder / 'adapter')} (run {here.id})")
        return command.DONE
    before = registry.current(place)
    version = registry.promote(place, here, closed)
    run.start(here, "deploy", {})
    run.end(here, "deploy", "done", "forced" if closed else "done", version=version, overridden=closed)
    weights_and_biases.promoted(here, here.recipe())
    was = f", {before} before" if before and before != version else ""
    print(f"deployed  {loaded.name}: version {version} of run {here.id}{was}; a running gateway changes over by itself")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
