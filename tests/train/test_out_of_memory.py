"""Too little memory, simulated: the model raises what CUDA's allocator raises, for passes of more than some tokens."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from insource.config.errors import StageError
from insource.config.load import load
from insource.system import atomic_files
from insource.tasks import classification
from insource.tracking import run as runs
from insource.tracking.manifest import StageRecord
from tests.helpers import commands
from tests.helpers.run_manifest import write_manifest
from tests.train.test_constrained_decoding import SPEC, prompts
from tests.train.test_packing import COST
from tests.train.test_trainer import ragged_rows, recipe, tiny_model, train_without_run  # noqa: F401 - a fixture among them
from train.device import out_of_memory
from train.evaluate import log_likelihood
from train.evaluate.constrained_decoding import decode_answers
from train.export import adapter, merge
from train.loop import fit
from train.loop.signals import StopRequest
from train.model import base
from train.packing import attention, packing_plan
from train.packing.dataset import TrainingSet

# What Python runs first in the processes that a command starts.
SIMULATED = """\
import sys
if "train.worker" in " ".join(sys.orig_argv):
    import torch
    from transformers import LlamaForCausalLM
    plain = LlamaForCausalLM.forward
    def forward(self, *args, **given):
        if not self.training and given["input_ids"].numel() > {tokens}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.10 GiB")
        return plain(self, *args, **given)
    LlamaForCausalLM.forward = forward
