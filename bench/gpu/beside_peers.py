"""Part 6 of the GPU bench: insource, TRL and Unsloth on the same model, adapter, token ids and order.

TRL pads rows as its SFTTrainer does by default, with a fixed number of rows a forward pass; bench/training tries
several. Unsloth runs only where its environment exists (bench/training/environments.py); this bench installs nothing.
"""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine
from bench.gpu import random_models, workload
from bench.gpu.random_models import RandomModel
from bench.gpu.spec import CaseLog, Measurement, PartSpec
from bench.peers.spec import ADAPTER_DIR, PeerSpec
from bench.training import environments, fixtures, table
from bench.training.cases import MODULES
from bench.training.workloads import Workload
from insource.config.errors import StageError
from insource.system.venvs import STAMP_FILE

SYSTEMS = ("insource", "trl", "unsloth")
LEARNING_RATE = 1e-3


def run(spec: PartSpec, log: CaseLog) -> None:
    """Train with each system in turn. Raise StageError if one of them fails; the others still run."""
    tokenizer, folder = workload.load_tokenizer(), Path(spec.folder)
    batch_size, updates = (4, 2) if spec.small else (16, 3)
    data = workload.load_rows(spec, tokenizer, batch_size * updates)
    fixtures.save_rows(folder / "rows.jsonl", data.examples)
    saved: list[RandomModel] = []

    def save() -> Measurement:
        saved.append(random_models.save_model(spec, tokenizer, folder / "model"))
        return Measurement(details={"model": saved[0].description})

    log.run("model on disk", save)
    failures: list[str] = []
    for system in SYSTEMS:
        python, reason = find_python(system, spec.on_gpu)
        if python is None:
            log.skip(system, reason)
            continue
        peer_spec = make_peer_spec(spec, system, batch_size, updates)
        log.run(system, partial(train, python, peer_spec, saved[0], data, failures), min_seconds=10)
    if failures:
        raise StageError("; ".join(failures), code="INS-X010")


def find_python(system: str, on_gpu: bool) -> tuple[Path | None, str]:
    """Return the Python with a system, or None and the reason why it cannot run."""
    if system != "unsloth":
        return Path(sys.executable), ""
    if not on_gpu:
        return None, "Unsloth needs a GPU"
    if importlib.util.find_spec("unsloth"):
        return Path(sys.executable), ""
    folder = environments.PEERS_DIR / "unsloth"
    if (folder / STAMP_FILE).exists():
        return folder / "bin" / "python", ""
    return None, 'Unsloth is not installed: `make bench ARGS="--systems unsloth"` installs it into bench/.peers'


def make_peer_spec(spec: PartSpec, system: str, batch_size: int, updates: int) -> PeerSpec:
    """Return the spec of a system's process."""
    folder = Path(spec.folder)
    return PeerSpec(
        system=system,
        folder=str(folder / system),
        model=str(folder / "model"),
        adapter=str(folder / "model" / ADAPTER_DIR),
        rows=str(folder / "rows.jsonl"),
        quantization="nf4",
        batch_size=batch_size,
        updates=updates,
        learning_rate=LEARNING_RATE,
        on_gpu=spec.on_gpu,
        bfloat16=spec.dtype == "bfloat16",
        micro_batch=batch_size,
    )


def train(python: Path, peer_spec: PeerSpec, model: RandomModel, data: Workload, failures: list[str]) -> Measurement:
    """Return the training rate of a system without the first update; a failure is added to `failures`."""
    try:
        result: dict[str, Any] = machine.run_peer(python, f"bench.peers.{MODULES[peer_spec.system]}", peer_spec)
    except StageError as error:
        failures.append(f"{peer_spec.system}: {error}")
        return Measurement(details={"error": str(error)})
    seconds, tokens = sum(result["raw_seconds"][1:]), sum(result["computed_tokens"][1:])
    names = ("version", "losses", "raw_seconds", "computed_tokens", "token_ids_sha256", "token_ratio")
    return Measurement(
        table.examples_per_second(result, data.row_tokens),
        "examples/s",
        4 * model.linear_parameters * tokens / seconds,
        peak_memory_bytes=result["peak_memory_bytes"],
        details={
            "model": model.description,
            "micro_batch": peer_spec.micro_batch,
            **{name: result[name] for name in names if name in result},
        },
    )
