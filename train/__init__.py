"""Training and export.

One warning of bitsandbytes 0.50 on CPUs with AVX512_BF16 is set aside here, before anything imports it: that the
package `kernels` is not installed. It is left out on purpose, because with it bitsandbytes looks for a hub at import.
The filter takes that one message and leaves every other one of the logger.
"""

import logging


def _is_not_missing_kernel_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_missing_kernel_warning)
