"""Too little memory: how to know it, what to say of it, what to give back.

    torch.OutOfMemoryError          CUDA's allocator in PyTorch
    RuntimeError: CUDA error: out of memory, CUBLAS_STATUS_ALLOC_FAILED        libraries that allocate by themselves
    RuntimeError: [enforce fail ...] DefaultCPUAllocator: can't allocate memory    a CPU
    RuntimeError: could not create a primitive      a CPU, where oneDNN multiplies bfloat16: it gives no reason

Training halves its packs then (trainer.py) and decoding its batches (decode.py); whatever else runs out of memory is
recorded and told by worker.py.
"""

import gc
from typing import Any

_MESSAGES = (
    "can't allocate memory",
    "could not create a primitive",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory did not suffice. Kernels that do not fit a GPU's multiprocessor, which
    Triton calls out of resource, are none of these."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def describe_out_of_memory(error: BaseException) -> str:
    """Returns what a person is told of an error of too little memory that nothing could be halved for."""
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"out of memory: {first_line}\n"
        "  What was written is kept, and the same command goes on from the last checkpoint. Take less: "
        "model.quantization=nf4, train.gradient_checkpointing=true,\n"
        "  a lower train.pack_tokens or train.max_length, or a smaller model.base."
    )


def release_memory() -> None:
    """Gives back what nobody holds any more: reference cycles, such as a Trainer with its optimizer, and the blocks
    that CUDA's allocator keeps."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: Any) -> int | None:
    """Returns the memory of a GPU that can be taken now, what PyTorch keeps for itself included; None on a CPU, where
    results must not depend on what else runs."""
    import torch

    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
