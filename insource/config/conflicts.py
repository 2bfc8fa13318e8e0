"""Conflicts between values of different sections, each with a fix.

    task: {kind: extraction}   train: {class_weight: balanced}
    -> (("train", "class_weight"), "weighs labels, and kind is extraction; leave it out")

Also values that one section derives from another: the metric that selects a checkpoint, and the served model.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from insource.config.metric_names import FIRST_METRICS, METRICS
from insource.config.schema import json_schema_subset
from insource.config.schema.optimizers import uses_bitsandbytes
from insource.config.schema.train import Train

if TYPE_CHECKING:
    from insource.config.recipe import Recipe
    from insource.config.schema.compare import Baseline

Mistakes = Iterator[tuple[tuple[str, ...], str]]


def find_conflicts(recipe: "Recipe") -> list[tuple[tuple[str, ...], str]]:
    """Return (key, message) of all conflicts."""
    checks = (
        _check_task,
        _check_formats,
        _check_teacher,
        _check_plan,
        _check_head,
        _check_route,
        _check_hardware,
        _check_adapter,
    )
    return [conflict for check in checks for conflict in check(recipe)]


def fill_derived_values(recipe: "Recipe") -> dict[str, object]:
    """Return {section name: section} of the sections with derived values."""
    train, serve = recipe.train, recipe.serve
    changes: dict[str, Any] = {}
    train_changes: dict[str, object] = {}
    if train.selects_best_checkpoint:
        metric = train.metric_for_best_model or FIRST_METRICS[recipe.task.task_name]
        train_changes |= {"load_best_model_at_end": True, "metric_for_best_model": metric}
    if train.eval_strategy == "steps" and train.eval_steps is None:
        train_changes["eval_steps"] = train.save_steps
    if train_changes:
        changes["train"] = train.model_copy(update=train_changes)
    primary = recipe.compare.primary
    if primary is not None and "metric" not in primary.model_fields_set:
        resolved = primary.model_copy(update={"metric": FIRST_METRICS[recipe.task.task_name]})
        changes["compare"] = recipe.compare.model_copy(update={"primary": resolved})
    if recipe.lora.unservable_reason and serve.model == "auto":
        changes["serve"] = serve.model_copy(update={"model": "merged"})
    return changes


def _check_task(recipe: "Recipe") -> Mistakes:
    task, train = recipe.task, recipe.train
    if recipe.data.rare_labels is not None and (task.kind != "classification" or task.labels != "auto"):
        yield (
            ("data", "rare_labels"),
            "needs kind classification and task.labels: auto; leave it out",
        )
    if recipe.data.columns.label_separator is not None and task.task_name != "multilabel":
        message = (
            "separates the labels of a row: it needs kind classification with task.labels_per_row: many; leave it out"
        )
        yield ("data", "columns", "label_separator"), message
    columns = recipe.data.columns
    if columns.label_columns is not None:
        label_columns_key = ("data", "columns", "label_columns")
        if task.task_name != "multilabel":
            yield (
                label_columns_key,
                "holds several labels of a row: it needs kind classification with task.labels_per_row: many; leave it "
                "out",
            )
        elif columns.label_separator is not None:
            yield label_columns_key, "and data.columns.label_separator both define how labels are given; keep one"
        elif len({*columns.label_columns}) < len(columns.label_columns):
            yield label_columns_key, "names a column twice; name each once"
    if columns.targets is not None and task.kind not in ("extraction", "generation"):
        yield ("data", "columns", "targets"), f"holds several answers of a row, and kind is {task.kind}; leave it out"
    elif columns.targets is not None and (columns.target is not None or columns.messages is not None):
        conflicting = "target" if columns.target is not None else "messages"
        yield ("data", "columns", "targets"), f"and data.columns.{conflicting} both name the answer; keep one"
    yield from _check_slots(recipe)
    if task.task_name == "multilabel":
        for key in ("class_weight", "balanced_sampling"):
            if getattr(train, key):
                yield ("train", key), "uses one label for each row, but task.labels_per_row is many; leave it out"
    elif task.kind != "classification":
        if train.class_weight is not None:
            yield ("train", "class_weight"), f"weights labels, but kind is {task.kind}; leave it out"
        if train.balanced_sampling:
            yield ("train", "balanced_sampling"), f"balances labels, but kind is {task.kind}; leave it out"
    elif isinstance(train.class_weight, dict) and task.labels != "auto":
        for label in sorted(set(train.class_weight) - set(task.labels)):
            yield ("train", "class_weight", label), f"is not in task.labels: {', '.join(sorted(task.labels))}"
    if task.kind == "preference" and train.shots:
        yield ("train", "shots"), f"is for kinds with one answer, and kind is {task.kind}; leave it out"
    if task.kind != "preference" and train.beta != Train.model_fields["beta"].default:
        yield ("train", "beta"), f"belongs to preference tuning, and kind is {task.kind}; leave it out"
    metrics = METRICS[task.task_name]
    if train.metric_for_best_model is not None and train.metric_for_best_model not in metrics:
        message = f"given {train.metric_for_best_model!r}, allowed for {_describe_kind(recipe)}: {', '.join(metrics)}"
        yield ("train", "metric_for_best_model"), message


def _check_slots(recipe: "Recipe") -> Mistakes:
    columns = recipe.data.columns
    present = [name for name in ("slots", "tags") if getattr(columns, name) is not None]
    answer_keys = [name for name in ("target", "targets", "messages") if getattr(columns, name) is not None]
    for name in present[:1]:
        key = ("data", "columns", name)
        if recipe.task.kind != "extraction":
            yield key, f"holds the fields of a record, and kind is {recipe.task.kind}; leave it out"
        if other_keys := present[1:] + answer_keys:
            yield key, f"and data.columns.{other_keys[0]} both hold the record; keep one"
        if len(columns.texts) > 1:
            yield (
                key,
                f"marks positions in one text, but data.columns.text names {len(columns.texts)} columns; name one",
            )


def _check_formats(recipe: "Recipe") -> Mistakes:
    formats, time = recipe.data.formats, recipe.data.split.time
    fields = dict(json_schema_subset.iterate_values(recipe.task.json_schema)) if recipe.task.json_schema else {}
    if formats.decimal is not None and recipe.task.kind != "extraction":
        yield ("data", "formats", "decimal"), f"is for fields that are numbers, and kind is {recipe.task.kind}"
    for name in formats.dates:
        if name != time and fields.get(name) != "string":
            yield (
                ("data", "formats", "dates", name),
                f"is neither data.split.time nor a field of text{_list_fields(fields)}",
            )
    for name, currency in formats.amounts.items():
        if fields.get(name) not in ("number", "integer"):
            yield ("data", "formats", "amounts", name), f"is no field of a number{_list_fields(fields)}"
        elif currency is not None and fields.get(f"{name.rpartition('.')[0]}.{currency}".lstrip(".")) != "string":
            yield ("data", "formats", "amounts", name), f"{currency!r} is no field of text{_list_fields(fields)}"


def _list_fields(fields: dict[str, str]) -> str:
    return f"; there are {', '.join(fields)}" if fields else ""


def _check_teacher(recipe: "Recipe") -> Mistakes:
    teacher, task = recipe.data.teacher, recipe.task
    has_probabilities = teacher is not None and teacher.baseline.uses_decision_api
    if recipe.train.soft_labels and not has_probabilities:
        message = "needs the probability of every label: data.teacher with api: decisions or systemone; leave it out"
        yield ("train", "soft_labels"), message
    if teacher is None:
        return
    key = ("data", "teacher")
    if task.task_name not in ("classification", "extraction"):
        message = (
            f"labels rows of kind classification or extraction, and this is {_describe_kind(recipe)}; leave it out"
        )
        yield key, message
    elif has_probabilities and task.task_name != "classification":
        yield (*key, "api"), f"given {teacher.api}, which chooses one of the labels, and kind is {task.kind}; set chat"
    if not recipe.privacy.data_may_leave:
        yield key, "sends rows to a provider, and privacy.data_may_leave is false; leave it out"
    if problem := _address_problem(teacher.baseline, recipe.privacy.data_may_leave):
        yield (*key, "base_url"), problem


def _check_plan(recipe: "Recipe") -> Mistakes:
    primary, metrics = recipe.compare.primary, METRICS[recipe.task.task_name]
    if primary is not None and "metric" in primary.model_fields_set and primary.metric not in metrics:
        message = f"given {primary.metric!r}, allowed for {_describe_kind(recipe)}: {', '.join(metrics)}"
        yield ("compare", "primary", "metric"), message
    not_worse_than, names = recipe.route.not_worse_than, [system.display_name for system in recipe.compare.baselines]
    if not_worse_than is not None and not_worse_than not in names:
        message = (
            f"given {not_worse_than!r}, allowed: a baseline of compare.baselines "
            f"({', '.join(names) or 'there is none'})"
        )
        yield ("route", "not_worse_than"), message
    if not_worse_than is not None and recipe.task.kind == "preference":
        yield ("route", "not_worse_than"), "API models are not evaluated on kind preference; leave it out"
    for index, baseline in enumerate(recipe.compare.baselines):
        if baseline.uses_decision_api and recipe.task.task_name != "classification":
            message = (
                f"given {baseline.api}, which chooses one of the labels, and this is {_describe_kind(recipe)}; set chat"
            )
            yield ("compare", "baselines", str(index), "api"), message
        if problem := _address_problem(baseline, recipe.privacy.data_may_leave):
            yield ("compare", "baselines", str(index), "base_url"), problem


def find_head_problem(recipe: "Recipe") -> tuple[tuple[str, ...], str] | None:
    """Return (key, message) of why no classification head can be trained for a recipe, None if one can."""
    lora, accelerate = recipe.lora, recipe.accelerate
    if recipe.task.task_name != "classification":
        message = f"given true, and this is {_describe_kind(recipe)}; a head takes kind classification with one label"
        return ("compare", "head"), f"{message} per row: leave it out"
    if lora.modifies_base:
        message = f"{lora.init_lora_weights} changes the base, and compare.head trains both adapters on one base"
        return ("lora", "init_lora_weights"), f"{message}; set true, or leave compare.head out"
    if recipe.train.shots:
        message = f"{recipe.train.shots} examples in each prompt, and a head reads the prompt without examples"
        return ("train", "shots"), f"{message}; set 0, or leave compare.head out"
    if accelerate.distributed_type == "FSDP":
        message = "FSDP shards the base, and compare.head trains in one process"
        return ("accelerate", "distributed_type"), f"{message}; take NO or MULTI_GPU, or leave compare.head out"
    return None


def _check_head(recipe: "Recipe") -> Mistakes:
    if recipe.compare.head and (problem := find_head_problem(recipe)):
        yield problem
    if recipe.compare.head_learning_rate is not None and not recipe.compare.head:
        yield ("compare", "head_learning_rate"), "goes with compare.head: true; set it, or leave this out"


def _check_route(recipe: "Recipe") -> Mistakes:
    name = recipe.route.baseline
    if name is None:
        return
    available = [baseline.display_name for baseline in recipe.compare.baselines if baseline.provider != "file"]
    if name not in available:
        yield ("route", "baseline"), f"given {name!r}, there are {', '.join(available) or 'no API models'}"
    for baseline in recipe.compare.baselines:
        if baseline.display_name == name and baseline.shots:
            yield (
                ("route", "baseline"),
                f"{name} is prompted with examples of train (shots), which are not deployed; set shots: 0",
            )
        if baseline.display_name == name and isinstance(baseline.instruction, list):
            yield ("route", "baseline"), f"{name} has several instructions; give it the one that was chosen"


def _address_problem(baseline: "Baseline", data_may_leave: bool) -> str | None:
    """Return the problem of a baseline's base_url, without the URL, which may contain a secret."""
    parts = urlsplit(baseline.base_url or "")
    if parts.username or parts.password or parts.query or parts.fragment:
        return "holds a user, a password or a query, which logs and reports would contain; name the key in api_key_env"
    if parts.scheme == "http" and not data_may_leave and not baseline.is_loopback:
        return "would send rows over plain http to another machine, and privacy.data_may_leave is false; use https"
    return None


