"""Out-of-memory errors: detection, message, and release of memory.

    torch.OutOfMemoryError          CUDA's allocator in PyTorch
    RuntimeError: CUDA error: out of memory, CUBLAS_STATUS_ALLOC_FAILED        libraries with their own allocation
    RuntimeError: CUDA driver error: out of memory      CUDA's allocator with expandable segments, which training sets
    RuntimeError: ... Cuda failure 2 'out of memory'    NCCL
    RuntimeError: [enforce fail ...] DefaultCPUAllocator: can't allocate memory    a CPU
    RuntimeError: could not create a primitive      a CPU, where oneDNN multiplies bfloat16: it gives no reason

Training then halves its packs (loop/trainer.py), and decoding halves its batches (evaluate/constrained_decoding.py).
worker.py records and reports all other out-of-memory errors.
"""

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MESSAGES = (
    "can't allocate memory",
    "could not create a primitive",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "'out of memory'",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory is exhausted.

    Triton's "out of resource" does not: it means that a kernel does not fit the multiprocessor of a GPU.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def describe_out_of_memory(error: BaseException) -> str:
    """Return the message for an out-of-memory error that halving could not resolve."""
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"out of memory: {first_line}\n"
        "  Checkpoints are kept, and the same command resumes from the last one. To use less memory set "
        "model.quantization=nf4, train.gradient_checkpointing=true,\n"
        "  a lower train.pack_tokens or train.max_length, or a smaller model.base."
    )


def release_memory() -> None:
    """Free memory: reference cycles, such as a Trainer with its optimizer, and the cache of CUDA's allocator."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: "torch.device") -> int | None:
    """Return the free memory of a GPU in bytes, including the free part of PyTorch's cache.

    Return None on a CPU, where results must not depend on other processes.
    """
    import torch

    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    # A process may be limited to a fraction of the GPU (torch.cuda.set_per_process_memory_fraction).
    allowed = total * torch.cuda.get_per_process_memory_fraction(device) - reserved
    return int(min(free, allowed) + reserved - allocated)
