"""Run `python -m deploy RECIPE`: promote the adapter of a run, or restore an earlier version with `--rollback`."""

import argparse
import sys
from pathlib import Path

from deploy import gates, registry, routing
from insource.config import cli
from insource.config.errors import GateError
from insource.config.load import describe_precedence, load
from insource.tracking import folder_ownership, run, wandb_logging
from insource.tracking.prompt_spec import PROMPT_FILE, PromptSpec
from insource.tracking.run import Run


def main() -> int:
    """Parse the command line and deploy or roll back. Return the exit code."""
    parser = cli.build_parser("deploy", "Promote a trained adapter to the deployed version, or roll back.")
    cli.add_run_option(parser)
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    parser.add_argument("--rollback", action="store_true", help="make the version before the current one current")
    parser.add_argument("--to", help="with --rollback: this version")
    cli.add_flag(parser, "force", "deploy although a check failed; recorded")
    arguments = parser.parse_intermixed_args()
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    root, runs = registry.registry_root(arguments.registry), run.runs_folder(arguments.runs)
    if arguments.rollback:
        return roll_back(root / folder_ownership.resolve_name(loaded, root).name, arguments)
    training_run = run.find(runs / folder_ownership.resolve_name(loaded, runs).name, arguments.run)
    resolve_folder = folder_ownership.resolve_name if arguments.dry_run else folder_ownership.claim_folder
    return promote(root / resolve_folder(loaded, root).name, training_run, arguments)


def promote(registry_dir: Path, training_run: Run, arguments: argparse.Namespace) -> int:
    """Deploy the adapter of a run if its checks pass or are overridden. Return the exit code.

    Raise RecipeError if the run was trained with examples in its prompts, which no check overrides.
    """
    recipe, previous = training_run.recipe(), registry.current_version(registry_dir)
    if (training_run.folder / "adapter" / PROMPT_FILE).is_file():
        PromptSpec.read(training_run.folder / "adapter").check_without_examples(training_run.id)
    failures = gates.find_failures(training_run, recipe)
    for failure in failures:
        print(f"check     {failure}", file=sys.stderr)
    if failures and not arguments.force:
        raise GateError(
            f"not deployed, because {len(failures)} of the checks above failed; FORCE=1 deploys anyway, and the "
            "history records that",
            code="INS-G009",
        )
    if arguments.dry_run:
        print(f"{previous} -> {registry.compute_version(training_run.folder / 'adapter')} (run {training_run.id})")
        return cli.OK
    routing_record = routing.record_routing(registry_dir, training_run)
    if routing_record["why_none"]:
        print(f"routing   the gateway keeps every request local: {routing_record['why_none']}", file=sys.stderr)
    version = registry.promote(registry_dir, training_run, failures, routing_record)
    run.start_stage(training_run, "deploy", {})
    run.end_stage(
        training_run, "deploy", "done", "forced" if failures else "done", version=version, overridden=failures
    )
    wandb_logging.set_production_alias(training_run, recipe)
    note = f", {previous} before" if previous and previous != version else ""
    print(
        f"deployed  {registry_dir.name}: version {version} of run {training_run.id}{note}; a running gateway "
        "changes over by itself"
    )
    return cli.OK


def roll_back(registry_dir: Path, arguments: argparse.Namespace) -> int:
    """Deploy an earlier version again. Return the exit code."""
    if arguments.dry_run:
        current = registry.current_version(registry_dir)
        print(f"{current} -> {arguments.to or (current and registry.previous_version(registry_dir, current))}")
        return cli.OK
    old, new = registry.roll_back(registry_dir, arguments.to)
    print(f"deployed  {registry_dir.name}: version {new} again, {old} before; a running gateway changes over by itself")
    return cli.OK


if __name__ == "__main__":
    cli.run_cli(main)