def _describe_kind(recipe: "Recipe") -> str:
    suffix = " with several labels a row" if recipe.task.task_name == "multilabel" else ""
    return f"kind {recipe.task.kind}{suffix}"


def _check_hardware(recipe: "Recipe") -> Mistakes:
    train, accelerate = recipe.train, recipe.accelerate
    if train.batch_size < accelerate.num_processes:
        message = f"{train.batch_size} examples are fewer than accelerate.num_processes, {accelerate.num_processes}"
        yield ("train", "batch_size"), f"{message}; set at least {accelerate.num_processes}"
    if accelerate.use_cpu and train.optim.startswith("paged_"):
        unpaged = (
            train.optim.removeprefix("paged_")
            .replace("adamw_32bit", "adamw_torch")
            .replace("ademamix_32bit", "ademamix")
        )
        yield ("train", "optim"), f"{train.optim} pages between GPU and main memory; on a CPU set {unpaged}"
    if accelerate.distributed_type == "FSDP":
        if uses_bitsandbytes(train.optim):
            yield ("train", "optim"), f"{train.optim} of bitsandbytes does not support sharded tensors; set adamw_torch"
        if recipe.model.quantization == "int8":
            yield ("model", "quantization"), "int8 weights cannot be sharded; set nf4 or none"
        if recipe.lora.modifies_base:
            message = f"{recipe.lora.init_lora_weights} rewrites the base, which FSDP loads in parts"
            yield ("lora", "init_lora_weights"), f"{message}; set true, or HARDWARE=multi-gpu"


def _check_adapter(recipe: "Recipe") -> Mistakes:
    lora, quantization = recipe.lora, recipe.model.quantization
    key = ("lora", "init_lora_weights")
    if lora.init_lora_weights == "loftq" and quantization == "none":
        yield key, "loftq compensates the error of quantization; set model.quantization: nf4 or int8"
    if lora.init_lora_weights == "mica" and quantization != "none":
        yield key, "mica needs weights that are not quantized; set model.quantization: none"
    if lora.modifies_base and quantization != "none" and recipe.task.kind == "preference":
        message = f"with {lora.init_lora_weights} on {quantization} weights training would not begin at its reference"
        yield key, f"{message}, the base; set true, or model.quantization: none"
    if lora.use_dora and quantization == "int8":
        yield ("lora", "use_dora"), "PEFT does not train DoRA on int8 weights; set model.quantization: nf4 or none"
    if lora.unservable_reason and recipe.serve.model == "adapter":
        yield ("serve", "model"), f"lora.{lora.unservable_reason}; set merged, or leave it out"
