"""Training and export.

A log filter hides one warning of bitsandbytes 0.50 on CPUs with AVX512_BF16: the package `kernels` is not installed. It
is set here, before any module imports bitsandbytes. `kernels` is left out on purpose, because with it bitsandbytes
contacts a hub at import. The filter hides only this message; all other messages of the logger pass.
"""

import logging


def _is_not_missing_kernel_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_missing_kernel_warning)
