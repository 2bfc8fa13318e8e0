"""A model sharded by FSDP2: temporary unsharding for decoding, and gathering of its adapter.

    with unshard(model):                     each process decodes its own rows, without gathering meanwhile
        answers = decode_answers(model, ...)
    tensors = gather_adapter(model)          called in all processes; only the first one gets the tensors

Without unsharding, every token of an answer would gather all layers. Processes with different numbers of steps would
wait for each other forever.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def is_sharded(model: "PreTrainedModel") -> bool:
    """Return whether FSDP2 has sharded the model. Trainer shards it when training begins, not before."""
    return bool(_fsdp_modules(model))


@contextmanager
def unshard(model: "PreTrainedModel") -> Iterator[None]:
    """Keep all weights in every process inside of the block. Do nothing if the model is not sharded.

    All processes must enter and leave the block together. The weights fit: each process held the complete base before
    sharding.
    """
    modules = _fsdp_modules(model)
    if modules:
        # The first forward pass would do this. A run that resumes after its last update has no forward pass.
        modules[0]._get_fsdp_state()._lazy_init()
    groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
    previous = {id(group): group.post_forward_mesh_info for group in groups}
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for group in groups:
            # The public setter would set this value for layers, and None for the root and the head.
            group.post_forward_mesh_info = previous[id(group)]
        for module in modules:
            module.reshard()


def gather_adapter(model: "PreTrainedModel") -> "dict[str, torch.Tensor] | None":
    """Return the unsharded trainable tensors in main memory, by their names in the model.

    The first process gets all tensors, the others an empty dict. Return None if the model is not sharded. All processes
    must call it together.
    """
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, cpu_offload=True)
    state: dict[str, torch.Tensor] = dict(get_model_state_dict(model, options=options))  # type: ignore[arg-type]
    return state


def _fsdp_modules(model: "PreTrainedModel") -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
