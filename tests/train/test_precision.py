"""Training in bfloat16 on a CPU: what is multiplied so, and what stays float32."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from bench import kills
from insource.config import hardware
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.system import atomic_files
from insource.tasks import TASKS
from insource.tasks.rendering import chat_template
from insource.tracking.base_models import base_store
from insource.tracking.data_report import DataReport
from insource.tracking.prompt_spec import PromptSpec, read_trained_base
from insource.tracking.run import Run
from train.device import precision
from train.evaluate.validation import GenerationEvaluator
from train.loop import losses
from train.model import base
from train.packing import attention, collate
from train.packing.attention_blocks import SHARED_PREFIX
from train.packing.packing_plan import Pack, TokenizedRow

PREFIX = list(range(100, 400))
# Several blocks of a prefix, rows of several blocks, and rows of one token.
ROWS = [TokenizedRow(str(index), [*PREFIX, *range(500, 501 + 7 * index)], ([60 + index, 2],)) for index in range(24)]


def recipe(*overrides: str) -> Any:
    return load("classifier", [f"model.base={POCKET}", "model.quantization=none", *overrides], "cpu").recipe


@pytest.fixture(scope="module")
def model() -> Any:
    settings = recipe()
    adapted = base.add_adapter(base.load_base_model(settings), settings.lora, 1)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return adapted.train()


def gradients(
    model: Any, rows: Sequence[TokenizedRow], prefix: int, mode: str
) -> tuple[float, dict[str, torch.Tensor]]:
    batch = collate.collate_pack(
        Pack(tuple(rows), prefix), "shared_prefix" if prefix else "none", model.device, 0, SHARED_PREFIX
    )
    assert not prefix or batch.blocks
    model.zero_grad()
    with attention.pack_attention(model.config, batch):
        with precision.training_autocast(recipe(f"accelerate.mixed_precision={mode}")):
            loss, _ = losses.supervised_loss(model, batch, 0.1)
        loss.backward()
    return loss.item(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def distance(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    squared = sum(float((actual[name] - gradient).square().sum()) for name, gradient in expected.items())
    return (squared / sum(float(gradient.square().sum()) for gradient in expected.values())) ** 0.5


@pytest.fixture(scope="module")
def float32_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of separate rows in float32."""
    return gradients(model, ROWS, 0, "no")


def test_a_pack_in_bfloat16_has_the_gradients_of_separate_rows_in_float32_up_to_its_rounding(
    model: Any, float32_gradients: tuple[float, dict[str, torch.Tensor]]
) -> None:
    loss, expected = float32_gradients
    plain_loss, separate = gradients(model, ROWS, 0, "bf16")
    packed_loss, packed = gradients(model, ROWS, len(PREFIX), "bf16")
    assert {gradient.dtype for gradient in packed.values()} == {torch.float32}
    rounding = distance(separate, expected)
    assert 1e-4 < rounding < 0.05, "bfloat16 was not multiplied in, or is far off"
    # Attention by products rounds scores, which the fused kernel of separate rows does not.
    assert distance(packed, expected) < 2 * rounding
    assert abs(packed_loss - loss) < 0.01 * loss and abs(plain_loss - loss) < 0.01 * loss