"""


@contextmanager
def limit_pass_tokens(model: Any, tokens: int, error: Callable[[], RuntimeError]) -> Iterator[None]:
    """Has a model raise an error in every pass of more than so many tokens."""
    forward_pass = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].numel() > tokens:
            raise error()
        return forward_pass(*args, **kwargs)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


@pytest.mark.parametrize(
    ("error", "is_memory_error"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (torch.distributed.DistBackendError("NCCL error: Last error:\nCuda failure 2 'out of memory'"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("InductorError: No valid triton configs. OutOfMemoryError: out of resource"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_means_too_little_memory(error: BaseException, is_memory_error: bool) -> None:
    assert out_of_memory.is_out_of_memory(error) == is_memory_error


@pytest.mark.parametrize("text", ["CUDA out of memory", "CUDA error: out of memory"])
def test_decoding_halves_its_batches_and_answers_the_same(text: str, tokenizer: Any) -> None:
    model = base.load_base_model(load("classifier", (), "cpu").recipe)
    prompt_ids = prompts(tokenizer) * 8
    expected = decode_answers(model, tokenizer, prompt_ids, classification.grammar(SPEC))
    messages: list[str] = []
    progress: list[int] = []
    kind = torch.OutOfMemoryError if text.startswith("CUDA out") else RuntimeError
    with limit_pass_tokens(model, max(map(len, prompt_ids)), lambda: kind(text)):
        actual = decode_answers(
            model,
            tokenizer,
            prompt_ids,
            classification.grammar(SPEC),
            on_progress=lambda rows, note: progress.append(rows),
            on_fallback=messages.append,
        )
    assert [answer.token_ids for answer in actual] == [answer.token_ids for answer in expected]
    assert messages and all(message.endswith("from here on, the same answers") for message in messages)
    assert progress[-1] == len(prompt_ids) and progress == sorted(progress)
    with limit_pass_tokens(model, 1, lambda: kind(text)), pytest.raises((StageError, RuntimeError)) as error:
        decode_answers(model, tokenizer, prompt_ids[:1], classification.grammar(SPEC))
    assert out_of_memory.is_out_of_memory(error.value) or "decoding one row ran out of memory" in str(error.value)


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize(("tokens", "succeeds"), [(400, True), (3, False)])
def test_a_training_on_a_small_card_ends_with_its_adapter_or_in_words(
    tokens: int, succeeds: bool, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SIMULATED.format(tokens=tokens), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    completed = commands.run_command(tmp_path / "runs", "train", small_recipe)
    (manifest,) = (tmp_path / "runs" / "small").glob("2*/manifest.json")
    stage = atomic_files.read_json(manifest)["stages"]["train"]
    if succeeds:
        assert completed.returncode == 0, completed.stderr
        assert (manifest.parent / "adapter" / "adapter_model.safetensors").is_file()
        assert stage["state"] == "done" and (manifest.parent / "reference.jsonl").is_file()
        assert any("rows decoded at once" in message for message in stage["fallbacks"])
        return
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    assert "failed[INS-T016]: out of memory: CUDA out of memory" in completed.stderr
    assert stage["state"] == "failed" and stage["exit_reason"].startswith("out of memory")


def raise_once(error: Exception) -> Callable[..., Any]:
    """Returns a forward pass of Llama that raises the error the first time."""
    forward_pass, errors = transformers.LlamaForCausalLM.forward, [error]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop()
        return forward_pass(*args, **kwargs)

    return forward


@pytest.mark.slow
def test_training_attends_by_blocks_where_flex_attention_cannot_be_compiled(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor.exc import InductorError

    monkeypatch.setattr(attention, "_flex_disabled", False)
    settings = recipe(tiny_model, "train.max_steps=2", "train.batch_size=4")
    _, expected = train_without_run(settings, tmp_path / "whole", ragged_rows(8))
    error = InductorError(RuntimeError("Failed to find C compiler."), None)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", raise_once(error))
    messages: list[str] = []
    _, actual = train_without_run(settings, tmp_path / "again", ragged_rows(8), announce=messages.append)
    (message,) = messages
    assert "Failed to find C compiler" in message and message.endswith("long packs attend by blocks of rows")
    assert [line["loss"] for line in actual if "loss" in line] == [line["loss"] for line in expected if "loss" in line]


def test_log_likelihoods_are_computed_by_blocks_where_flex_attention_cannot_be_compiled(
    tiny_model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_flex_disabled", False)
    model = base.load_base_model(recipe(tiny_model))
    pairs = [replace(row, completions=([50, 2], [51, 2])) for row in ragged_rows(6)]
    plan = packing_plan.build_packing_plan(pairs, "shared_prefix", 4096, 6, COST)
    expected = log_likelihood.compute_log_likelihoods(model, pairs, plan, 0)
    error = RuntimeError("InductorError: No valid triton configs. OutOfMemoryError: out of resource")
    messages: list[str] = []

    def compute() -> list[tuple[float, ...]]:
        return log_likelihood.compute_log_likelihoods(model, pairs, plan, 0, on_fallback=messages.append)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", raise_once(error))
    assert compute() == expected and len(messages) == 1
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", raise_once(RuntimeError("CUDA error: an error")))
    with pytest.raises(RuntimeError, match="an error"):
        compute()


@pytest.mark.slow
def test_after_training_its_optimizer_and_gradients_take_no_memory(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """What decodes afterwards has the memory that validation before training had, and the adapter's."""
    settings = recipe(tiny_model, "train.max_steps=1", "train.batch_size=4")
    model = base.add_adapter(base.load_base_model(settings), settings.lora, settings.train.seed)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    plan = packing_plan.build_packing_plan(ragged_rows(4), "shared_prefix", 4096, 4, COST)
    training_set = TrainingSet(ragged_rows(4), plan, [[0, 1, 2, 3]], "imitate")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    fit.train_adapter(
        settings, tmp_path, model, tokenizer, training_set, dict, lambda message: None, StopRequest(), None
    )
    out_of_memory.release_memory()
    optimizers = [item for item in gc.get_objects() if isinstance(item, torch.optim.Optimizer)]
    held = {id(parameter) for item in optimizers for group in item.param_groups for parameter in group["params"]}
    assert trained and not held & trained
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("usable", [True, False])
def test_a_base_that_the_gpu_cannot_hold_unquantized_is_merged_in_main_memory(
    usable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same where PyTorch can use no GPU: in the type of the training, and not in silence."""
    settings = load("classifier", ["model.quantization=none", "lora.r=2"], "cpu").recipe
    gpu_settings = settings.model_copy(update={"accelerate": settings.accelerate.model_copy(update={"use_cpu": False})})
    run = runs.Run(tmp_path / "classifier" / "20260101T000000Z-0000")
    (run.folder / "adapter").mkdir(parents=True)
    write_manifest(run.folder, {"export": StageRecord(state="running")})
    adapter._save_weights(
        base.add_adapter(base.load_base_model(settings), settings.lora, 1), settings, run.folder / "adapter", None
    )
    from_pretrained, device_maps = transformers.AutoModelForCausalLM.from_pretrained, []

    def on_small_card(*args: Any, **kwargs: Any) -> Any:
        device_maps.append(kwargs["device_map"])
        if kwargs["device_map"] != {"": "cpu"}:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return from_pretrained(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", on_small_card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    model = merge.merge_adapter(run, gpu_settings, "published")
    assert device_maps == ([{"": 0}] if usable else []) + [{"": "cpu"}] and not hasattr(model, "peft_config")
    assert model.dtype == torch.bfloat16
    assert "fallback  merged in main memory" in capsys.readouterr().err
    assert ("the GPU has too little" if usable else "PyTorch can use no GPU") in run.stage("export").fallbacks[0]
