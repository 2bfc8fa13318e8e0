"""The adapter folder, which is deployed, complete or absent.

adapter_model.safetensors adapter_config.json    PEFT's own format, loaded by PEFT and by vLLM
tokenizer.json tokenizer_config.json chat_template.jinja generation_config.json   the template pinned, the stop as EOS
config.json        the base's; without it vLLM waits two seconds in each process before it loads the tokenizer
prompt.json        the task, as prompts need it, and the hash of the template that rendered them
README.md          the model card, with the validation score
SHA256SUMS         the hashes of all other files

reference.jsonl is outside of the folder, in the run: the answers that a server must reproduce
(evaluate/reference_answers.py). It contains rows of the data. The folder, which people share, contains only its hash.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config import base_models
from insource.config.base_models import POCKET
from insource.config.metric_names import select_metrics
from insource.config.recipe import Recipe
from insource.config.schema.lora import VLLM_RANKS, Lora
from insource.system import atomic_files
from insource.tasks import TASKS, format_metrics, metric_label
from insource.tasks.rendering import chat_template
from insource.tasks.rendering.chat_template import Rendering
from insource.tasks.task_kind import TaskKind
from insource.tracking import digests, train_labels
from insource.tracking.base_models import gguf_model
from insource.tracking.prompt_spec import (
    PROMPT_FILE,
    PROMPT_SCHEMA_VERSION,
    BaseIdentity,
    PromptSpec,
    ReferenceFile,
    TemplateRecord,
    TrainedBase,
)
from insource.tracking.run import Run
from train.evaluate import reference_answers
from train.evaluate.constrained_decoding import DecodedAnswer
from train.evaluate.validation import GenerationEvaluator
from train.model import lora_init
from train.prompt_examples import WITHOUT_EXAMPLES

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedTokenizerBase

INPUT_PLACEHOLDER = "{input}"


def write_adapter_folder(
    run: Run,
    recipe: Recipe,
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: PromptSpec,
    scores: Mapping[str, object],
    reference_evaluator: GenerationEvaluator,
    answers: Sequence[DecodedAnswer],
    state: "dict[str, torch.Tensor] | None" = None,
) -> Path:
    """Write the adapter folder of the run atomically: weights, tokenizer, prompt and card. Return its path.

    Write the reference answers beside it. `answers` are those of the trained weights to the rows of
    `reference_evaluator`. `state` contains the trained tensors if the model is sharded (`fsdp.gather_adapter`).
    """
    references = reference_answers.write_references(
        run.folder,
        reference_answers.build_reference_rows(
            reference_evaluator.rows, reference_evaluator.prompts, answers, reference_evaluator.example_ids
        ),
    )
    with atomic_files.atomic_folder(run.folder / "adapter") as folder:
        _save_weights(model, recipe, folder, state)
        tokenizer.save_pretrained(folder)
        build_generation_config(tokenizer).save_pretrained(folder)
        _save_base_config(model, folder)
        atomic_files.write_json(folder / PROMPT_FILE, prompt.with_references(references).to_json())
        atomic_files.write_text(folder / "README.md", model_card(run, recipe, scores, references))
        # Pickles are not deployed: loading one can run code.
        for pickle_path in (*folder.glob("*.bin"), *folder.glob("*.pt")):
            pickle_path.unlink()
        atomic_files.write_checksums(folder)
    return run.folder / "adapter"


def build_generation_config(tokenizer: "PreTrainedTokenizerBase") -> "GenerationConfig":
    """Return a generation config with only the stop token of training."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _save_weights(model: "PeftModel", recipe: Recipe, folder: Path, state: "dict[str, torch.Tensor] | None") -> None:
    """Write adapter_model.safetensors and adapter_config.json, for the published base."""
    from safetensors.torch import save_file

    model.peft_config["default"].base_model_name_or_path = base_display_name(recipe)
    if not recipe.lora.modifies_base:
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=state)
        return
    tensors, config = lora_init.to_standard_lora(model, state)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def _save_base_config(model: "PeftModel", folder: Path) -> None:
    """Write config.json of the base as published, without the quantization of the training."""
    config = copy.deepcopy(model.get_base_model().config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)


def base_display_name(recipe: Recipe) -> str:
    """Return the public name of the base: its hub name, the name of a GGUF file, `pocket/model` or `smollm2`."""
    local_names = {str(POCKET): "pocket/model", str(base_models.smollm2_dir()): base_models.SMOLLM2}
    gguf = gguf_model.read_gguf_info(recipe.model.base)
    return local_names.get(recipe.model.base) or (str(gguf["file"]) if gguf else recipe.model.base)


def base_identity(recipe: Recipe, trained: TrainedBase | None = None) -> BaseIdentity:
    """Return the identity of the adapter's base: its name with its commit on the hub, or the hashes of its files.

    `trained` is the record of the dequantized base (`base_store.read_record`), None if the published base was used in
    training.
    """
    folder = Path(recipe.model.base)
    hashes = digests.hash_base_files(folder) if folder.is_dir() else None
    commit = None if hashes else recipe.model.revision
    return BaseIdentity(name=base_display_name(recipe), commit=commit, sha256=hashes, trained=trained)


