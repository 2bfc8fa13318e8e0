"""The self-check of packing: models that follow the mask pass, and one that does not is trained row by row."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaAttention

from insource.system import atomic_files
from insource.tracking import run as runs
from insource.tracking.manifest import StageRecord
from tests.helpers import commands
from tests.train.test_packing import CONFIGS, COST, PAIRS, PREFIX, ROWS, STRANGER
from tests.train.test_trainer import recipe, tiny_model  # noqa: F401 - a fixture among them
from train.evaluate import packing_check
from train.loop.losses import log_probabilities
from train.model import base
from train.packing import collate, packing_plan, self_check
from train.packing.attention_blocks import SHARED_PREFIX
from train.packing.packing_plan import Pack, PackingPlan, TokenizedRow
from train.packing.self_check import PackingDifference, PassResult

# What Python runs first in the processes of a command: Llama computes attention in its own way, causally over the whole
# pack, whatever mask and implementation training asks for. Decoding keeps its own attention.
OWN_ATTENTION = """\
import sys
if "train.worker" in " ".join(sys.orig_argv):
    from transformers.models.llama.modeling_llama import LlamaAttention
    plain = LlamaAttention.forward
    def forward(self, *args, **given):
        name = self.config._attn_implementation
        if name == "shared_cache":
            return plain(self, *args, **given)
        self.config._attn_implementation = "sdpa"
        try:
            return plain(self, *args, **{**given, "attention_mask": None})
        finally:
            self.config._attn_implementation = name
    LlamaAttention.forward = forward
"""


@contextmanager
def own_attention() -> Iterator[None]:
    """Makes Llama's attention ignore mask and implementation inside of the block."""
    plain = LlamaAttention.forward

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        name, self.config._attn_implementation = self.config._attn_implementation, "sdpa"
        try:
            return plain(self, *args, **{**given, "attention_mask": None})
        finally:
            self.config._attn_implementation = name

    LlamaAttention.forward = forward
    try:
        yield
    finally:
        LlamaAttention.forward = plain


def make_plan(rows: Sequence[TokenizedRow], pack_tokens: int = 4096) -> PackingPlan:
    return packing_plan.build_packing_plan(rows, "shared_prefix", pack_tokens, len(rows), COST)


def measure(model: Any, pack: Pack, **kwargs: Any) -> PackingDifference:
    return self_check.measure_difference(
        model, pack, log_probabilities=log_probabilities, attention=SHARED_PREFIX, pad_token_id=0, **kwargs
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_models_that_follow_the_mask_pass(name: str, checkpointing: bool) -> None:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for rows in (ROWS, PAIRS):
        difference = measure(model, Pack(tuple(rows), len(PREFIX)), checkpointing=checkpointing)
        assert difference.log_probability < 1e-5 and difference.gradient < 1e-5
        assert not difference.exceeds("float32")


def test_rounding_in_bfloat16_passes_and_a_mask_that_is_ignored_does_not() -> None:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    pack = Pack(tuple(ROWS), len(PREFIX))

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    assert not measure(model, pack, forward_context=autocast).exceeds("bfloat16")
    with own_attention():
        difference = measure(model, pack)
        assert difference.exceeds("float32") and difference.exceeds("bfloat16")
        assert measure(model, pack, forward_context=autocast).exceeds("bfloat16")


def test_a_base_that_is_sure_of_its_answers_passes_in_bfloat16() -> None:
    """A step of a logit of 20, 0.125, is half of log-probabilities of 0.2: rounding, no row that sees another."""
    row, packed = torch.tensor([-0.2, -0.2, -0.1, -0.3]), torch.tensor([-0.2, -0.075, -0.1, -0.3])
    ids, gradients = torch.arange(4), torch.ones(4, 2)
    difference = self_check.compare_passes(PassResult(packed, ids, gradients), PassResult(row, ids, gradients))
    assert difference.log_probability > 0.25 and difference.log_probability_nats == pytest.approx(0.0625)
    assert not difference.exceeds("bfloat16") and difference.exceeds("float32")
    # Gradients that differ are no rounding, and neither is a difference of several steps.
    assert replace(difference, gradient=0.2).exceeds("bfloat16")
    assert replace(difference, log_probability_nats=0.5).exceeds("bfloat16")


def test_a_difference_that_is_not_a_number_fails() -> None:
    assert PackingDifference(float("nan"), 0.0).exceeds("bfloat16")
    assert PackingDifference(0.0, float("inf")).exceeds("float32")


def test_the_check_leaves_the_model_and_random_states_as_they_were() -> None:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]).train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    random_state = torch.get_rng_state()
    measure(model, Pack(tuple(ROWS), len(PREFIX)), checkpointing=True)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert not model.is_gradient_checkpointing


def test_the_checked_pack_has_a_few_rows_of_the_largest_group() -> None:
    pack = self_check.select_check_pack([*ROWS, STRANGER], make_plan([*ROWS, STRANGER]))
    assert pack is not None and pack.prefix == len(PREFIX)
    assert STRANGER not in pack.rows and len(pack.rows) == len(ROWS)
    long_rows = [TokenizedRow(f"r{n}", [*range(3000), n, 1], ([5, 2],)) for n in range(40)]
    pack = self_check.select_check_pack(long_rows, make_plan(long_rows))
    assert pack is not None and len(pack.rows) == self_check.MIN_ROWS
    assert self_check.select_check_pack(long_rows, make_plan(long_rows, pack_tokens=3002)) is None
    assert self_check.select_check_pack(long_rows[:1], make_plan(long_rows[:1])) is None


