"""The runs of one case, each in a process of its own.

A system's fastest setting is determined, then the system is timed in turn with the others. It also trains the small
model whose loss is compared.
"""

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.peers.spec import ADAPTER_DIR, PeerSpec
from bench.training import environments, fixtures, table
from bench.training.cases import MODULES, Case
from bench.training.workloads import Workload, count_tokens
from insource.config.errors import StageError
from insource.system.console_log import log_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNING_RATE = 1e-3
# Of one padded forward pass: a larger one is no faster, and exceeds the memory of a machine with two cores.
MAX_CPU_TOKENS = 14_000

Result = dict[str, Any]


@dataclass(frozen=True)
class BenchConfig:
    """Settings of the complete call."""

    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    models: Mapping[str, fixtures.SavedModel]
    """{name: model}; each model is in the folder of its name."""
    model: str
    quality_model: str
    repeats: int
    """Timed runs of each system; 0 takes the time of the quality run."""
    updates: int
    """Updates of a quality run."""
    on_gpu: bool
    matmul_flops: float
    """Operations a second that matrix products reach on this machine."""
    tuning_results: dict[tuple[str, str, str], dict[str, float]] = field(default_factory=dict)
    """{(shape, quantization, system): {candidate: seconds a token}} of earlier cases."""


class CaseRunner:
    """The runs of one case: tuning results, figures, and reasons of failures."""

    def __init__(self, bench: BenchConfig, case: Case, data: Workload) -> None:
        self.bench, self.case, self.data = bench, case, data
        self.folder = bench.folder / f"{case.shape}-{case.batch_size}-{case.quantization}-{case.precision}"
        self.folder.mkdir(parents=True)
        fixtures.save_rows(self.folder / "speed.jsonl", data.examples[: case.batch_size * (1 + case.timed_updates)])
        fixtures.save_rows(self.folder / "quality.jsonl", data.examples[: case.batch_size * bench.updates])
        self.pythons: dict[str, Path] = {}
        self.tuning_results: dict[str, dict[str, float]] = {}
        self.speed_results: dict[str, list[Result]] = {}
        self.quality_results: dict[str, Result] = {}
        self.failed: dict[str, str] = {}

    def run_all(self, systems: Sequence[str]) -> None:
        """Run the systems in turns; a system that fails is skipped from then on."""
        for system in systems:
            self._run_or_skip(system, self._prepare)
        for number in range((self.bench.repeats and self.case.repeats) or self.bench.repeats):
            for system in systems:
                self._run_or_skip(system, partial(self._run_timed, number=number))
        if self.case.quality:
            for system in systems:
                self._run_or_skip(system, self._run_quality)
            self._evaluate()

    def rows(self) -> list[Result]:
        """Return a row of results/training.json for every system."""
        results = [table.skipped_result(self.case, system, reason) for system, reason in self.failed.items()]
        return results + [self._result_row(system) for system in self.speed_results if system not in self.failed]

    def _run_or_skip(self, system: str, step: Callable[[str], None]) -> None:
        if system in self.failed:
            return
        try:
            step(system)
        except StageError as error:
            self.failed[system] = str(error)
            log(f"not run   {system}: {error}")

    def _prepare(self, system: str) -> None:
        """Make the system's environment and determine its fastest setting. Raise StageError if it cannot run."""
        if system == "unsloth" and not self.bench.on_gpu:
            raise StageError("Unsloth needs a GPU", code="INS-X010")
        has_environment = system in environments.ENVIRONMENTS
        self.pythons[system] = (
            environments.peer_python(system, self.bench.on_gpu) if has_environment else Path(sys.executable)
        )
        cached = self.bench.tuning_results.get((self.case.shape, self.case.quantization, system))
        if cached:
            self.tuning_results[system] = cached
        elif self.bench.repeats and (candidates := self._tuning_candidates(system)):
            result = self._run_peer(self._make_spec(system, "speed", "try", candidates))
            self.tuning_results[system] = result["seconds_a_token"]
            self.bench.tuning_results[self.case.shape, self.case.quantization, system] = self.tuning_results[system]

    def _tuning_candidates(self, system: str) -> tuple[int, ...]:
        """Return the settings to try: rows of a forward pass, or tokens of a sequence."""
        max_tokens = self._max_row_tokens
        if system == "trl":
            max_rows = (
                self.case.batch_size if self.bench.on_gpu else min(self.case.batch_size, MAX_CPU_TOKENS // max_tokens)
            )
            return tuple(rows for rows in (1, 4, 16) if rows <= max_rows)
        if system == "trl_bfd":
            return tuple(sorted({max_tokens, max(max_tokens, 1024), max(max_tokens, 2048)}))
        return ()

    @property
    def _max_row_tokens(self) -> int:
        return max(map(count_tokens, self.data.examples))

    def _run_timed(self, system: str, number: int) -> None:
        result = self._run_peer(self._make_spec(system, "speed", str(number)))
        self.speed_results.setdefault(system, []).append(result)
        log(f"timed     {system:<14} {table.examples_per_second(result, self.data.row_tokens):.2f} examples/s")

    def _run_quality(self, system: str) -> None:
        self.quality_results[system] = self._run_peer(self._make_spec(system, "quality", "quality"))
        if not self.bench.repeats:
            self.speed_results[system] = [self.quality_results[system]]
        log(f"learnt    {system:<14} last loss {self.quality_results[system]['losses'][-1]:.4f}")

    def _evaluate(self) -> None:
        model = self.bench.folder / self.bench.quality_model
        adapters = {name: self.folder / name / "quality" / ADAPTER_DIR for name in self.quality_results}
        losses = fixtures.evaluate_adapters(
            model, adapters, self.data.held_out, self.case.quantization, self.bench.on_gpu
        )
        for system, loss in losses.items():
            self.quality_results[system]["validation_loss"] = loss

    def _run_peer(self, spec: PeerSpec) -> Result:
        return machine.run_peer(self.pythons[spec.system], f"bench.peers.{MODULES[spec.system]}", spec)

    def _make_spec(self, system: str, rows: str, name: str, candidates: tuple[int, ...] = ()) -> PeerSpec:
        """Return the spec of one process; `rows` is speed or quality."""
        model = self.bench.folder / (self.bench.quality_model if rows == "quality" else self.bench.model)
        return PeerSpec(
            system=system,
            folder=str(self.folder / system / name),
            model=str(model),
            adapter=str(model / ADAPTER_DIR),
            rows=str(self.folder / f"{rows}.jsonl"),
            quantization=self.case.quantization,
            batch_size=self.case.batch_size,
            updates=self.bench.updates if rows == "quality" else 1 + self.case.timed_updates,
            learning_rate=LEARNING_RATE,
            on_gpu=self.bench.on_gpu,
            bfloat16=self.case.precision == "bfloat16",
            # LLaMA-Factory and Unsloth pad like TRL, on the same engine.
            micro_batch=1 if system == "trl_bfd" else min(self._best_candidate("trl", 4), self.case.batch_size),
            pack_tokens=self._best_candidate("trl_bfd", self._max_row_tokens) if system == "trl_bfd" else 0,
            candidates=candidates,
        )

    def _best_candidate(self, system: str, default: int) -> int:
        costs = self.tuning_results.get(system)
        return int(min(costs, key=lambda candidate: costs[candidate])) if costs else default

    def _matmul_share(self, result: Result) -> float:
        """Return the fraction of the machine's matrix product rate that training reached.

        It counts 2 operations a weight and token forward and 2 backward: frozen weights have no gradient of their own.
        Attention is not counted.
        """
        weights = self.bench.models[self.bench.model].linear_parameters
        flops = 4 * weights * sum(result["computed_tokens"][1:]) / sum(result["raw_seconds"][1:])
        return float(flops / self.bench.matmul_flops)

    def _result_row(self, system: str) -> Result:
        runs, quality = self.speed_results[system], self.quality_results.get(system, {})
        spec = self._make_spec(system, "speed", "0")
        return {
            "shape": self.case.shape,
            "batch_size": self.case.batch_size,
            "quantization": self.case.quantization,
            "precision": self.case.precision,
            "product_dtype": runs[0]["product_dtype"],
            "system": system,
            "version": runs[0]["version"],
            "command": f"python -m bench.peers.{MODULES[system]} spec.json",
            "settings": {"micro_batch": spec.micro_batch, "pack_tokens": spec.pack_tokens},
            "seconds_a_token_tried": self.tuning_results.get(system),
            "model": self.bench.models[self.bench.model].description,
            "prefix_tokens": self.data.prefix_tokens,
            "row_tokens": round(self.data.row_tokens, 1),
            "token_ids_sha256": runs[0]["token_ids_sha256"],
            "updates_sha256": runs[0]["updates_sha256"],
            "examples_per_second": statistics.median(
                table.examples_per_second(run, self.data.row_tokens) for run in runs
            ),
            "raw_seconds": [run["raw_seconds"] for run in runs],
            "update_rows": runs[0]["update_rows"],
            "computed_tokens": runs[0]["computed_tokens"],
            "matmul_share": statistics.median(self._matmul_share(run) for run in runs),
            "peak_memory_bytes": statistics.median(run["peak_memory_bytes"] for run in runs),
            **{name: runs[0][name] for name in ("token_ratio", "packs_an_update", "longest_pack") if name in runs[0]},
            "quality_model": self.bench.models[self.bench.quality_model].description if quality else None,
            "quality_token_ids_sha256": quality.get("token_ids_sha256"),
            "quality_updates_sha256": quality.get("updates_sha256"),
            "losses": quality.get("losses"),
            "final_loss": quality["losses"][-1] if quality else None,
            "validation_loss": quality.get("validation_loss"),
            "hardware": machine.describe_hardware(self.bench.on_gpu),
            "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            "date": machine.utc_date(),
        }


def log(line: str) -> None:
    """Print a line of progress to stderr."""
    log_line(line)