def test_float32_is_left_alone(model: Any, float32_gradients: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert distance(gradients(model, ROWS, len(PREFIX), "no")[1], float32_gradients[1]) < 1e-5


def test_a_row_sees_no_other_row_in_bfloat16(model: Any) -> None:
    # Of the same length: without instructions for bfloat16 a matrix product sums in an order that depends on its shape.
    n_own_tokens = len(ROWS[-1].prompt_ids) - len(PREFIX)
    changed_rows = [*ROWS[:-1], TokenizedRow("other", [*PREFIX, *range(900, 900 + n_own_tokens)], ([70, 2],))]

    def logits(rows: Sequence[TokenizedRow]) -> torch.Tensor:
        batch = collate.collate_pack(Pack(tuple(rows), len(PREFIX)), "shared_prefix", model.device, 0, SHARED_PREFIX)
        bfloat16 = precision.training_autocast(recipe("accelerate.mixed_precision=bf16"))
        with torch.no_grad(), attention.pack_attention(model.config, batch), bfloat16:
            row_logits: torch.Tensor = model(**batch.inputs).logits[0]
        return row_logits

    kept_tokens = len(PREFIX) + sum(row.tokens_after_prefix(len(PREFIX)) for row in ROWS[:-1])
    expected, actual = logits(ROWS), logits(changed_rows)
    assert torch.equal(expected[:kept_tokens], actual[:kept_tokens]) and not torch.equal(
        expected[kept_tokens:], actual[kept_tokens : len(expected)]
    )


def test_auto_is_what_the_processor_multiplies_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    native = bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()))
    assert recipe().accelerate.mixed_precision == ("bf16" if native else "no")
    assert recipe("accelerate.mixed_precision=no").accelerate.mixed_precision == "no"
    for name, value in {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default"}.items():
        with monkeypatch.context() as limited:
            limited.setenv(name, value)
            assert not hardware.cpu_has_bfloat16() and recipe().accelerate.mixed_precision == "no", name


def test_half_precision_is_for_gpus() -> None:
    with pytest.raises(RecipeError, match=r"mixed_precision.*fp16 is for GPUs"):
        recipe("accelerate.mixed_precision=fp16")


BFLOAT16 = ("accelerate.mixed_precision=bf16", "--hardware", "cpu")
# With instructions for bfloat16 tests/system/test_resume.py trains in it, and kills that training.
IS_DEFAULT = [pytest.mark.nightly] if hardware.cpu_has_bfloat16() else []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a training in bfloat16, beside its recipe small.yaml."""
    folder = tmp_path_factory.mktemp("bfloat16")
    assert "multiplied in bfloat16" in kills.run_training(kills.write_recipe(folder), folder / "runs", *BFLOAT16)
    return folder / "runs"


@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpoints",
    [
        pytest.param(("checkpoint-4",), marks=IS_DEFAULT),
        pytest.param(("checkpoint-4", "checkpoint-8"), marks=pytest.mark.nightly),
    ],
)
def test_killed_in_bfloat16_and_called_again_the_same_bytes_come_out(
    checkpoints: tuple[str, ...], uninterrupted: Path, tmp_path: Path
) -> None:
    recipe_path, interrupted = uninterrupted.with_name("small.yaml"), tmp_path / "killed"
    for checkpoint in checkpoints:
        glob_checkpoint = partial(lambda path: list(interrupted.glob(path)), f"*/*/checkpoints/{checkpoint}")
        assert kills.kill_when(kills.start_training(recipe_path, interrupted, *BFLOAT16), glob_checkpoint)
    assert "going on with the unfinished run" in kills.run_training(recipe_path, interrupted, *BFLOAT16)
    folders = [kills.find_run(runs) for runs in (uninterrupted, interrupted)]
    assert folders[0] and folders[1] and kills.run_hashes(folders[0]) == kills.run_hashes(folders[1])
    weights = load_file(folders[1] / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_what_is_validated_is_float32_whatever_was_trained_in(uninterrupted: Path) -> None:
    runs = uninterrupted
    folder = kills.find_run(runs)
    assert folder
    recipe_of_run = Run(folder).recipe()
    base_record = read_trained_base(folder / "adapter")
    assert base_record
    base_model = base.load_base_model(
        recipe_of_run.with_model(base=str(runs / base_store.BASES_FOLDER / base_record.digest), quantization="none")
    )
    adapted = PeftModel.from_pretrained(base_model, folder / "adapter").eval()
    task = TASKS[recipe_of_run.task.task_name]
    spec, tokenizer = (
        task.make_spec(recipe_of_run.task, DataReport.read(folder / "data").label_descriptions),
        chat_template.load_tokenizer(recipe_of_run.model),
    )
    rows = list(atomic_files.read_jsonl(folder / "data" / "validation.jsonl"))[:8]
    prompts = chat_template.encode_prompts(tokenizer, [task.messages(spec, row["input"]) for row in rows])
    answers = GenerationEvaluator(
        task, spec, rows, prompts, tokenizer, PromptSpec.read(folder / "adapter").max_answer_tokens, False
    ).predict(adapted, "asked")
    for answer, line in zip(answers, atomic_files.read_jsonl(folder / "reference.jsonl"), strict=False):
        assert answer.token_ids == line["token_ids"]
        # Rounded to bfloat16 they would differ in the third digit.
        assert answer.log_probability == pytest.approx(line["log_probability"], abs=1e-5)
