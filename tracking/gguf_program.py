"""`python gguf_program.py PACKAGES FILE.gguf FOLDER`: writes a GGUF model as a folder, weights dequantized to float32.

Run by wheel_base.py as a program, with the package `gguf` in the folder PACKAGES, behind those of the environment.
"""

import sys
from pathlib import Path


def main(packages: str, gguf: Path, folder: Path) -> None:
    sys.path.append(packages)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without GgufConfig the weights would stay in GGUF's blocks, which cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
