"""Unsloth on a GPU, in an environment of its own (bench/training/environments.py).

It patches TRL, so the rest is `trl_sft.py`.
"""

# Unsloth patches transformers and TRL at import, so it must be imported before them.
import unsloth  # type: ignore[import-not-found]  # isort: skip

from pathlib import Path
from typing import Any

from bench.peers.spec import ADAPTER_DIR, PeerSpec, package_versions, read_spec
from bench.peers.training_probe import TrainingProbe
from bench.peers.trl_sft import build_trainer

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(spec: PeerSpec) -> None:
    """Train, and write result.json."""
    model, tokenizer = load_adapted(spec)
    trainer = build_trainer(spec, model, tokenizer, spec.examples(), spec.micro_batch, 0)
    probe = TrainingProbe()
    probe.attach(trainer.model)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    result = {
        "version": package_versions("unsloth", "trl", "transformers", "peft", "torch"),
        "losses": losses,
        **probe.report(),
    }
    trainer.model.save_pretrained(str(Path(spec.folder) / ADAPTER_DIR))
    spec.write_result(result)


def load_adapted(spec: PeerSpec) -> tuple[Any, Any]:
    """Return Unsloth's own model with an adapter of the same shape and the initial weights, and the tokenizer."""
    from peft import load_peft_weights, set_peft_model_state_dict

    max_tokens = max(len(prompt) + len(answer) for prompt, answer in spec.examples())
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        spec.model, max_seq_length=max_tokens, load_in_4bit=spec.quantization == "nf4"
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, target_modules=TARGET_MODULES, use_gradient_checkpointing=False
    )
    set_peft_model_state_dict(model, load_peft_weights(spec.adapter))
    return model, tokenizer


if __name__ == "__main__":
    main(read_spec())
