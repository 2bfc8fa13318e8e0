"""Run `python -m serve.parity RECIPE`: compare every variant of a run with the trained model.

Each variant is served by its own vLLM process, one after the other: the adapter, the merged model, each quantization.
Write parity.json and parity.md into the run folder. The exit code is 3 if the served variant misses a limit of
`serve.parity`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from insource.backends.types import StructuredOutput
from insource.config import cli
from insource.config.errors import GateError
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files
from insource.tracking import run
from serve.parity import check, report_text
from serve.parity.check import ParityProbe, ParityResult
from serve.vllm import launch_plan, lifecycle
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess, free_port

CONCURRENCY = 64


@dataclass(frozen=True)
class ParityRun:
    """Measurements of one served variant."""

    result: ParityResult
    start_seconds: float
    concurrency_variation: dict[str, object] | None
    """How many answers change when the rows are sent concurrently; None if it was not measured."""


def main() -> int:
    """Measure parity of all variants of a run. Return the exit code."""
    parser = cli.build_parser(
        "serve.parity", "Compare what vLLM answers with what was trained, for every exported form."
    )
    cli.add_run_option(parser)
    arguments = parser.parse_intermixed_args()
    loaded, training_run = run.load_recipe_and_run(arguments)
    serve, run_recipe = loaded.recipe.serve, training_run.recipe()
    served_variant, *_ = launch_plan.rank_variants(training_run, run_recipe, serve)
    other_variants = [
        variant for variant in launch_plan.available_variants(training_run, run_recipe) if variant != served_variant
    ]
    served_models = [
        ServedModel(loaded.name, training_run, run_recipe, variant) for variant in [served_variant, *other_variants]
    ]
    print(
        f"parity    {loaded.name}: {', '.join(served.variant for served in served_models)} of run {training_run.id}",
        file=sys.stderr,
    )
    if arguments.dry_run:
        return cli.OK
    with run.lock_run(training_run):
        return run_all(loaded.name, training_run, served_models, served_variant, serve)


def run_all(
    name: str, training_run: run.Run, served_models: Sequence[ServedModel], served_variant: str, serve: Serve
) -> int:
    """Measure every variant and write parity.json and parity.md. Return the exit code."""
    inputs = {
        f"{served.variant}/{atomic_files.CHECKSUMS}": atomic_files.sha256(served.folder / atomic_files.CHECKSUMS)
        for served in served_models
    }
    run.start_stage(training_run, "parity", inputs)
    with run.record_stage(training_run, "parity"):
        parity_runs = [
            measure_variant(served, serve, full=served.variant == served_variant) for served in served_models
        ]
    results = [parity_run.result for parity_run in parity_runs]
    failures = results[0].failures(serve.parity)
    report = {
        "served": served_variant,
        "passed": not failures,
        "failures": failures,
        "start_seconds": {parity_run.result.variant: round(parity_run.start_seconds, 1) for parity_run in parity_runs},
        "repeated": [variation for parity_run in parity_runs if (variation := parity_run.concurrency_variation)],
        "forms": [result.to_json(serve.parity) for result in results],
    }
    atomic_files.write_json(training_run.folder / "parity.json", report)
    text = report_text.parity_markdown(name, report, results, serve.parity)
    atomic_files.write_text(training_run.folder / "parity.md", text)
    agreement = {result.variant: result.same_weights.agreement for result in results if result.same_weights}
    metrics: dict[str, Any] = {
        "prompt_ids_equal": min(result.prompt_ids_equal for result in results),
        "label_agreement": agreement,
    }
    outputs = [training_run.folder / "parity.json", training_run.folder / "parity.md"]
    reason = "; ".join(failures) or "done"
    metrics["form_failures"] = {result.variant: result.failures(serve.parity) for result in results}
    run.end_stage(
        training_run, "parity", "failed" if failures else "done", reason, outputs, passed=not failures, **metrics
    )
    print(text)
    if failures:
        message = f"the served model does not match the trained one: {served_variant}: {'; '.join(failures)}"
        raise GateError(message, code="INS-E007")
    return cli.OK


def measure_variant(served: ServedModel, serve: Serve, full: bool) -> ParityRun:
    """Return the parity of one variant, served by its own vLLM on a free port of this machine.

    For the variant that the recipe serves (`full`) other constraints, no constraint and concurrent requests are
    measured too.
    """
    address = Address("127.0.0.1", free_port())
    log = served.run.folder / f"parity-{served.variant.replace('/', '-')}.log"
    vllm = VllmProcess(launch_plan.plan_launch([served], serve), address, log)
    with lifecycle.stop_on_exit(vllm):
        seconds = lifecycle.start_and_wait(vllm)
        probe = check.load_probe(served, serve.parity.rows, serve)
        modes = check.list_constraint_modes(probe, serve)
        result = check.run_parity(probe, address, None, modes if full else modes[:1])
        print(
            f"parity    {served.variant}: {report_text.console_line(served.name, result)}", file=sys.stderr, flush=True
        )
        variation = measure_concurrency_variation(probe, address, modes[0]) if full else None
    return ParityRun(result, seconds, variation)


def measure_concurrency_variation(probe: ParityProbe, address: Address, mode: StructuredOutput) -> dict[str, object]:
    """Return how many answers to concurrent requests differ from those to sequential requests."""
    probe = probe.head(check.SECONDARY_ROWS)
    sequential, concurrent = (
        check.query_rows(probe, check.build_backend(probe, address, None, mode, concurrency))
        for concurrency in (1, CONCURRENCY)
    )
    n_different = sum(a.output != b.output for a, b in zip(sequential, concurrent, strict=True))
    return {
        "which": probe.served.variant,
        "concurrency": CONCURRENCY,
        "n": len(sequential),
        "differ": n_different,
    }


if __name__ == "__main__":
    cli.run_cli(main)
