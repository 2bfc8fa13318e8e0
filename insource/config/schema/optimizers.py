"""Settings of transformers' schedules and optimizers, so that a recipe is checked without importing transformers.

    train: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 0.1}}
    train: {optim: sgd, optim_args: "momentum=0.9"}

`tests/insource/config/test_train_settings.py` compares the names with the signatures in transformers/optimization.py
and with the settings that transformers/trainer_optimizer.py reads.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from insource.config.schema.section import Mistake

Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip

# transformers' other optimizers need additional packages, or metrics between updates.
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop",
    "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "ademamix", "ademamix_8bit", "paged_ademamix_8bit", "paged_ademamix_32bit",
    "lion_32bit", "lion_8bit", "paged_lion_8bit", "paged_lion_32bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
]  # fmt: skip

# (description of a valid value, predicate).
_NON_NEGATIVE = ("a number of at least 0", lambda value: isinstance(value, int | float) and value >= 0)
_FRACTION = ("a number from 0 to 1", lambda value: isinstance(value, int | float) and 0 <= value <= 1)
_POSITIVE_INTEGER = ("a whole number of at least 1", lambda value: isinstance(value, int) and value >= 1)
_DECAY_CURVE = ("linear, cosine or 1-sqrt", lambda value: value in ("linear", "cosine", "1-sqrt"))

_MIN_LR = {"min_lr": _NON_NEGATIVE, "min_lr_rate": _FRACTION, "num_cycles": _NON_NEGATIVE}
SCHEDULE_KWARGS: dict[str, dict[str, tuple[str, Any]]] = {
    **{name: {} for name in get_args(Schedule)},
    "cosine": {"num_cycles": _NON_NEGATIVE},
    "cosine_with_restarts": {"num_cycles": _POSITIVE_INTEGER},
    "polynomial": {"lr_end": _NON_NEGATIVE, "power": _NON_NEGATIVE},
    "inverse_sqrt": {"timescale": _POSITIVE_INTEGER},
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": {**_MIN_LR, "warmup_lr_rate": _FRACTION},
    "warmup_stable_decay": {
        "num_decay_steps": _POSITIVE_INTEGER,
        "num_stable_steps": _POSITIVE_INTEGER,
        "warmup_type": _DECAY_CURVE,
        "decay_type": _DECAY_CURVE,
        "min_lr_ratio": _FRACTION,
        "num_cycles": _NON_NEGATIVE,
    },
}

OPTIM_ARGS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    **{
        name: ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
        for name in get_args(Optimizer)
        if "ademamix" in name
    },
}


def uses_bitsandbytes(optim: str) -> bool:
    """Return whether the optimizer is one of bitsandbytes."""
    return any(part in optim for part in ("8bit", "32bit", "bnb", "ademamix"))


def find_schedule_mistakes(kind: str, kwargs: Mapping[str, object], learning_rate: float) -> Iterator[Mistake]:
    """Yield (key, message) for unknown, invalid and missing settings of a schedule."""
    allowed = SCHEDULE_KWARGS[kind]
    for name, value in kwargs.items():
        if name not in allowed:
            supported = f"takes {', '.join(allowed)}" if allowed else "takes none"
            yield (name,), f"unknown to lr_scheduler_type {kind}, which {supported}"
        elif isinstance(value, bool) or not allowed[name][1](value):
            yield (name,), f"given {value!r}, allowed: {allowed[name][0]}"
    if "min_lr" in allowed and len({"min_lr", "min_lr_rate"} & set(kwargs)) != 1:
        yield (
            (),
            f"{kind} needs one of min_lr (a rate) and min_lr_rate (a share of learning_rate), such as min_lr_rate: 0.1",
        )
    if "num_decay_steps" in allowed and "num_decay_steps" not in kwargs:
        yield (), f"{kind} needs num_decay_steps, the updates over which the rate falls at the end"
    for name, default in (("lr_end", 1e-7), ("min_lr", 0.0)):
        end = kwargs.get(name, default)
        if name in allowed and isinstance(end, int | float) and end >= learning_rate:
            yield (name,), f"given {end}, allowed: below learning_rate ({learning_rate})"


def find_optim_mistakes(optim: str, optim_args: str) -> Iterator[Mistake]:
    """Yield (key, message) for unknown and invalid settings in `name=value,name=value` of an optimizer."""
    allowed = OPTIM_ARGS.get(optim, ())
    for pair in optim_args.replace(" ", "").split(","):
        name, equals, value = pair.partition("=")
        if name not in allowed:
            supported = f"reads {', '.join(allowed)}" if allowed else "reads none; its settings are keys of train"
            yield (), f"{name!r} is unknown to optim {optim}, which {supported}"
        elif name in ("nesterov", "centered"):
            if value not in ("true", "false"):
                yield (), f"{name}: given {value!r}, allowed: true or false"
        elif not equals or not _is_number(value, integer=name.startswith("t_")):
            yield (), f"{name}: given {value!r}, allowed: {'a whole number' if name.startswith('t_') else 'a number'}"


def _is_number(text: str, integer: bool) -> bool:
    try:
        int(text) if integer else float(text)
    except ValueError:
        return False
    return True
