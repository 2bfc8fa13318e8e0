"""Training speed against other frameworks: `python -m bench.training`.

It times insource, plain TRL, TRL with bfd packing and LLaMA-Factory, and on a GPU also Unsloth. All use the same model,
adapter, token ids, order, precision and effective batch. It writes bench/results/training.json and prints the table.

    shape       system         examples/s  x TRL   memory   loss, 50th   validation   of the packs' ratio
    banking77   insource       19.6        9.1     1.1 GB   4.7301       4.8120       94% of 9.7
    banking77   trl            2.2         1.0     3.4 GB   4.7301       4.8120

Every system runs in a process of its own, in turns (A B C A B C). The first update of each run warms up and does not
count. The figure is the median of the runs. The fastest setting of TRL on this machine (rows of a forward pass, tokens
of a sequence) is determined first, for each shape. Quality is compared separately, on 50 updates of a small model: one
neutral program evaluates every adapter on held-out rows.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.training import fixtures, table
from bench.training.cases import MODULES, Case, select_cases
from bench.training.runner import BenchConfig, CaseRunner, log
from bench.training.workloads import add_banking77_option, load_workload
from insource.config import cli
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.system import atomic_files

RESULTS = Path(__file__).parent.parent / "results" / "training.json"
HELD_OUT = 64
QUALITY_UPDATES, QUICK_UPDATES = 50, 8


def main() -> int:
    arguments = build_parser().parse_args()
    cases = select_cases(arguments)
    import torch
    from transformers import AutoTokenizer

    on_gpu = torch.cuda.is_available()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, tokenizer = Path(name), AutoTokenizer.from_pretrained(POCKET)
        timed_model = arguments.model or ("tiny" if arguments.quick else "4B" if on_gpu else "27M")
        quality_model = "tiny" if arguments.quick else "small"
        models = {
            model_name: fixtures.save_model(model_name, tokenizer, folder / model_name, on_gpu)
            for model_name in {timed_model, quality_model}
        }
        for saved_name, saved_model in models.items():
            log(f"model     {saved_name}: {saved_model.description}")
        bench = BenchConfig(
            folder=folder,
            tokenizer=tokenizer,
            models=models,
            model=timed_model,
            quality_model=quality_model,
            repeats=0 if arguments.quick else 3,
            updates=QUICK_UPDATES if arguments.quick else QUALITY_UPDATES,
            on_gpu=on_gpu,
            matmul_flops=machine.measure_matmul_flops(on_gpu, cases[0].precision),
        )
        for case in cases:
            started_at = time.monotonic()
            results += measure_case(bench, case, arguments.banking77, results)
            log(f"done      {time.monotonic() - started_at:.0f} s")
            # After every case, so that an interruption loses no complete case.
            if path := arguments.results or (None if arguments.quick else RESULTS):
                write_results(path, results)
    table.print_tables(results)
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description="Time training against its peers.")
    add_banking77_option(parser)
    parser.add_argument("--only", action="append", metavar="SHAPE", help="banking77, labels_150, ...; may be repeated")
    parser.add_argument("--systems", nargs="+", choices=MODULES, help="leave out the others")
    parser.add_argument("--repeats", type=int, help="runs of each system, of which the median counts (3)")
    parser.add_argument("--model", choices=fixtures.MODEL_CONFIGS, help="what is timed (27M; 4B on a GPU)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="bfloat16 where it is multiplied natively")
    parser.add_argument("--full", action="store_true", help="time peers at every batch size (hours on a CPU)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few updates, to see that it runs")
    parser.add_argument("--results", type=Path, help=f"where the JSON goes ({RESULTS.name}; --quick: nowhere)")
    return parser


def write_results(path: Path, results: Sequence[dict[str, object]]) -> None:
    """Write the results; results of other cases in the file are kept."""
    previous = atomic_files.read_json(path) if path.exists() else []
    kept = [result for result in previous if not any(table.is_same_case(result, new) for new in results)]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(path, sorted([*kept, *results], key=table.case_sort_key))


def measure_case(
    bench: BenchConfig, case: Case, banking77: Path, previous: Sequence[dict[str, object]]
) -> list[dict[str, object]]:
    """Return the result of every system on a case; a system that did not run has a reason instead.

    `previous`: the results so far, from which carried rates are taken.
    """
    log(f"case      {case.shape}, batch {case.batch_size}, {case.quantization}")
    speed_rows = case.batch_size * (1 + case.timed_updates)
    rows = max(speed_rows, case.batch_size * bench.updates) if case.quality else speed_rows
    try:
        data = load_workload(case.shape, bench.tokenizer, rows, HELD_OUT, banking77)
    except RecipeError as error:
        log(f"not run   {error}")
        return [table.skipped_result(case, system, str(error).partition(";")[0]) for system in case.systems]
    reference_case = replace(case, batch_size=16)
    carried_results = [
        table.carried_result(case, measured)
        for measured in previous
        if table.is_same_case(measured, table.skipped_result(reference_case, "", ""))
        and measured["system"] in case.carried_systems
    ]
    runner = CaseRunner(bench, case, data)
    runner.run_all([name for name in case.systems if name not in {carried["system"] for carried in carried_results}])
    return table.compare_systems([*carried_results, *runner.rows()], case.systems)


if __name__ == "__main__":
    cli.run_cli(main)
