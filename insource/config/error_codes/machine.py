"""Errors of the machine and its environment (INS-X)."""

from insource.config.error_codes.description import ErrorDescription

DESCRIPTIONS = (
    ErrorDescription(
        "INS-X001",
        "Disk full",
        "A file could not be written completely. Incomplete files are removed, earlier files are unchanged.",
        "Free space, or keep runs on another disk (`RUNS=<folder>`). Then run the same command: it resumes.",
        "model.base: model.gguf cannot be written as a folder: 2.0 GB are needed",
    ),
    ErrorDescription(
        "INS-X002",
        "File or folder not accessible",
        "The operating system refuses to read or write a file or folder, for the reason in the message.",
        "Give this user the right to it, or set RUNS or REGISTRY to a writable folder.",
        "runs cannot be kept in /mnt/runs: Read-only file system; RUNS=<folder> (or --runs) keeps runs elsewhere",
    ),
    ErrorDescription(
        "INS-X003",
        "In use by another process",
        "Another process has locked the run, the registry, the answers or the rows to predict.",
        "Wait until it ends. The lock ends with the process, so no lock file needs to be removed.",
        "run 2026-11-30-1 is in use by another process; wait for it, or end it",
    ),
    ErrorDescription(
        "INS-X004",
        "pip failed",
        "pip could not install packages into an environment that insource manages.",
        "Check the network, pip's index and the disk. Then run the same command again.",
        "pip install ended with 1: ERROR: No matching distribution found",
    ),
    ErrorDescription(
        "INS-X005",
        "No usable GPU",
        "The recipe or hardware file needs a GPU. PyTorch finds none, or the GPU is too old for bfloat16.",
        "Do what the message names (driver, `make setup HARDWARE=gpu`, CUDA_VISIBLE_DEVICES), or set `HARDWARE=cpu`. "
        "`make doctor` reports what this machine can run.",
        "accelerate.distributed_type: FSDP needs GPUs, but this machine has none; set HARDWARE=cpu",
    ),
    ErrorDescription(
        "INS-X006",
        "Fewer GPUs than processes",
        "`accelerate.num_processes` needs more GPUs than the machine has.",
        "Set `accelerate.num_processes: auto`, or a lower number.",
        "accelerate.num_processes: given 8 processes on this machine, which has 4 GPUs; set num_processes: auto, or "
        "fewer",
    ),
    ErrorDescription(
        "INS-X007",
        "Data process killed",
        "The operating system ended a process that prepares the data, usually because memory is short.",
        "Set `data.num_proc=1`, or free memory.",
        "one of 4 processes that prepare the data was killed, probably because memory is short; set data.num_proc=1, "
        "which needs least",
    ),
    ErrorDescription(
        "INS-X008",
        "Not enough main memory",
        "The weights and the cache need more main memory than is free.",
        "End other processes, or use less memory: `serve.model=quantized/int8`, `serve.dtype=bfloat16`, a smaller "
        "`serve.cpu_cache_gib`, or a smaller base.",
        "model.base: model.gguf cannot be written as a folder: it takes 9.0 GB of memory once dequantized, and 4.0 GB "
        "are free",
    ),
    ErrorDescription(
        "INS-X009",
        "Address or port not usable",
        "Another program uses the port, or the host is not an address of this machine.",
        "Set `serve.port` to the free port in the message, end the other program, or correct `serve.host`.",
        "serve: vLLM cannot use 127.0.0.1:8000: Address already in use; 8001 is free: SET=serve.port=8001",
    ),
    ErrorDescription(
        "INS-X010",
        "Benchmark failed",
        "A measurement of `bench/` cannot run here, or one of its programs failed.",
        "Read the message; bench/README.md describes each measurement and what it needs.",
        "Unsloth needs a GPU",
    ),
)
