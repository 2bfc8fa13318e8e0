"""Validation decoding of a checkout, as a program: `python decode_rows.py SPEC` with that checkout on PYTHONPATH.

    spec.json     {"model": ..., "cases": [{"name": ..., "prompts": [[ids]], "grammar": ..., "max_new_tokens": 64}]}
    result.json   {case: {"seconds": 3.1, "peak_memory_bytes": ..., "answers": [[ids]]}}

It imports nothing of this bench, since the checkout may be an earlier build.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP_ROWS = 2


def main() -> None:
    """Decode the rows of each case once, after a warm-up, and write result.json beside the spec."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    try:
        from train.evaluate.constrained_decoding import decode_answers as decode
    except ImportError:  # a build before the packages of train/
        from train.decode import decode  # type: ignore[import-not-found, no-redef]

    logging.disable_progress_bar()
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32, attn_implementation="sdpa")
    model.to(device).eval()
    results = {}
    for case in spec["cases"]:
        settings = {"grammar": case["grammar"], "max_new_tokens": case["max_new_tokens"]}
        decode(model, tokenizer, case["prompts"][:WARM_UP_ROWS], **settings)
        reset_peak_memory()
        started_at = time.perf_counter()
        answers = decode(model, tokenizer, case["prompts"], **settings)
        seconds = time.perf_counter() - started_at
        results[case["name"]] = {
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "answers": [answer.token_ids for answer in answers],
            "margins": [answer.margin for answer in answers],
        }
    Path(sys.argv[1]).with_name("result.json").write_text(json.dumps(results), encoding="utf-8")


def reset_peak_memory() -> None:
    """Reset the peak memory of this process and of the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Return the peak memory since the reset: of the GPU, or of the process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
