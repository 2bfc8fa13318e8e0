"""TRL's SFTTrainer on rows that are tokenised already, as its documentation recommends.

Batches are padded (`trl`), or complete rows are packed by best-fit decreasing (`trl_bfd`). The fastest setting differs
with the rows and the machine, so `candidates` are timed first: rows of a forward pass for `trl`, tokens of a sequence
for `trl_bfd`. TRL packs all rows together and then counts sequences, so that an update of `trl_bfd` holds `batch_size`
rows only on average. TRL shuffles the sequences.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.spec import ADAPTER_DIR, PeerSpec, build_features, package_versions, read_spec
from bench.peers.training_probe import TrainingProbe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def main(spec: PeerSpec) -> None:
    """Train, or time the candidates, and write result.json."""
    model, tokenizer = load_adapted(spec)
    version = package_versions("trl", "transformers", "peft", "torch")
    if spec.candidates:
        seconds_per_token = {
            str(candidate): measure_seconds_per_token(spec, model, tokenizer, candidate)
            for candidate in spec.candidates
        }
        spec.write_result(
            {"version": version, "seconds_a_token": {name: cost for name, cost in seconds_per_token.items() if cost}}
        )
        return
    probe = TrainingProbe()
    trainer = build_trainer(spec, model, tokenizer, spec.examples(), spec.micro_batch, spec.pack_tokens)
    probe.attach(trainer.model)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    result = {"version": version, "losses": losses, **probe.report()}
    trainer.model.save_pretrained(str(Path(spec.folder) / ADAPTER_DIR))
    spec.write_result(result)


def load_adapted(spec: PeerSpec) -> tuple[Any, Any]:
    """Return the model with the initial adapter, and the tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    dtype = torch.bfloat16 if spec.bfloat16 else torch.float32
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        spec.model,
        dtype=dtype,
        attn_implementation="sdpa",
        quantization_config=nf4 if spec.quantization == "nf4" else None,
        device_map={"": 0 if spec.on_gpu else "cpu"},
    )
    model = PeftModel.from_pretrained(model, spec.adapter, is_trainable=True)
    return model, AutoTokenizer.from_pretrained(spec.model)


def build_trainer(
    spec: PeerSpec,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: list[Any],
    micro_batch: int,
    pack_tokens: int,
    accumulate: bool = True,
) -> Any:
    """Return the trainer; without `accumulate`, every forward pass is an update of its own."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer, pack_dataset

    rows = Dataset.from_list(
        [{name: row[name] for name in ("input_ids", "labels")} for row in build_features(examples)]
    )
    packing = spec.system == "trl_bfd"
    packs_an_update = spec.batch_size // micro_batch
    if packing:
        packs_an_update = max(1, round(spec.batch_size * len(pack_dataset(rows, pack_tokens, "bfd")) / len(rows)))
    settings = SFTConfig(
        output_dir=str(Path(spec.folder) / "trainer"),
        per_device_train_batch_size=1 if packing else micro_batch,
        gradient_accumulation_steps=packs_an_update if accumulate else 1,
        packing=packing,
        packing_strategy="bfd",
        max_length=pack_tokens if packing else None,
        num_train_epochs=1,
        train_sampling_strategy="random" if packing else "sequential",
        learning_rate=spec.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=spec.bfloat16,
        use_cpu=not spec.on_gpu,
        dataloader_pin_memory=spec.on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=17,
    )
    return SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)


def measure_seconds_per_token(
    spec: PeerSpec, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", candidate: int
) -> float | None:
    """Return the seconds a token of a row with `candidate` as micro_batch or pack_tokens.

    The second of two forward and backward passes counts. Return None if the GPU has too little memory for it.
    """
    import torch

    packing = spec.system == "trl_bfd"
    examples = spec.examples()
    if not packing:
        examples = examples[: 2 * candidate]
    trainer = build_trainer(spec, model, tokenizer, examples, 1 if packing else candidate, candidate, accumulate=False)
    trainer.args.max_steps = 2
    probe = TrainingProbe()
    probe.attach(trainer.model)
    try:
        trainer.train()
    except torch.OutOfMemoryError:
        return None
    finally:
        probe.detach()
    return probe.seconds[-1] / sum(map(len, probe.updates[-1]))


if __name__ == "__main__":
    main(read_spec())
