"""LLaMA-Factory in an environment of its own (bench/training/environments.py), on exactly the same token ids.

Its own settings make it train on a tokenised data set on disk, start from a given adapter and keep the order of rows.
It enables gradient checkpointing by default, which would cost a quarter of its speed; it is disabled here.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from bench.peers.spec import ADAPTER_DIR, PeerSpec, build_features, package_versions, read_spec
from bench.peers.training_probe import TrainingProbe


def main(spec: PeerSpec) -> None:
    """Train, and write result.json."""
    stub_torchaudio()
    from datasets import Dataset
    from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found]
    from transformers import TrainerCallback, TrainerState

    folder = Path(spec.folder)
    Dataset.from_list(build_features(spec.examples())).save_to_disk(str(folder / "tokenized"))
    probe = TrainingProbe()

    class AttachProbe(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            probe.attach(kwargs["model"])

    run_exp(build_settings(spec, folder), [AttachProbe()])
    state = TrainerState.load_from_json(str(folder / ADAPTER_DIR / "trainer_state.json"))
    losses = [line["loss"] for line in state.log_history if "loss" in line]
    spec.write_result(
        {
            "version": package_versions("llamafactory", "transformers", "trl", "peft", "torch"),
            "losses": losses,
            **probe.report(),
        }
    )


def stub_torchaudio() -> None:
    """Install an empty module as torchaudio if it is missing.

    LLaMA-Factory imports it for audio models and does not use it for text.
    """
    if find_spec("torchaudio") is None:
        module = ModuleType("torchaudio")
        module.__spec__ = ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module


def build_settings(spec: PeerSpec, folder: Path) -> dict[str, object]:
    """Return the settings of its YAML file."""
    quantized = {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True}
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": spec.model,
        "adapter_name_or_path": spec.adapter,
        "finetuning_type": "lora",
        "template": "empty",
        # Required, though the tokenised data set is used.
        "dataset": "tokenized",
        "tokenized_path": str(folder / "tokenized"),
        "output_dir": str(folder / ADAPTER_DIR),
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "flash_attn": "sdpa",
        "per_device_train_batch_size": spec.micro_batch,
        "gradient_accumulation_steps": spec.batch_size // spec.micro_batch,
        "num_train_epochs": 1,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": spec.bfloat16,
        "use_cpu": not spec.on_gpu,
        "dataloader_pin_memory": spec.on_gpu,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 17,
        **(quantized if spec.quantization == "nf4" else {}),
    }


if __name__ == "__main__":
    main(read_spec())
