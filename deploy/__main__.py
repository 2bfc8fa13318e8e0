"""`python -m deploy RECIPE`: makes the adapter of a run the deployed one; `--rollback` goes back to the one before."""

import argparse
import os
import sys
from pathlib import Path

from deploy import gates, registry, routing
from insource.config import cli
from insource.config.load import describe_precedence, load
from insource.tracking import folder_ownership, run, wandb_logging
from insource.tracking.run import Run


def main() -> int:
    parser = cli.build_parser("deploy", "Promote a trained adapter to the deployed version, or roll back.")
    cli.add_run_option(parser)
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    parser.add_argument("--rollback", action="store_true", help="make the version before the current one current")
    parser.add_argument("--to", help="with --rollback: this version")
    forced = os.environ.get("FORCE", "") not in ("", "0")
    parser.add_argument("--force", action="store_true", default=forced, help="deploy though a gate says no; recorded")
    arguments = parser.parse_intermixed_args()
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    deployed, runs = registry.registry_root(arguments.registry), run.runs_folder(arguments.runs)
    if arguments.rollback:
        return roll_back(deployed / folder_ownership.resolve_name(loaded, deployed).name, arguments)
    here = run.find(runs / folder_ownership.resolve_name(loaded, runs).name, arguments.run)
    name = folder_ownership.resolve_name if arguments.dry_run else folder_ownership.claim_folder
    return promote(deployed / name(loaded, deployed).name, here, arguments)


def promote(place: Path, here: Run, arguments: argparse.Namespace) -> int:
    """Deploys the adapter of a run, if its gates say yes or are forced. Returns the exit code."""
    recipe, before = here.recipe(), registry.current_version(place)
    closed = gates.find_failures(here, recipe)
    for told in closed:
        print(f"gate      {told}", file=sys.stderr)
    if closed and not arguments.force:
        print("gate      not deployed; FORCE=1 deploys all the same, and is recorded", file=sys.stderr)
        return cli.GATE_FAILED
    if arguments.dry_run:
        print(f"{before} -> {registry.compute_version(here.folder / 'adapter')} (run {here.id})")
        return cli.OK
    routed = routing.record_routing(place, here)
    if routed["why_none"]:
        print(f"routing   the gateway keeps every request local: {routed['why_none']}", file=sys.stderr)
    version = registry.promote(place, here, closed, routed)
    run.start_stage(here, "deploy", {})
    run.end_stage(here, "deploy", "done", "forced" if closed else "done", version=version, overridden=closed)
    wandb_logging.set_production_alias(here, recipe)
    was = f", {before} before" if before and before != version else ""
    print(f"deployed  {place.name}: version {version} of run {here.id}{was}; a running gateway changes over by itself")
    return cli.OK


def roll_back(place: Path, arguments: argparse.Namespace) -> int:
    """Deploys an earlier version again. Returns the exit code."""
    if arguments.dry_run:
        here = registry.current_version(place)
        print(f"{here} -> {arguments.to or (here and registry.previous_version(place, here))}")
        return cli.OK
    old, new = registry.roll_back(place, arguments.to)
    print(f"deployed  {place.name}: version {new} again, {old} before; a running gateway changes over by itself")
    return cli.OK


if __name__ == "__main__":
    cli.run_cli(main)
