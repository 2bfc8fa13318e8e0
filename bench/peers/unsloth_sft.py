"""Unsloth, on a GPU, in its own environment (`bench/training/environments.py`): it patches TRL, so the rest is
`trl_sft.py`."""

# Unsloth patches transformers and TRL when it is imported, and has to come before them.
import unsloth  # type: ignore[import-not-found]  # isort: skip

from pathlib import Path
from typing import Any

from bench.peers.spec import ADAPTER, Spec, asked, versions
from bench.peers.training_probe import Watch
from bench.peers.trl_sft import trainer_of

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(spec: Spec) -> None:
    """Trains, and leaves result.json."""
    model, tokenizer = adapted(spec)
    trainer = trainer_of(spec, model, tokenizer, spec.examples(), spec.micro_batch, 0)
    watch = Watch()
    watch.on(trainer.model)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    result = {
        "version": versions("unsloth", "trl", "transformers", "peft", "torch"),
        "losses": losses,
        **watch.report(),
    }
    trainer.model.save_pretrained(str(Path(spec.folder) / ADAPTER))
    spec.finish(result)


def adapted(spec: Spec) -> tuple[Any, Any]:
    """Returns Unsloth's own model with an adapter of the same shape, its weights those that everybody starts from."""
    from peft import load_peft_weights, set_peft_model_state_dict

    longest = max(len(prompt) + len(answer) for prompt, answer in spec.examples())
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        spec.model, max_seq_length=longest, load_in_4bit=spec.quantization == "nf4"
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, target_modules=TARGETS, use_gradient_checkpointing=False
    )
    set_peft_model_state_dict(model, load_peft_weights(spec.adapter))
    return model, tokenizer


if __name__ == "__main__":
    main(asked())
