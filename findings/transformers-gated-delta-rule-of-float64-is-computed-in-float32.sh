#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0: a float64 model with Gated DeltaNet layers (Qwen3-Next, Qwen3.5, OLMo-Hybrid) computes
# these layers in float32, and the gradient of the decay loses more with each doubling of the chunk size.
#
# Who converts a model to float64 to check gradients expects errors near 1e-16: tensors in and out are float64. But both
# torch_chunk_gated_delta_rule and torch_recurrent_gated_delta_rule cast their inputs to float32 and the output back, so
# gradcheck cannot pass. And chunk sizes are read as ways to the same sums. At a fast decay (A = 16, the end of the range
# from which Qwen3-Next draws it) the gradient of the decay rate is 4 times as wrong with the default chunks of 64 tokens as
# with 16, and 20 times as wrong as the output: one tolerance for all parameters passes or fails by the chunk size.
#
# Seen (median relative error of nine draws against a float64 recurrence; all outputs have the dtype float64):
#   steps: output 1e-07, gradient of A_log 2e-07
#   chunks of 16: output 3e-07, gradient of A_log 6e-06
#   chunks of 64: output 1e-06, gradient of A_log 2e-05
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 numpy
cat > "$here/compare.py" <<'PYTHON'
from statistics import median

import torch
from transformers.models.qwen3_next import modeling_qwen3_next as modeling

HEADS, TOKENS, WIDTH = 4, 128, 32


def recurrence(query, key, value, g, beta):
    """The definition, token by token, in the dtype of its inputs."""
    query, key = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
    state, outputs = query.new_zeros(1, HEADS, WIDTH, WIDTH), []
    for t in range(TOKENS):
        state = state * g[:, t].exp()[..., None, None]
        written = (value[:, t] - torch.einsum("bhkv,bhk->bhv", state, key[:, t])) * beta[:, t][..., None]
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, t], written)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, query[:, t]) / WIDTH**0.5)
    return torch.stack(outputs, 1)


def measure(function, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, TOKENS, HEADS, WIDTH, generator=generator).double() for _ in range(3))
    decay_input, write_input, weights = (torch.randn(1, TOKENS, HEADS, generator=generator).double() for _ in range(3))
    a_log = torch.full((HEADS,), 16.0).log().double().requires_grad_()
    g = -a_log.exp() * torch.nn.functional.softplus(decay_input - 2)
    output = function(query, key, value, g=g, beta=write_input.sigmoid())
    (output * weights[..., None]).sum().backward()
    return output.detach(), a_log.grad


def by_transformers(function, **options):
    return lambda *inputs, **gates: function(
        *inputs, **gates, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=True, **options
    )[0]


def error(value, reference):
    return float((value.double() - reference).norm() / reference.norm())


ways = {
    "steps": by_transformers(modeling.torch_recurrent_gated_delta_rule),
    "chunks of 16": by_transformers(modeling.torch_chunk_gated_delta_rule, chunk_size=16),
    "chunks of 64": by_transformers(modeling.torch_chunk_gated_delta_rule, chunk_size=64),
}
references = [measure(recurrence, seed) for seed in range(9)]
outputs, gradients = {}, {}
for name, function in ways.items():
    measured = [measure(function, seed) for seed in range(9)]
    assert all(output.dtype == torch.float64 for output, _ in measured)
    outputs[name] = median(error(output, reference[0]) for (output, _), reference in zip(measured, references))
    gradients[name] = median(error(gradient, reference[1]) for (_, gradient), reference in zip(measured, references))
    print(f"{name}: output {outputs[name]:.0e}, gradient of A_log {gradients[name]:.0e}")
assert min(outputs.values()) > 1e-9, "computed in float64 now"
assert gradients["chunks of 64"] > 2 * gradients["chunks of 16"] > 10 * gradients["steps"], "no loss by chunks now"
assert gradients["chunks of 64"] > 8 * outputs["chunks of 64"], "the gradient is as exact as the output now"
PYTHON
"$here/venv/bin/python" "$here/compare.py" 2>/dev/null
