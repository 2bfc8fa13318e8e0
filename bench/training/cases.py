"""The cases of the training bench: shape, effective batch, precision and systems."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.training.workloads import LABEL_COUNTS
from insource.config import hardware
from insource.config.errors import RecipeError

MODULES: Mapping[str, str] = {
    "insource": "insource_sft",
    "trl": "trl_sft",
    "trl_bfd": "trl_sft",
    "llama_factory": "llama_factory",
    "unsloth": "unsloth_sft",
}
"""{system: its program in bench/peers/}."""


@dataclass(frozen=True)
class Case:
    """One shape at one effective batch and precision."""

    shape: str
    batch_size: int = 16
    quantization: str = "none"
    precision: str = "float32"
    """Precision of matrix products in all systems: float32, or bfloat16 if GPU or processor have it natively."""
    systems: tuple[str, ...] = tuple(MODULES)
    timed_updates: int = 3
    """Timed updates, after one that warms up."""
    repeats: int | None = None
    """Runs of each system, if not the default number."""
    quality: bool = True
    """Whether the small model is trained too, to compare losses."""
    carried_systems: tuple[str, ...] = ()
    """Systems whose rate at a batch of 16 is used: they compute a larger batch as more of the same forward passes."""


CASES = (
    Case("banking77", timed_updates=2),
    Case("no_prefix", timed_updates=4),
    Case("classifier", timed_updates=2, repeats=2),
    Case("extractor", timed_updates=1, repeats=2),
    Case("banking77", quantization="nf4", timed_updates=1, repeats=2),
    Case(
        "banking77",
        batch_size=64,
        systems=("insource", "trl", "llama_factory"),
        timed_updates=1,
        repeats=1,
        quality=False,
        carried_systems=("llama_factory",),
    ),
    *(
        Case(
            f"labels_{labels}",
            batch_size=batch,
            systems=("insource", "trl"),
            timed_updates=1,
            repeats=2 if batch > 16 else 1,
            quality=False,
            carried_systems=("trl",) if batch > 16 else (),
        )
        for labels in LABEL_COUNTS
        for batch in (16, 64, 256)
    ),
)
QUICK = (Case("classifier"),)


def select_cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the requested cases. Raise RecipeError for an unknown shape."""
    names = dict.fromkeys(case.shape for case in CASES)
    if unknown := [name for name in arguments.only or () if name not in names]:
        raise RecipeError(f"--only {unknown[0]}: there is no such shape; allowed: {', '.join(names)}", code="INS-X010")
    cases = list(CASES)
    if arguments.only:
        cases = [case for case in cases if case.shape in arguments.only]
    if arguments.quick:
        cases = [replace(case, quality=True) for case in cases if case.batch_size == 16] if arguments.only else [*QUICK]
    if arguments.systems:
        systems_by_case = [tuple(system for system in case.systems if system in arguments.systems) for case in cases]
        cases = [
            replace(case, systems=systems) for case, systems in zip(cases, systems_by_case, strict=True) if systems
        ]
    precision = arguments.precision or (
        "bfloat16" if hardware.count_gpus() or hardware.cpu_has_bfloat16() else "float32"
    )
    cases = [replace(case, precision=precision) for case in cases]
    if arguments.repeats:
        cases = [replace(case, repeats=arguments.repeats) for case in cases]
    return [replace(case, carried_systems=()) for case in cases] if arguments.full else cases