def build_prompt_spec(
    recipe: Recipe,
    rendering: Rendering,
    spec: Any,
    max_answer_tokens: int,
    trained_base: TrainedBase | None = None,
) -> PromptSpec:
    """Return prompt.json: everything that a server needs to build the same prompts and to decode the same answers.

    It contains the task; the messages with a placeholder for the input, and their token ids; the constraint and the
    limit of the answer; the template's hash and pinned values; and the base, see `base_identity`.
    """
    task, tokenizer = TASKS[recipe.task.task_name], rendering.tokenizer
    messages = task.messages(spec, {"text": INPUT_PLACEHOLDER})
    return PromptSpec(
        schema_version=PROMPT_SCHEMA_VERSION,
        task={"kind": recipe.task.task_name, **asdict(spec)},
        messages=messages,
        prompt_ids=chat_template.encode_prompts(tokenizer, [messages])[0],
        output_schema=task.output_schema(spec),
        grammar=task.grammar(spec),
        stop=tokenizer.eos_token,
        max_answer_tokens=max_answer_tokens,
        chat_template_sha256=chat_template.template_sha256(tokenizer),
        template=TemplateRecord(pinned=rendering.pinned_values, own_suffix=rendering.own_suffix_reason),
        base=base_identity(recipe, trained_base),
    )


def model_card(run: Run, recipe: Recipe, scores: Mapping[str, Any], references: ReferenceFile) -> str:
    """Return the model card (README.md) of the adapter; `references` are the facts on the reference answers."""
    task = TASKS[recipe.task.task_name]
    tuned, base = (select_metrics(task.NAME, scores[name]) for name in ("tuned", "base"))
    rows = "\n".join(
        f"| {metric_label(name)} | {value:.1%} | {format(base[name], '.1%') if name in base else '-'} |"
        for name, value in tuned.items()
    )
    weakest = ", ".join(f"{name} ({f1:.0%})" for name, f1 in task.lowest_scoring(scores["tuned"])[:3])
    teacher_share = train_labels.read_teacher_share(recipe, run.folder / "data")
    teacher_line = (
        f"- Labels: {teacher_share.sentence()}; all held-out labels are those of the data.\n" if teacher_share else ""
    )
    dequantized_note = ", dequantized" if gguf_model.read_gguf_info(recipe.model.base) else ""
    pocket_note = (
        "\nThe base is insource's pocket model, which shows the pipeline and is no model for use.\n"
        if recipe.model.base == str(POCKET)
        else ""
    )
    return f"""---
base_model: {base_display_name(recipe)}
library_name: peft
pipeline_tag: text-generation
tags: [lora, insource, {recipe.task.kind}]
---

# {run.recipe_name}: {recipe.task.instruction}

A LoRA adapter trained by insource, run `{run.id}`.
{pocket_note}
| validation, {scores["tuned"]["n"]} rows | tuned | untuned base |
|---|---|---|
{rows}

{evaluation_note(task)}, on rows that were not trained on.
Weakest {task.BREAKDOWN_NAME} by {task.BREAKDOWN_METRIC}: {weakest}.
The test set was not read.

- Base: {base_display_name(recipe)}{dequantized_note}, quantization while training:
  {recipe.model.quantization}
- LoRA: {method_note(recipe.lora)}
{teacher_line}- Prompts: `prompt.json`, rendered by the chat template in this folder and nothing else.
{examples_line(recipe, scores)}- Serving: {serving_note(run, recipe)}
- Not in this folder, and not to be shared: `reference.jsonl`, {references.rows} validation rows as token ids, which
  anybody can decode, with the answers that a server is held to. It stays in the run and in the registry; its SHA-256
  is `{references.sha256}`.
"""


def evaluation_note(task: TaskKind) -> str:
    """Return the card's sentence on how the score was measured."""
    if task.OBJECTIVE == "prefer":
        return "Measured by how probable the model finds the chosen and the rejected answer"
    return f"Decoded greedily{'' if task.IS_FREE_TEXT else ' under the output constraint'}, as serving does"


def examples_line(recipe: Recipe, scores: Mapping[str, Any]) -> str:
    """Return the card's line on the examples in the prompts, "" without `train.shots`."""
    if not recipe.train.shots:
        return ""
    plain = format_metrics(select_metrics(recipe.task.task_name, scores[WITHOUT_EXAMPLES]))
    return (
        f"- Examples: each prompt of training and validation has {recipe.train.shots} similar train rows as turns "
        f"before its own.\n  The rows are not in this folder. The validation score without examples: {plain}.\n"
    )


def method_note(lora: Lora) -> str:
    """Return the card's line on the adapter's settings."""
    notes = [f"r={lora.r}", f"alpha={lora.lora_alpha}", str(lora.target_modules)]
    notes += ["rsLoRA"] if lora.use_rslora else []
    notes += ["DoRA"] if lora.use_dora else []
    if lora.init_lora_weights is not True:
        notes.append(f"initialized by {lora.init_lora_weights}")
    if lora.modifies_base:
        notes.append("written as the plain adapter of twice the rank that it equals on the base as published")
    return ", ".join(notes)


def serving_note(run: Run, recipe: Recipe) -> str:
    """Return the card's text on serving the adapter."""
    if recipe.train.shots:
        return "not by insource, which sends prompts without examples (train.shots)."
    if reason := recipe.lora.unservable_reason:
        return f"only merged into the base ({reason})."
    base = "<the base as a folder>" if gguf_model.read_gguf_info(recipe.model.base) else base_display_name(recipe)
    return (
        f"`make serve RECIPE={run.recipe_name}` checks it and serves it. By hand, unchecked:\n"
        f"  `python -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --model {base} --enable-lora\n"
        f"  --max-lora-rank {max_lora_rank(recipe.lora)} --lora-modules {run.recipe_name}=<this folder>\n"
        "  --tokenizer <this folder> --chat-template <this folder>/chat_template.jinja --tokenizer-mode hf\n"
        "  --generation-config <this folder>`"
    )


def max_lora_rank(lora: Lora) -> int:
    """Return the smallest max_lora_rank of vLLM that fits the exported adapter."""
    return next(rank for rank in VLLM_RANKS if rank >= lora.largest_rank)
