"""The trainer: whole runs of updates, not single gradients."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from insource.config.base_models import POCKET
from insource.config.errors import StageError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.tracking import metrics
from tests.conftest import ROOT
from tests.train.test_packing import COST, PREFIX, TINY
from train.evaluate import log_likelihood
from train.loop import checkpoints, fit, losses
from train.loop.metrics_callback import MetricsCallback
from train.loop.trainer import PackTrainer
from train.model import base
from train.packing import packing_plan, sampler
from train.packing.collate import collate_pack
from train.packing.dataset import TrainingSet
from train.packing.packing_plan import Pack, PackCost, TokenizedRow


def ragged_rows(count: int) -> list[TokenizedRow]:
    """Rows behind one prefix whose answer depends on their text, ragged."""
    return [
        TokenizedRow(f"r{index}", [*PREFIX, *range(5, 6 + index % 7), 30 + index % 12], ([50 + index % 12, 2],))
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(POCKET).save_pretrained(folder)
    return folder


def recipe(base_model: Path, *settings: str) -> Recipe:
    overrides = [f"model.base={base_model}", "model.quantization=none", "lora.r=8", "train.logging_steps=1"]
    # What must not matter is told apart from rounding in float32.
    overrides.append("accelerate.mixed_precision=no")
    return load("classifier", [*overrides, *settings], "cpu").recipe


def train_without_run(
    settings: Recipe,
    folder: Path,
    training_rows: Sequence[TokenizedRow],
    kind: packing_plan.PackingMode = "shared_prefix",
    evaluator: Callable[[], dict[str, float]] = dict,
    announce: Callable[[str], None] = print,
    cost: PackCost = COST,
) -> tuple[Any, list[dict[str, Any]]]:
    """Trains as fit.py does, without a run around it; returns the trainer and the rows of metrics.jsonl."""
    model = base.add_adapter(base.load_base_model(settings), settings.lora, settings.train.seed)
    train = settings.train
    updates = sampler.batch_indices(
        len(training_rows), train.batch_size, train.num_train_epochs, train.max_steps, train.seed
    )
    plan = packing_plan.build_packing_plan(training_rows, kind, train.pack_tokens, train.batch_size, cost)
    training_set = TrainingSet(
        training_rows, plan, updates, "prefer" if len(training_rows[0].completions) > 1 else "imitate"
    )
    folder.mkdir(parents=True, exist_ok=True)
    recorder = MetricsCallback(folder / "metrics.jsonl", None, 1, lambda updates_done, note="": None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(POCKET)
    trainer = fit.build_trainer(settings, str(folder), model, tokenizer, training_set, evaluator, announce, recorder)
    trainer.train()
    return trainer, metrics.read_rows(folder / "metrics.jsonl")


def logged_losses(logged: Sequence[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in logged if "loss" in row])


@pytest.mark.slow
def test_two_hundred_updates_of_packs_have_the_losses_of_separate_rows(tiny_model: Path, tmp_path: Path) -> None:
    settings = recipe(
        tiny_model, "train.max_steps=200", "train.save_steps=1000", "train.learning_rate=5e-3", "train.batch_size=8"
    )
    curves = {}
    for kind in ("none", "shared_prefix", "bfd"):
        _, logged = train_without_run(settings, tmp_path / kind, ragged_rows(96), kind)
        curves[kind] = logged_losses(logged)
    assert len(curves["none"]) == 200
    assert curves["none"][-20:].mean() < 0.9 * curves["none"][:20].mean(), "nothing was learnt: nothing was compared"
    for kind in ("shared_prefix", "bfd"):
        torch.testing.assert_close(curves[kind], curves["none"], rtol=1e-3, atol=1e-4)


def test_training_stops_when_the_metric_no_longer_improves_and_keeps_the_best(tiny_model: Path, tmp_path: Path) -> None:
    settings = recipe(
        tiny_model,
        "train.max_steps=40",
        "train.save_steps=2",
        "train.eval_strategy=steps",
        "train.eval_steps=2",
        "train.early_stopping_patience=2",
        "train.load_best_model_at_end=true",
        "train.metric_for_best_model=accuracy",
    )
    head_weights: list[torch.Tensor] = []
    accuracies = iter([0.5, 0.8, 0.7, 0.6, 0.9])

    def evaluator() -> dict[str, float]:
        head_weights.append(weights(holder[0]))
        return {"accuracy": next(accuracies)}

    holder: list[Any] = []
    evaluate_model = PackTrainer.evaluate

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        holder[:] = [self.model]
        return evaluate_model(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(PackTrainer, "evaluate", evaluate)
        trainer, logged = train_without_run(settings, tmp_path, ragged_rows(64), evaluator=evaluator)
    assert trainer.state.global_step == 8, "two evaluations after the best one"
    assert trainer.state.best_global_step == 4
    assert torch.equal(weights(trainer.model), head_weights[1])
    assert (tmp_path / "checkpoint-4").is_dir()
    assert [row["validation/accuracy"] for row in logged if "validation/accuracy" in row] == [0.5, 0.8, 0.7, 0.6]


def weights(model: Any) -> torch.Tensor:
    return torch.cat(
        [parameter.detach().flatten().clone() for parameter in model.parameters() if parameter.requires_grad]
    )


def test_a_loss_that_is_no_number_stops_training_and_names_update_and_rows(tiny_model: Path, tmp_path: Path) -> None:
    broken_base = tmp_path / "broken"
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_model)
    # One embedding, of a token that only some rows have.
    model.model.embed_tokens.weight.data[36] = float("nan")
    model.save_pretrained(broken_base)
    settings = recipe(broken_base, "train.max_steps=10", "train.save_steps=1", "train.batch_size=2")
    training_rows = ragged_rows(24)
    with pytest.raises(StageError, match=r"update (\d+) the loss is nan") as error:
        train_without_run(settings, tmp_path / "run", training_rows)
    update = sampler.batch_indices(24, 2, 1, 10, settings.train.seed)
    update_index = next(
        update_index
        for update_index, row_indices in enumerate(update)
        if any(36 in training_rows[index].prompt_ids for index in row_indices)
    )
    assert f"update {update_index + 1} " in str(error.value)
    assert all(training_rows[index].id in str(error.value) for index in update[update_index])
    checkpoint = checkpoints.find_latest_valid(tmp_path / "run").latest
    assert (checkpoints.step(checkpoint) if checkpoint else 0) == update_index


SHORT_OF_MEMORY = """
import resource, sys, torch
from pathlib import Path
from tests.train.test_trainer import recipe, rows, trained, weights
from insource.config.base_models import POCKET
from train.packing.packing_plan import PackCost

