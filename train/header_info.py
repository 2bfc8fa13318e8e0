"""The values of the header that a training prints before its first update."""

from typing import TYPE_CHECKING

from insource.config.recipe import Recipe
from insource.tasks.rendering import chat_template
from insource.tracking import metrics, train_labels
from insource.tracking.data_report import DataReport
from insource.tracking.run import Run
from train.device import precision
from train.distributed import world
from train.evaluate import decoding_memory
from train.evaluate.validation import GenerationEvaluator
from train.export import adapter
from train.loop import checkpoints
from train.model import dequantize
from train.packing import packing_plan, sampler
from train.packing.dataset import TrainingSet
from train.report import run_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_header_info(
    recipe: Recipe,
    run: Run,
    model: "PreTrainedModel",
    training_set: TrainingSet,
    evaluator: GenerationEvaluator,
    weight_note: str | None,
) -> run_header.HeaderInfo:
    """Return the values of the header. `weight_note` is the loss of the weights' precision before training."""
    train, stats = recipe.train, packing_plan.compute_packing_stats(training_set.update_shards)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    data = DataReport.read(run.folder / "data").rows
    teacher_share = train_labels.read_teacher_share(recipe, run.folder / "data")
    saved_checkpoints = checkpoints.list_checkpoints(run.folder / checkpoints.FOLDER)
    memory = run_header.estimate_memory(
        model,
        pack_tokens=stats.longest_pack,
        answer_tokens=stats.longest_pack_answers,
        mask_pairs=stats.longest_pack_pairs,
        checkpointing=train.gradient_checkpointing,
        optim=train.optim,
        compute_bytes=2 if precision.compute_dtype(recipe) == "bfloat16" else 4,
        autocast=precision.uses_cpu_bfloat16(recipe),
        shards=world.world_size() if recipe.accelerate.distributed_type == "FSDP" else 1,
        workload=build_decoding_workload(recipe, model, evaluator),
        device_bytes=None
        if recipe.accelerate.use_cpu
        else decoding_memory.usable_bytes(dequantize.device_memory_bytes(model.device)),
    )
    return run_header.HeaderInfo(
        base=adapter.base_display_name(recipe),
        quantization=recipe.model.quantization,
        parameters=model.num_parameters() - trainable,
        compute_dtype=precision.compute_dtype(recipe),
        trainable=trainable,
        adapter=f"LoRA r={recipe.lora.r}",
        train_rows=len(training_set.rows),
        teacher_note=teacher_share.sentence() if teacher_share else None,
        validation_rows=len(evaluator.rows),
        longest_row_tokens=max(row.longest_sequence_tokens for row in training_set.rows),
        batch_size=train.batch_size,
        processes=world.world_size(),
        packing=training_set.plan.mode,
        tokens_per_update=stats.computed,
        unpacked_tokens_per_update=stats.unpacked,
        packs_per_update=stats.packs,
        updates=len(training_set.updates),
        epochs=len(training_set.updates) / sampler.updates_per_epoch(len(training_set.rows), train.batch_size),
        weights_note=weight_note,
        rejected=data.rejected,
        dropped=data.dropped,
        class_balance=class_balance_note(recipe),
        memory=memory,
        updates_done=checkpoints.step(saved_checkpoints[-1]) if saved_checkpoints else 0,
        examples_per_second=metrics.read_last_value(run.folder / "metrics.jsonl", "examples_per_second"),
    )


def build_decoding_workload(
    recipe: Recipe, model: "PreTrainedModel", evaluator: GenerationEvaluator
) -> decoding_memory.DecodingWorkload:
    """Return the decoding of the validation rows, for the memory estimate."""
    prefix = chat_template.shared_prefix_length(evaluator.prompts)
    longest = max(map(len, evaluator.prompts)) - prefix + evaluator.max_answer_tokens
    is_sharded = recipe.accelerate.distributed_type == "FSDP"
    rows = -(-len(evaluator.prompts) // world.world_size())
    return decoding_memory.DecodingWorkload(
        rows, prefix, longest, 0 if is_sharded else dequantize.dequantized_layer_bytes(model)
    )


def class_balance_note(recipe: Recipe) -> str | None:
    """Return a note on class balancing (sampling or loss weights), or None without it."""
    notes = ["classes are drawn equally often"] if recipe.train.balanced_sampling else []
    if recipe.train.class_weight == "balanced":
        notes.append("classes weigh the same in the loss")
    elif recipe.train.class_weight:
        notes.append("classes weigh in the loss as train.class_weight says")
    return ", ".join(notes) or None
