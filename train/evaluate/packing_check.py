"""First use of shared-prefix packing on a base: the self-check, kept beside the runs, and the fallback if it fails.

runs/.packing_checks/3f2a90c17b5e44d0.json
{"version": 2, "passed": true, "log_probability_difference": 2e-07, "gradient_difference": 3e-06, "dtype": "float32",
 "rows": 8, "prefix_tokens": 223, "pack_tokens": 543, "device": "cpu", "packages": {"torch": "2.13.0", ...}}

The name is the digest of everything that the result depends on: the base with its quantization, the type of matrix
products, the device, the attention, and the versions of libraries. A base that fails is trained row by row.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.recipe import Recipe
from insource.system import atomic_files, environment
from train.device import out_of_memory, precision
from train.distributed import world
from train.loop.losses import log_probabilities
from train.model import dequantize
from train.packing import packing_plan, self_check
from train.packing.attention import FLEX_FALLBACK, disable_unsupported_flex, preferred_implementation
from train.packing.packing_plan import Pack, PackingPlan, TokenizedRow
from train.packing.self_check import PackingDifference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHECKS_FOLDER = ".packing_checks"
# Increase it if the check itself changes.
VERSION = 2
PACKAGES = ("torch", "transformers", "bitsandbytes")

Record = dict[str, Any]


def verify_packing(
    recipe: Recipe,
    runs: Path,
    model: "PreTrainedModel",
    rows: Sequence[TokenizedRow],
    plan: PackingPlan,
    pad_token_id: int,
    on_fallback: Callable[[str], None],
) -> PackingPlan:
    """Return the plan, or one that computes rows separately if this base computes packs differently from rows.

    `runs` is the folder of all runs. The check runs in the main process, once for each base; the other processes wait.
    The model is the base without an adapter, and it is unchanged.
    """
    if plan.mode != "shared_prefix":
        return plan
    pack = self_check.select_check_pack(rows, plan)
    if pack is None:
        return plan
    records: list[Record | None] = [None]
    if world.is_main_process():
        records = [_load_or_check(recipe, runs, model, pack, pad_token_id, on_fallback)]
    if world.world_size() > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(records)
    record = records[0]
    if record is None:
        on_fallback("the self-check of packing ran out of memory: packs are used unchecked on this base")
    if record is None or record["passed"]:
        return plan
    on_fallback(f"train.packing: none, not shared_prefix: {describe_failure(record)}")
    return packing_plan.build_packing_plan(rows, "none", plan.pack_tokens, 1, plan.cost)


def describe_failure(record: Mapping[str, object]) -> str:
    """Return the reason why packs are not used on this base."""
    differences = [
        "not a number" if record[name] is None else f"{record[name]:.1e}"
        for name in ("log_probability_difference", "gradient_difference")
    ]
    return (
        "this base computes a pack differently from its rows (relative differences: log-probabilities "
        f"{differences[0]}, gradients {differences[1]}; rounding in {record['dtype']} explains less), so a layer does "
        "not keep the rows of a pack apart"
    )


def _load_or_check(
    recipe: Recipe,
    runs: Path,
    model: "PreTrainedModel",
    pack: Pack,
    pad_token_id: int,
    on_fallback: Callable[[str], None],
) -> Record | None:
    """Return the record of the check for this base, written if it is missing, or None if memory does not suffice."""
    facts = _describe_inputs(recipe, model)
    path = runs / CHECKS_FOLDER / f"{atomic_files.digest(facts)}.json"
    if path.is_file():
        return dict(atomic_files.read_json(path))
    started_at = time.monotonic()
    difference = _measure(recipe, model, pack, pad_token_id, on_fallback)
    if difference is None:
        return None
    record = {
        **facts,
        "passed": not difference.exceeds(precision.compute_dtype(recipe)),
        "log_probability_difference": _finite(difference.log_probability),
        "gradient_difference": _finite(difference.gradient),
        "rows": len(pack.rows),
        "prefix_tokens": pack.prefix,
        "pack_tokens": pack.tokens,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(path, record)
    if record["passed"]:
        print(
            f"packing   checked on this base in {time.monotonic() - started_at:.1f} s: gradients of {len(pack.rows)} "
            f"packed rows are within {difference.gradient:.0e} of separate rows",
            file=sys.stderr,
            flush=True,
        )
    return record


def _describe_inputs(recipe: Recipe, model: "PreTrainedModel") -> Record:
    """Return everything that the result of the check depends on, as JSON values."""
    versions = environment.read_package_versions()
    return {
        "version": VERSION,
        "base": dequantize.compute_digest(recipe, model),
        "dtype": precision.compute_dtype(recipe),
        "device": _device_name(model.device),
        "attention": preferred_implementation(model.device),
        "packages": {name: versions[name] for name in PACKAGES if name in versions},
    }


def _device_name(device: "torch.device") -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device.type)


def _measure(
    recipe: Recipe, model: "PreTrainedModel", pack: Pack, pad_token_id: int, on_fallback: Callable[[str], None]
) -> PackingDifference | None:
    """Return the difference of a pack from its rows, or None if memory does not suffice.

    If FlexAttention's kernels do not fit the GPU, it is disabled, as training would do.
    """
    while True:
        try:
            return self_check.measure_difference(
                model,
                pack,
                log_probabilities=log_probabilities,
                attention=preferred_implementation(model.device),
                pad_token_id=pad_token_id,
                forward_context=partial(precision.training_autocast, recipe),
                checkpointing=recipe.train.gradient_checkpointing,
            )
        except RuntimeError as error:
            if disable_unsupported_flex(error):
                on_fallback(FLEX_FALLBACK)
                continue
            if not out_of_memory.is_out_of_memory(error):
                raise
        # Outside of the except block, where the failed graph would still be held.
        out_of_memory.release_memory()
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
