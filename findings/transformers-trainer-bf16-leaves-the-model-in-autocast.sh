#!/usr/bin/env bash
# transformers 5.19.0, accelerate 1.15.0: after Trainer has trained with bf16=True, the model computes in bfloat16 for ever.
#
# Mixed precision is read as a thing of training: weights stay float32, and so do the logits that come out. But the model's
# `forward` was replaced by one that runs under autocast, and stays so when training has ended: whoever scores, compares or
# takes reference answers of the same object afterwards gets logits of bfloat16's precision in a float32 tensor, where a
# copy with the same weights gives others. On a CPU, where users expect float32, too. `forward` set back, it is the copy's.
#
# Seen: "before training: equal", "after: torch.float32, not equal to a copy with the same weights", "forward set back: equal".
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 numpy
cat > "$here/train.py" <<'PYTHON'
import sys

import torch
import transformers

transformers.utils.logging.set_verbosity_error()
torch.manual_seed(3)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
)
model = transformers.LlamaForCausalLM(config)
ids = torch.arange(24)[None]


def like_a_copy():
    copy = transformers.LlamaForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        one, other = model.eval()(input_ids=ids).logits, copy.eval()(input_ids=ids).logits
    return ("equal" if torch.allclose(one, other, rtol=0, atol=1e-6) else "not equal"), one.dtype


print(f"before training: {like_a_copy()[0]}")
transformers.Trainer(
    model=model,
    args=transformers.TrainingArguments(
        output_dir=sys.argv[1], max_steps=1, bf16=True, use_cpu=True, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, per_device_train_batch_size=1,
    ),
    train_dataset=[{"input_ids": ids[0], "labels": ids[0]}] * 2,
).train()
told, dtype = like_a_copy()
print(f"after: {dtype}, {told} to a copy with the same weights")
del model.forward
print(f"forward set back: {like_a_copy()[0]}")
PYTHON
seen=$("$here/venv/bin/python" "$here/train.py" "$here/out" 2>/dev/null | grep -v "train_runtime")
echo "$seen"
[ "$seen" = "before training: equal
after: torch.float32, not equal to a copy with the same weights
forward set back: equal" ]
