"""What one sees of a training: the header, the progress in a log file, the rows that are recorded, the picture."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insource.system import atomic_files, progress_bar
from insource.system.progress_bar import format_duration
from insource.tracking import metrics
from train.loop.metrics_callback import MetricsCallback, show_progress
from train.report import learning_curve, run_header

FACTS = run_header.HeaderInfo(
    base="pocket/model",
    quantization="nf4",
    compute_dtype="float32",
    parameters=5_300_000,
    trainable=900_000,
    adapter="LoRA r=32",
    train_rows=1620,
    validation_rows=302,
    longest_row_tokens=187,
    batch_size=16,
    processes=1,
    packing="shared_prefix",
    tokens_per_update=1130.6,
    unpacked_tokens_per_update=9120.0,
    packs_per_update=2.0,
    updates=306,
    epochs=3.0,
    rejected={"empty_text": 1},
    dropped={"conflict": 12, "duplicate": 51},
    memory=run_header.MemoryEstimate(6_500_000, 14_400_000, 189_500_000, 566, 880_000_000),
)


def test_the_header_tells_what_is_trained_what_the_prefix_saves_and_what_was_left_out() -> None:
    assert run_header.header_lines(FACTS) == [
        "base      pocket/model, nf4, 5,300,000 parameters, multiplied in float32",
        "adapter   LoRA r=32: 900,000 trainable parameters (14.52%)",
        "rows      1,620 to train on, 302 to validate on, the longest of 187 tokens",
        "left out  1 rejected (1 empty_text), 63 dropped (12 conflict, 51 duplicate); see data/data.html",
        "batch     16 examples an update",
        "packing   shared_prefix: 1,131 tokens an update instead of 9,120 (8.1 times fewer), in 2 packs",
        "updates   306 in 3 epochs",
        "memory    about 1.1 GB a process (estimate): weights 6 MB, adapter 14 MB, a pack of 566 tokens 0.2 GB, "
        "the process itself 0.9 GB",
        "time      known after 5 updates",
    ]


def test_the_header_of_a_run_that_goes_on_tells_the_time_that_is_left_at_its_own_rate() -> None:
    from dataclasses import replace

    facts = replace(
        FACTS, updates_done=206, examples_per_second=20.0, processes=2, class_balance="classes drawn equally"
    )
    lines = run_header.header_lines(replace(facts, packing="none", rejected={}, dropped={}))
    assert "batch     16 examples an update over 2 processes" in lines
    assert "weighting classes drawn equally" in lines
    assert "packing   each row separately: 1,131 tokens an update" in lines
    assert "updates   306 in 3 epochs, 206 of them done" in lines
    assert "time      about 80 s for the 100 updates left, at the 20 examples/s of before" in lines
    assert not [line for line in lines if line.startswith("left out")]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_of_a_pack_is_estimated_near_what_autograd_keeps(kind: str, checkpointing: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "attn_implementation": "sdpa"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads))
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    tokens, answers = 512, 20
    parameter_pointers = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Any] = {}

    def save_tensor(tensor: Any) -> Any:
        if (storage := tensor.untyped_storage()).data_ptr() not in parameter_pointers:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save_tensor, lambda tensor: tensor):
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
        answer_positions = torch.arange(tokens - answers, tokens)
        ids = torch.arange(tokens)[None]
        model(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False, logits_to_keep=answer_positions)
    saved_bytes = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    text = model.config.get_text_config()
    # The estimate has a layer in flight (two with checkpointing), the boolean mask and the logits besides what is kept.
    pack = {"pack_tokens": tokens, "answer_tokens": answers, "mask_pairs": tokens * tokens}
    estimated = run_header.estimate_memory(model, **pack, checkpointing=checkpointing).pack_bytes
    layer = run_header.estimate_memory(model, **pack, checkpointing=False).pack_bytes / 7
    expected = estimated - (2 if checkpointing else 1) * layer - answers * text.vocab_size * 12
    assert saved_bytes / 1.5 < expected < saved_bytes * 1.5


def test_four_bit_weights_are_counted_with_their_scales() -> None:
    from insource.config.load import load
    from train.model import base

    def counted(quantization: str) -> tuple[int, int]:
        recipe = load("classifier", [f"model.quantization={quantization}"], "cpu").recipe
        model = base.add_adapter(base.load_base_model(recipe), recipe.lora, 1)
        text = model.config
        inner = text.hidden_size * (2 * text.hidden_size + 2 * text.hidden_size // 2 + 3 * text.intermediate_size)
        return run_header.weight_bytes(model), text.num_hidden_layers * inner

    (unquantized, linear), (packed, _) = counted("none"), counted("nf4")
    # Half a byte a weight, a byte for 64 of them, a float32 for 256 of those.
    assert unquantized - packed == pytest.approx(linear * (4 - 0.5 - 1 / 64 - 4 / (64 * 256)), rel=0.01)


@given(st.integers(1, 5000), st.data())
def test_a_log_file_gets_quarters_whatever_the_total(total: int, data: st.DataObject) -> None:
    import contextlib
    import io

    resumed_at = data.draw(st.integers(0, total - 1))
    steps = data.draw(st.lists(st.integers(resumed_at + 1, total), unique=True, max_size=50).map(sorted))
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), show_progress("training", total, resumed_at) as advance:
        for updates in [*steps, total]:
            advance(updates, "loss 1.000")
    lines = stderr.getvalue().splitlines()
    assert 1 <= len(lines) <= 4
    assert lines[-1].startswith(f"training  {total:,}/{total:,}  loss 1.000  ")


def test_a_log_file_is_told_the_time_left_as_soon_as_it_can_be_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "MIN_SECONDS_LEFT", 0)
    with show_progress("training", 1000) as advance:
        for updates in range(1, 101):
            advance(updates)
            with show_progress("validating", 3) as inner:
                inner(3)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training  5/1,000  \d+ s so far, about \d+ s left", line)


def test_a_log_file_has_a_line_before_the_first_batch_is_complete(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "MIN_SECONDS_FOR_ETA", 0)
    with show_progress("untuned", 66) as advance:
        for token in range(1, 4):
            advance(0, f"64 rows at token {token} of at most 336")
        advance(64)
        advance(66)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "untuned   0/66  64 rows at token 1 of at most 336  0 s so far"
    assert lines[1:] == ["untuned   64/66  0 s so far", "untuned   66/66  0 s"]


def test_durations_are_told_as_one_says_them() -> None:
    durations = [format_duration(seconds) for seconds in (0.4, 48, 119, 750, 12_000, 187_200)]
    assert durations == ["0 s", "48 s", "119 s", "12 min", "3 h 20 min", "2 d 4 h"]


@pytest.fixture
def small_trainer(tmp_path: Path) -> Iterator[Any]:
    """Makes a real Trainer of a model of one weight that evaluates after every sixth update."""
    import torch
    from transformers import Trainer, TrainingArguments

    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> Any:
            return {"loss": (self.weight * x).square().mean()}

    class Small(Trainer):  # type: ignore[misc]
        recorder: MetricsCallback

        def training_step(self, *inputs: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*inputs, **kwargs)
            self.recorder.count(8, 100, 700)
            self.recorder.add_metric({"rewards/accuracies": self.state.global_step % 2 * 8.0}, count=8)
            return loss

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            metrics = {"eval_accuracy": 0.5}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    def make(recorder: MetricsCallback, **settings: Any) -> Any:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "checkpoints"),
            per_device_train_batch_size=1,
            max_steps=14,
            logging_steps=4,
            save_steps=6,
            eval_strategy="steps",
            eval_steps=6,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        )
        rows = [{"x": torch.tensor([float(index)])} for index in range(14)]
        trainer = Small(One(), arguments, train_dataset=rows, eval_dataset=rows, callbacks=[recorder])
        trainer.callback_handler.callbacks = [
            callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ != "PrinterCallback"
        ]
        trainer.recorder = recorder
        return trainer

    yield make


def test_a_training_records_every_interval_and_evaluation_and_its_last_updates(
    small_trainer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress: list[tuple[int, str]] = []
    recorder = MetricsCallback(tmp_path / "metrics.jsonl", None, 7, lambda step, note="": progress.append((step, note)))
    small_trainer(recorder).train()
    rows = list(atomic_files.read_jsonl(tmp_path / "metrics.jsonl"))
    assert [(row["step"], "loss" in row) for row in rows] == [
        (4, True), (6, False), (8, True), (12, True), (12, False), (14, True), (14, False)
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == [0.5714, 0.8571, 1.1429, 1.7143, 1.7143, 2.0, 2.0]
    training_row, evaluation = rows[:2]
    assert set(training_row) == {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "rewards/accuracies", "examples_per_second",
        "tokens_per_second", "tokens_saved_per_second", "peak_memory_bytes",
    }  # fmt: skip
    assert training_row["rewards/accuracies"] == 0.5
    assert training_row["tokens_saved_per_second"] == pytest.approx(7 * training_row["tokens_per_second"], rel=1e-3)
    assert set(evaluation) == {"step", "epoch", "validation/accuracy", "validation/seconds"}
    assert progress[-1][0] == 14 and progress[-1][1].startswith(f"loss {rows[-2]['loss']:.3f}")
    assert "validated 6/14  accuracy 0.500" in capsys.readouterr().err


def test_a_run_that_goes_on_records_what_an_uninterrupted_one_does(small_trainer: Any, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    class Keeps(MetricsCallback):
        """Keeps what a checkpoint would, at update 6: between two rows."""

        kept: dict[str, Any]

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            super().on_save(args, state, control)
            if state.global_step == 6:
                self.kept = self.state_dict()

    def compared() -> list[Any]:
        return [(row["step"], row["epoch"], row.get("rewards/accuracies")) for row in metrics.read_rows(path)]

    interrupted = Keeps(path, None, 7, lambda *_: None)
    small_trainer(interrupted).train()
    uninterrupted = compared()
    metrics.truncate_after(path, 6)
    resumed = MetricsCallback(path, None, 7, lambda *_: None)
    resumed.load_state_dict(interrupted.kept)
    assert resumed.interval.examples == 16
    small_trainer(resumed).train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-6"))
    assert compared() == uninterrupted
    assert (
        metrics.read_last_value(path, "validation/accuracy") == 0.5 and metrics.read_last_value(path, "nothing") is None
    )


def picture_colours(path: Path) -> set[tuple[int, ...]]:
    from PIL import Image

    with Image.open(path) as image:
        assert image.width > 1000
        return {colour for _, colour in image.convert("RGB").getcolors(1_000_000)}


@pytest.mark.parametrize("evaluations", [0, 1, 3])
@pytest.mark.parametrize("logged", [1, 30, 100])
def test_the_picture_shows_whatever_was_recorded(logged: int, evaluations: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(1, logged + 1):
        metrics.append(path, {"step": step, "epoch": step / 40, "loss": 3 / step, "learning_rate": 1e-4 * (step < 100)})
    for number in range(1, evaluations + 1):
        step = number * logged // evaluations
        metrics.append(path, {"step": step, "epoch": step / 40, "validation/accuracy": 1.0, "validation/seconds": 3.0})
    best_step = logged if evaluations else None
    learning_curve.draw(path, tmp_path / "learning_curve.png", "a $recipe$ 語", best_step)
    found_colours = picture_colours(tmp_path / "learning_curve.png")

    def rgb(colour: str) -> tuple[int, ...]:
        return tuple(bytes.fromhex(colour.removeprefix("#")))

    assert rgb(learning_curve.BACKGROUND) in found_colours
    assert (rgb(learning_curve.BEST) in found_colours) == (best_step is not None)
    assert (rgb(learning_curve.VALIDATION[0]) in found_colours) == bool(evaluations)
    assert [file.name for file in tmp_path.iterdir() if file.name != path.name] == ["learning_curve.png"]


def test_the_picture_draws_the_main_metrics_and_nothing_else_of_validation(tmp_path: Path) -> None:
    row = {"step": 1, "epoch": 1, "loss": 3.0, "validation/exact_match": 0.4, "validation/field_f1": 0.8}
    metrics.append(tmp_path / "metrics.jsonl", row | {"validation/seconds": 0.5, "validation/invalid": 0})
    curve = learning_curve.read(tmp_path / "metrics.jsonl")
    assert curve.fractions == {"validation/exact_match": [(1, 0.4)], "validation/field_f1": [(1, 0.8)]}


def test_there_is_no_picture_before_there_is_a_loss(tmp_path: Path) -> None:
    learning_curve.draw(tmp_path / "metrics.jsonl", tmp_path / "learning_curve.png", "recipe", None)
    assert not list(tmp_path.iterdir())


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300))
def test_the_smooth_line_stays_within_what_it_smooths(values: list[float]) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    smoothed = learning_curve.moving_average(points)
    assert [step for step, _ in smoothed] == [step for step, _ in points]
    assert all(min(values) - 1e-9 <= value <= max(values) + 1e-9 for _, value in smoothed)