def test_the_pack_for_flex_attention_is_as_long_as_those_of_an_update_where_they_are_long_enough() -> None:
    rows = [TokenizedRow(str(row), [*range(700), 5, row % 50, 9], ([50, 2],)) for row in range(400)]
    plan, limits = make_plan(rows), self_check.FLEX_LIMITS
    assert limits.min_tokens == collate.MIN_FLEX_TOKENS
    whole = self_check.select_check_pack(rows, plan, limits, 400)
    # 47 rows of 705 tokens are as many as 32,768 tokens allow one by one.
    assert whole is not None and 40 <= len(whole.rows) <= 47
    short = self_check.select_check_pack(rows, plan, limits, 16)
    assert short is not None and len(short.rows) == 16 and short.tokens < collate.MIN_FLEX_TOKENS
    longer = [replace(row, prompt_ids=[*row.prompt_ids, *range(40)]) for row in rows]
    pack = self_check.select_check_pack(longer, make_plan(longer), limits, 64)
    assert pack is not None and collate.MIN_FLEX_TOKENS <= pack.tokens < collate.MIN_FLEX_TOKENS + 50


def verify(model_folder: Path, runs_folder: Path, messages: list[str], *settings: str) -> PackingPlan:
    recipe_of_run = recipe(model_folder, *settings)
    model = base.load_base_model(recipe_of_run)
    return packing_check.verify_packing(recipe_of_run, runs_folder, model, ROWS, make_plan(ROWS), 0, messages.append)


def test_a_base_is_checked_once(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages: list[str] = []
    assert verify(tiny_model, tmp_path, messages).mode == "shared_prefix"
    assert "packing   checked on this base" in capsys.readouterr().err
    (record_path,) = (tmp_path / packing_check.CHECKS_FOLDER).iterdir()
    record = atomic_files.read_json(record_path)
    assert record["passed"] and record["gradient_difference"] < 1e-4 and record["packages"]["torch"]
    with own_attention():
        assert verify(tiny_model, tmp_path, messages).mode == "shared_prefix", "the record was not read"
    assert capsys.readouterr().err == "" and messages == []
    # Another type of matrix products is another check.
    verify(tiny_model, tmp_path, messages, "accelerate.mixed_precision=bf16")
    assert len(list((tmp_path / packing_check.CHECKS_FOLDER).iterdir())) == 2


def test_a_base_that_ignores_the_mask_is_trained_row_by_row_also_the_next_time(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    messages: list[str] = []
    with own_attention():
        plan = verify(tiny_model, tmp_path, messages)
    assert plan.mode == "none" and plan.prefixes == (0,)
    assert len(messages) == 1
    assert messages[0].startswith("train.packing: none, not shared_prefix: ")
    assert "computes a pack differently from its rows" in messages[0]
    assert verify(tiny_model, tmp_path, messages).mode == "none"
    assert messages[1] == messages[0]


def test_too_little_memory_for_the_check_is_reported_and_not_kept(
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raise_out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.10 GiB")

    messages: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(transformers.LlamaForCausalLM, "forward", raise_out_of_memory)
        assert verify(tiny_model, tmp_path, messages).mode == "shared_prefix"
    assert messages == ["the self-check of packing ran out of memory: packs are used unchecked on this base"]
    assert verify(tiny_model, tmp_path, []).mode == "shared_prefix"
    assert len(list((tmp_path / packing_check.CHECKS_FOLDER).iterdir())) == 1


def train(folder: Path, small_recipe: Path) -> tuple[str, StageRecord, runs.Run]:
    """Trains two updates; returns stderr, the manifest's entry and the run."""
    completed = commands.run_command(folder, "train", small_recipe, *commands.TRAIN_SETTINGS)
    assert completed.returncode == 0, completed.stderr
    run = runs.Run((folder / "small" / "latest").resolve())
    return completed.stderr, run.stage("train"), run


@pytest.mark.slow(minutes=1)
def test_the_adapter_has_the_same_bytes_with_and_without_the_check(
    small_recipe: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The other training is the one that tests of serving share: its base had not been checked before."""
    checked = commands.copy_exported_runs(tmp_path_factory, small_recipe, "checked")
    assert list((checked / packing_check.CHECKS_FOLDER).iterdir())
    shutil.copytree(checked / packing_check.CHECKS_FOLDER, tmp_path / "unchecked" / packing_check.CHECKS_FOLDER)
    stderr, _, unchecked = train(tmp_path / "unchecked", small_recipe)
    assert "packing   checked" not in stderr
    path = "adapter/adapter_model.safetensors"
    assert atomic_files.sha256(unchecked.folder / path) == atomic_files.sha256(checked / "small" / "latest" / path)


@pytest.mark.slow(minutes=1)
def test_a_training_on_a_base_that_ignores_the_mask_says_so_and_ends(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(OWN_ATTENTION, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stderr, stage, _ = train(tmp_path / "runs", small_recipe)
    (message,) = [line for line in stage.fallbacks if "computes a pack differently" in line]
    assert stderr.count(f"fallback  {message}") == 1
    assert stage.state == "done"
