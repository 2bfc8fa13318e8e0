#!/usr/bin/env bash
# torch 2.13.0 on a CPU: scaled_dot_product_attention multiplies the gradients of a query whose keys are all masked by -1e9 by
# the number of keys. The output is right.
#
# Float masks of -1e9 or torch.finfo(dtype).min stand in much code for "hidden", also in rows of padding, where they hide
# every key. The softmax of such a row is uniform, and a good guess is that its gradient is the one of this softmax, as in the math
# backend. The kernel that a CPU takes by default stores the log of the row's sum of exponentials for the backward
# pass, maximum + log(n), in float32. Beside -1e9 the log(n) is rounded away, so each of the n weights is 1 instead of 1/n
# when it is computed again: all gradients of the row are n times too large. At -1e4 the error is 0.04%. Padding usually
# has no gradient, because its loss is masked; where it has one (mean pooling over all positions, a regularizer on hidden states), the norm
# explodes with the length, without a warning. A bool mask or -inf hides a whole row exactly: output and gradient are 0.
#
# Seen (64 keys; output of the row and the sum of its weights as the gradient of the values shows it, math against default):
#   mask -1e4: output 0.1684 and 0.1684, weights 1.0 and 1.0
#   mask -1e9: output 0.0624 and 0.0624, weights 1.0 and 64.0
#   mask finfo.min: output 0.0624 and 0.0624, weights 1.0 and 64.0
#   mask -inf: output 0.0000 and 0.0000, weights 0.0 and 0.0
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
cat > "$here/attend.py" <<'PYTHON'
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

N = 64


def attend(hidden, context):
    query, key, value = (torch.randn(1, 1, N, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    value.requires_grad_()
    mask = torch.zeros(N, N)
    mask[0] = hidden
    with context:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    output[0, 0, 0].sum().backward()
    return output[0, 0, 0, 0].item(), value.grad[0, 0, :, 0].sum().item()


for name, hidden in {
    "-1e4": -1e4,
    "-1e9": -1e9,
    "finfo.min": torch.finfo(torch.float32).min,
    "-inf": float("-inf"),
}.items():
    math, default = attend(hidden, sdpa_kernel(SDPBackend.MATH)), attend(hidden, nullcontext())
    print(f"mask {name}: output {math[0]:.4f} and {default[0]:.4f}, weights {math[1]:.1f} and {default[1]:.1f}")
PYTHON
seen=$("$here/venv/bin/python" "$here/attend.py")
echo "$seen"
[ "$seen" = "mask -1e4: output 0.1684 and 0.1684, weights 1.0 and 1.0
mask -1e9: output 0.0624 and 0.0624, weights 1.0 and 64.0
mask finfo.min: output 0.0624 and 0.0624, weights 1.0 and 64.0
mask -inf: output 0.0000 and 0.0000, weights 0.0 and 0.0" ]
