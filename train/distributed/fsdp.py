"""A model whose layers FSDP2 has spread over processes: whole again for a while, and its adapter gathered.

    with whole(model):                       each process decodes its own rows, and gathers nothing meanwhile
        answers = decode(model, ...)
    tensors = adapter_tensors(model)         in all processes; the first one gets them

Left as it is, every token of an answer would gather all layers, and processes that take different numbers of steps
would wait for each other for ever.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def is_sharded(model: Any) -> bool:
    """Returns whether FSDP2 has spread the model: Trainer does so when training begins, not before."""
    return bool(_fsdp_modules(model))


@contextmanager
def unshard(model: Any) -> Iterator[None]:
    """Has every process hold all weights inside of the block; nothing changes where the model is not spread.

    All processes enter and leave it together. They held the base whole before it was spread, so it fits.
    """
    modules = _fsdp_modules(model)
    if modules:
        # As its first forward pass would do; a run that goes on behind its last update has none.
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
            # What the public setter would put there for layers, and None for the root and the head.
            group.post_forward_mesh_info = previous[id(group)]
        for module in modules:
            module.reshard()


def gather_adapter(model: Any) -> dict[str, Any] | None:
    """Returns the trainable tensors in main memory, whole, by their names in the model: in the first process all, in
    the others none; None where the model is not spread. Called in all processes at once."""
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))


def _fsdp_modules(model: Any) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
