"""`python -m serve.parity RECIPE`: every form that a run can be served in, and whether it is what was trained.

Each form gets a vLLM of its own, one after the other: the adapter, the merged model, each quantization. Writes
parity.json and parity.md into the run folder. Exit code 3 where the form that the recipe serves is below its floors.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from insource.config import cli
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files
from insource.tracking import run
from serve import server
from serve.parity import check, report_text
from serve.parity.check import ParityProbe, ParityResult
from serve.vllm import launch_plan
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, VllmProcess, free_port

CONCURRENCIES = (1, 64)


@dataclass(frozen=True)
class ParityRun:
    """One form, served and asked."""

    found: ParityResult
    start_seconds: float
    repeated: Sequence[dict[str, Any]]
    """How many answers change when the rows are asked again, at other concurrencies."""


def main() -> int:
    parser = cli.build_parser(
        "serve.parity", "Compare what vLLM answers with what was trained, for every exported form."
    )
    cli.add_run_option(parser)
    arguments = parser.parse_intermixed_args()
    loaded, here = run.load_recipe_and_run(arguments)
    serve, trained = loaded.recipe.serve, here.recipe()
    wanted, *_ = launch_plan.rank_variants(here, trained, serve)
    others = [which for which in launch_plan.available_variants(here, trained) if which != wanted]
    forms = [ServedModel(loaded.name, here, trained, which) for which in [wanted, *others]]
    print(f"parity    {loaded.name}: {', '.join(one.which for one in forms)} of run {here.id}", file=sys.stderr)
    if arguments.dry_run:
        return cli.OK
    with run.lock_run(here):
        return run_all(loaded.name, here, forms, wanted, serve)


def run_all(name: str, here: run.Run, forms: Sequence[ServedModel], wanted: str, serve: Serve) -> int:
    """Measures every form and writes what was found. Returns the exit code."""
    inputs = {
        f"{one.which}/{atomic_files.CHECKSUMS}": atomic_files.sha256(one.folder / atomic_files.CHECKSUMS)
        for one in forms
    }
    run.start_stage(here, "parity", inputs)
    with run.record_stage(here, "parity"):
        measured = [measure_variant(form, serve, whole=form.which == wanted) for form in forms]
    founds = [one.found for one in measured]
    failures = founds[0].failures(serve.parity)
    report = {
        "served": wanted,
        "passed": not failures,
        "failures": failures,
        "start_seconds": {one.found.which: round(one.start_seconds, 1) for one in measured},
        "repeated": [again for one in measured for again in one.repeated],
        "forms": [asdict(found) | {"judged": found.other.judged(serve.parity.score_drop)} for found in founds],
    }
    atomic_files.write_json(here.folder / "parity.json", report)
    text = report_text.parity_markdown(name, report, founds, serve.parity)
    atomic_files.write_text(here.folder / "parity.md", text)
    agreement = {one.which: one.same.agreement for one in founds if one.same}
    figures: dict[str, Any] = {
        "prompt_ids_equal": min(one.prompt_ids_equal for one in founds),
        "label_agreement": agreement,
    }
    outputs = [here.folder / "parity.json", here.folder / "parity.md"]
    reason = "; ".join(failures) or "done"
    figures["form_failures"] = {one.which: one.failures(serve.parity) for one in founds}
    run.end_stage(here, "parity", "failed" if failures else "done", reason, outputs, passed=not failures, **figures)
    print(text)
    for told in failures:
        print(f"gate      {wanted}: {told}", file=sys.stderr)
    return cli.GATE_FAILED if failures else cli.OK


def measure_variant(served: ServedModel, serve: Serve, whole: bool) -> ParityRun:
    """Returns what parity finds of one form, on a vLLM of its own at a free port of this machine.

    The whole is measured of the form that is served: answers under other constraints and none, and again at other
    concurrencies.
    """
    address = Address("127.0.0.1", free_port())
    vllm = VllmProcess(launch_plan.plan_launch([served], serve), address, log_path(served))
    with server.stop_on_exit(vllm):
        seconds = server.start_and_wait(vllm)
        probed = check.load_probe(served, serve.parity.rows, serve)
        ways = check.constraint_modes(probed, serve)
        found = check.run_parity(probed, address, None, ways if whole else ways[:1])
        print(
            f"parity    {served.which}: {report_text.console_lines(served.name, found)[0]}", file=sys.stderr, flush=True
        )
        again = measure_concurrency_variation(probed, address, ways[0]) if whole else []
    return ParityRun(found, seconds, again)


def measure_concurrency_variation(probed: ParityProbe, address: Address, way: Any) -> list[dict[str, Any]]:
    """Returns in how many rows the answer is another than one at a time, asked again at each concurrency."""
    probed = probed.first(check.SECONDARY_ROWS)
    answers = {
        at_once: [
            one.output for one in check.query_rows(probed, check.build_backend(probed, address, None, way, at_once))
        ]
        for at_once in CONCURRENCIES
    }
    alone = answers[CONCURRENCIES[0]]
    return [
        {
            "which": probed.served.which,
            "concurrency": at_once,
            "n": len(alone),
            "differ": sum(a != b for a, b in zip(alone, answers[at_once], strict=True)),
        }
        for at_once in CONCURRENCIES[1:]
    ]


def log_path(served: ServedModel) -> Path:
    """Returns where the log of a form's server goes."""
    return served.run.folder / f"parity-{served.which.replace('/', '-')}.log"


if __name__ == "__main__":
    cli.run_cli(main)
