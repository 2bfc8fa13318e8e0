"""First use of shared-prefix packing on a base: the self-check, kept beside the runs, and the fallback if it fails.

runs/.packing_checks/3f2a90c17b5e44d0.json
{"version": 3, "passed": true, "log_probability_difference": 2e-07, "gradient_difference": 3e-06, "dtype": "float32",
 "rows": 8, "prefix_tokens": 223, "pack_tokens": 543, "device": "cpu", "attention": "shared_prefix",
 "packages": {"torch": "2.13.0", ...}}

The name is the digest of everything that the result depends on: the base with its quantization, the type of matrix
products, the device, the attention, and the versions of libraries. A base that fails is trained row by row. If
FlexAttention cannot be compiled, nothing is kept: the reason may be a missing compiler, which somebody may install.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.recipe import Recipe
from insource.system import atomic_files, environment
from insource.system.console_log import log_line
from train.device import out_of_memory, precision
from train.distributed import world
from train.loop import losses
from train.model import dequantize
from train.packing import packing_plan, self_check
from train.packing.attention import disable_flex, disable_unsupported_flex, preferred_implementation
from train.packing.attention_blocks import FLEX
from train.packing.collate import MIN_FLEX_TOKENS
from train.packing.packing_plan import Pack, PackingPlan, TokenizedRow
from train.packing.self_check import LogProbabilities, PackingDifference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHECKS_FOLDER = ".packing_checks"
# Increase it if the check itself changes.
VERSION = 3
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
    log_probabilities: LogProbabilities = losses.log_probabilities,
) -> PackingPlan:
    """Return the plan, or one that computes rows separately if this base computes packs differently from rows.

    `runs` is the folder of all runs. The check runs in the main process, once for each base; the other processes wait.
    The model is the base without an adapter, or with a new one, and it is unchanged. `log_probabilities` are those of
    its head.
    """
    if plan.mode != "shared_prefix":
        return plan
    pack = _select_pack(recipe, model, rows, plan)
    if pack is None:
        return plan
    outcomes: list[Any] = [None]
    if world.is_main_process():
        outcomes = [_load_or_check(recipe, runs, model, pack, pad_token_id, on_fallback, log_probabilities)]
    if world.world_size() > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(outcomes)
    outcome: _Outcome = outcomes[0]
    if outcome.flex_failed:
        disable_flex("seen in the main process")
    record = outcome.record
    if record is None:
        on_fallback("the self-check of packing ran out of memory: packs are used unchecked on this base")
    if record is None or record["passed"]:
        return plan
    on_fallback(f"train.packing: none, not shared_prefix: {describe_failure(record)}")
    return packing_plan.build_packing_plan(rows, "none", plan.pack_tokens, 1, plan.cost)


@dataclass(frozen=True)
class _Outcome:
    """The result of the check in the main process, for all processes."""

    record: Record | None
    """None if memory did not suffice."""
    flex_failed: bool = False
    """Whether FlexAttention was disabled because it could not be compiled."""


def _select_pack(
    recipe: Recipe, model: "PreTrainedModel", rows: Sequence[TokenizedRow], plan: PackingPlan
) -> Pack | None:
    """Return the pack to check, None if no two rows make one.

    It is long enough for FlexAttention if training uses that for packs of an update.
    """
    if preferred_implementation(model.device, model.config) == FLEX:
        pack = self_check.select_check_pack(rows, plan, self_check.FLEX_LIMITS, recipe.train.batch_size)
        if pack is not None and pack.tokens >= MIN_FLEX_TOKENS:
            return pack
    return self_check.select_check_pack(rows, plan)


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
    log_probabilities: LogProbabilities,
) -> _Outcome:
    """Return the outcome of the check for this base. Its record is written if it is missing."""
    facts = _describe_inputs(recipe, model, pack)
    path = runs / CHECKS_FOLDER / f"{atomic_files.digest(facts)}.json"
    if path.is_file():
        return _Outcome(dict(atomic_files.read_json(path)))
    started_at = time.monotonic()
    difference, flex_failed = _measure(recipe, model, pack, pad_token_id, on_fallback, log_probabilities)
    if difference is None:
        return _Outcome(None, flex_failed)
    record = {
        **facts,
        "passed": not difference.exceeds(precision.compute_dtype(recipe)),
        "log_probability_difference": _finite(difference.log_probability),
        "gradient_difference": _finite(difference.gradient),
        "rows": len(pack.rows),
        "prefix_tokens": pack.prefix,
        "pack_tokens": pack.tokens,
    }
    if not flex_failed:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(path, record)
    if record["passed"]:
        log_line(
            f"packing   checked on this base in {time.monotonic() - started_at:.1f} s: gradients of {len(pack.rows)} "
            f"packed rows are within {difference.gradient:.0e} of separate rows"
        )
    return _Outcome(record, flex_failed)


def _describe_inputs(recipe: Recipe, model: "PreTrainedModel", pack: Pack) -> Record:
    """Return everything that the result of the check depends on, as JSON values."""
    versions, attention = environment.read_package_versions(), preferred_implementation(model.device, model.config)
    return {
        "version": VERSION,
        "base": dequantize.compute_digest(recipe, model),
        "dtype": precision.compute_dtype(recipe),
        "device": _device_name(model.device),
        # A short pack is computed by a dense mask, even if long ones are computed by FlexAttention.
        "attention": "sdpa" if attention == FLEX and pack.tokens < MIN_FLEX_TOKENS else attention,
        "packages": {name: versions[name] for name in PACKAGES if name in versions},
    }


def _device_name(device: "torch.device") -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device.type)


def _measure(
    recipe: Recipe,
    model: "PreTrainedModel",
    pack: Pack,
    pad_token_id: int,
    on_fallback: Callable[[str], None],
    log_probabilities: LogProbabilities,
) -> tuple[PackingDifference | None, bool]:
    """Return the difference of a pack from its rows, None if memory does not suffice; and whether FlexAttention failed.

    If FlexAttention cannot be compiled, it is disabled, as training would do.
    """
    flex_failed = False
    while True:
        try:
            difference = self_check.measure_difference(
                model,
                pack,
                log_probabilities=log_probabilities,
                attention=preferred_implementation(model.device, model.config),
                pad_token_id=pad_token_id,
                forward_context=partial(precision.training_autocast, recipe),
                checkpointing=recipe.train.gradient_checkpointing,
            )
            return difference, flex_failed
        except RuntimeError as error:
            if message := disable_unsupported_flex(error):
                on_fallback(message)
                flex_failed = True
                continue
            if not out_of_memory.is_out_of_memory(error):
                raise
        # Outside of the except block, where the failed graph would still be held.
        out_of_memory.release_memory()
        return None, flex_failed


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
