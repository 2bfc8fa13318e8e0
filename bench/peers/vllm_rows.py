"""vLLM on the rows of bench.decoding, offline: `python -m bench.peers.vllm_rows SPEC`.

Spec and result are those of decode_rows.py. vLLM computes with the serving settings of this project, each case from an
empty prefix cache.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

KV_CACHE_BYTES = 2**30
MAX_MODEL_LEN = 2048
WARM_UP_ROWS = 2


def main() -> None:
    """Answer the rows of each case once, after a warm-up, and write result.json beside the spec."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from serve.vllm.server_process import SMALL_CPU_CORES, UNIPROC_EXECUTOR

    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine_options: dict[str, Any] = {}
    if not torch.cuda.is_available():
        engine_options = {"kv_cache_memory_bytes": KV_CACHE_BYTES, "block_size": 32}
        if len(os.sched_getaffinity(0)) <= SMALL_CPU_CORES:
            engine_options["distributed_executor_backend"] = UNIPROC_EXECUTOR
    vllm = LLM(
        model=spec["model"],
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        enforce_eager=True,
        enable_prefix_caching=True,
        structured_outputs_config={"backend": "xgrammar"},
        **engine_options,
    )
    results = {}
    for case in spec["cases"]:
        constraint = StructuredOutputsParams(grammar=case["grammar"])
        greedy = SamplingParams(temperature=0.0, max_tokens=case["max_new_tokens"], structured_outputs=constraint)
        rows: list[Any] = [{"prompt_token_ids": ids} for ids in case["prompts"]]
        vllm.generate(rows[:WARM_UP_ROWS], greedy, use_tqdm=False)
        vllm.reset_prefix_cache()
        started_at = time.perf_counter()
        answers = vllm.generate(rows, greedy, use_tqdm=False)
        results[case["name"]] = {
            "seconds": time.perf_counter() - started_at,
            "answers": [list(answer.outputs[0].token_ids) for answer in answers],
        }
    Path(sys.argv[1]).with_name("result.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
