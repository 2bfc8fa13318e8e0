"""Environment variables that this stage sets for its libraries."""

# They turn off log lines, usage reports and banners of libraries.
QUIET_ENV = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_TELEMETRY": "1", "BITSANDBYTES_NOWELCOME": "1"}

# Packs and decoding batches differ in length, which fragments the GPU allocator's blocks without this setting.
GPU_ALLOCATOR_ENV = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
