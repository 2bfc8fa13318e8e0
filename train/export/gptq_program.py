"""GPTQ in llm-compressor's own environment: MERGED ROWS.jsonl PRESET GROUP FOLDER.

It imports nothing of this project.
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM


def main(merged: str, rows_path: str, preset: str, group_size: str, folder: str) -> None:
    """Quantize the merged model by GPTQ (arXiv:2210.17323), with errors weighted by activations on the rows."""
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16, use_safetensors=True)
    lines = Path(rows_path).read_text(encoding="utf-8").splitlines()
    ids = [json.loads(line)["input_ids"] for line in lines]
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row_ids) for row_ids in ids]})
    scheme = preset_name_to_scheme(preset, targets=["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = int(group_size)
    oneshot(
        model=model,
        dataset=data,
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        max_seq_length=max(map(len, ids)),
        num_calibration_samples=len(ids),
    )
    model.save_pretrained(folder, save_compressed=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