folder = Path(sys.argv[1])
told = recipe(POCKET, "train.max_steps=2", "train.batch_size=128", "train.pack_tokens=8192", "train.save_steps=100")
long = [type(row)(row.id, row.prompt_ids + [40] * 12, row.completions) for row in rows(256)]
if len(sys.argv) > 2:
    trained(recipe(POCKET, "train.max_steps=1", "train.batch_size=8"), folder / "warm", long[:8])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
# As if nothing cost more with its length: one pack an update.
one_pack = PackCost(1e9, 1e12)
trainer, _ = trained(told, folder / "run", long, announce=lambda told: print(f"announced: {told}"), cost=one_pack)
torch.save(weights(trainer.model), folder / "weights.pt")
"""


@pytest.mark.slow
def test_short_of_memory_packs_are_halved_and_the_updates_stay_the_same(tmp_path: Path) -> None:
    # In float32: oneDNN, which multiplies bfloat16, cannot even compile its code under a limit of the address space.
    def run(name: str, *args: str) -> tuple[str, torch.Tensor]:
        argv = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / name), *args]
        completed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout, torch.load(tmp_path / name / "weights.pt", weights_only=True)

    output, limited = run("limited", str(200 * 2**20))
    assert "announced: out of memory with" in output, "the limit was not low enough to be a test"
    assert "the same 128 an update" in output
    unlimited_output, unlimited = run("free")
    assert "announced" not in unlimited_output
    torch.testing.assert_close(limited, unlimited, rtol=1e-3, atol=1e-4)


FREED = """
import resource, sys
import torch
from train.device import malloc

if sys.argv[1:]:
    malloc.disable_malloc_trim()
def pass_():
    torch.ones(16 * 2**20).add_(1)  # 64 MiB, freed at once
for _ in range(8):
    pass_()  # until the heap has grown to what passes need
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    pass_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_a_pass_has_freed_is_not_taken_from_the_system_again() -> None:
    def faults(*args: str) -> int:
        argv = [sys.executable, "-c", FREED, *args]
        return int(subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    default_faults, kept_faults = faults(), faults("keep")
    assert default_faults > 1000, "malloc keeps it by itself: train/device/malloc.py has nothing to do"
    assert kept_faults < default_faults / 10


def test_the_loss_of_pairs_is_that_of_trl(tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=4, use_cpu=True, report_to="none", bf16=False
    )
    training_recipe = recipe(POCKET)
    model = base.add_adapter(base.load_base_model(training_recipe), training_recipe.lora, seed=3)
    texts = [
        ("where is it", "on its way", "no idea"),
        ("cancel", "done, it is cancelled", "never"),
        ("hello", "hi", "ok"),
    ]
    turns = [("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")]
    data = Dataset.from_list(
        [
            {name: [{"role": role, "content": text}] for (name, role), text in zip(turns, example, strict=True)}
            for example in texts
        ]
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(POCKET)
    dpo_trainer = DPOTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    # Now, because TRL takes the adapter as it was given as the reference.
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    batch = next(iter(dpo_trainer.get_train_dataloader()))
    expected = dpo_trainer.compute_loss(dpo_trainer.model, dict(batch))

    def row(index: int, half: int) -> TokenizedRow:
        """Chosen and rejected of a row as TRL tokenised them; they are the two halves of its batch."""
        ids, is_completion = batch["input_ids"], batch["completion_mask"].bool()
        is_attended = batch["attention_mask"].bool()
        prompt = ids[index][is_attended[index] & ~is_completion[index]].tolist()
        return TokenizedRow(
            str(index),
            prompt,
            tuple(ids[position][is_completion[position]].tolist() for position in (index, index + half)),
        )

    pairs = [row(index, len(texts)) for index in range(len(texts))]
    plan = packing_plan.build_packing_plan(pairs, "shared_prefix", 4096, 4, COST)
    # A model that TRL has not touched, with the same adapter.
    adapted = base.add_adapter(base.load_base_model(training_recipe), training_recipe.lora, seed=3)
    adapted.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if ".ref." not in name})
    with adapted.disable_adapter():
        reference = log_likelihood.compute_log_likelihoods(adapted, pairs, plan, pad_token_id=0)
    pairs = [
        replace(pair, reference=log_probabilities) for pair, log_probabilities in zip(pairs, reference, strict=True)
    ]
    summed_loss, _ = losses.dpo_loss(
        adapted, collate_pack(Pack(tuple(pairs), 0), "shared_prefix", adapted.device, 0), 0.3
    )
    torch.testing.assert_close(summed_loss / len(pairs), expected, rtol=1e-4, atol=1e-5)
