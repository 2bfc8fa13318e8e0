"""`python -m deploy RECIPE`: makes the adapter of a run the deployed one; `--rollback` goes back to the one before."""

import argparse
import os
import sys
from pathlib import Path

from deploy import gates, registry, routing
from insource.config import cli
from insource.config.load import load, precedence
from insource.tracking import folder_ownership, run, wandb_logging
from insource.tracking.run import Run


def main() -> int:
    parser = cli.parser("deploy", "Promote a trained adapter to the deployed version, or roll back.")
    cli.add_run(parser)
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    parser.add_argument("--rollback", action="store_true", help="make the version before the current one current")
    parser.add_argument("--to", help="with --rollback: this version")
    forced = os.environ.get("FORCE", "") not in ("", "0")
    parser.add_argument("--force", action="store_true", default=forced, help="deploy though a gate says no; recorded")
    arguments = parser.parse_intermixed_args()
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    print("\n".join(precedence(loaded)), file=sys.stderr)
    deployed, runs = registry.folder(arguments.registry), run.runs_folder(arguments.runs)
    if arguments.rollback:
        return roll_back(deployed / folder_ownership.named(loaded, deployed).name, arguments)
    here = run.find(runs / folder_ownership.named(loaded, runs).name, arguments.run)
    name = folder_ownership.named if arguments.dry_run else folder_ownership.claimed
    return promote(deployed / name(loaded, deployed).name, here, arguments)


def promote(place: Path, here: Run, arguments: argparse.Namespace) -> int:
    """Deploys the adapter of a run, if its gates say yes or are forced. Returns the exit code."""
    recipe, before = here.recipe(), registry.current(place)
    closed = gates.closed(here, recipe)
    for told in closed:
        print(f"gate      {told}", file=sys.stderr)
    if closed and not arguments.force:
        print("gate      not deployed; FORCE=1 deploys all the same, and is recorded", file=sys.stderr)
        return cli.GATE
    if arguments.dry_run:
        print(f"{before} -> {registry.version_of(here.folder / 'adapter')} (run {here.id})")
        return cli.DONE
    routed = routing.of_run(place, here)
    if routed["why_none"]:
        print(f"routing   the gateway keeps every request local: {routed['why_none']}", file=sys.stderr)
    version = registry.promote(place, here, closed, routed)
    run.start(here, "deploy", {})
    run.end(here, "deploy", "done", "forced" if closed else "done", version=version, overridden=closed)
    wandb_logging.promoted(here, recipe)
    was = f", {before} before" if before and before != version else ""
    print(f"deployed  {place.name}: version {version} of run {here.id}{was}; a running gateway changes over by itself")
    return cli.DONE


def roll_back(place: Path, arguments: argparse.Namespace) -> int:
    """Deploys an earlier version again. Returns the exit code."""
    if arguments.dry_run:
        here = registry.current(place)
        print(f"{here} -> {arguments.to or (here and registry.before(place, here))}")
        return cli.DONE
    old, new = registry.roll_back(place, arguments.to)
    print(f"deployed  {place.name}: version {new} again, {old} before; a running gateway changes over by itself")
    return cli.DONE


if __name__ == "__main__":
    cli.run(main)
