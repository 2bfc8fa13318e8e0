"""GGUF files as a base: read as the model that they were made of, written once and whole, or refused before."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from insource.config import base_models
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking.base_models import base_store, gguf_model, gguf_program
from insource.tracking.run import Run
from serve.vllm import launch_plan
from serve.vllm.launch_plan import ServedModel
from tests.conftest import ROOT
from tests.helpers import commands, gguf_files
from tests.helpers.errors import raises_error
from train.model import dequantize

TINY = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 8192
CONFIGS = {
    "llama": transformers.LlamaConfig(**TINY),
    "llama with weights for its output": transformers.LlamaConfig(**TINY, tie_word_embeddings=False),
    "llama 3": transformers.LlamaConfig(**TINY, rope_parameters=LLAMA3),
    "qwen2": transformers.Qwen2Config(**{name: value for name, value in TINY.items() if name != "head_dim"}),
    # The width of its heads is not read from a file: that of the published models is taken.
    "qwen3": transformers.Qwen3Config(**{**TINY, "head_dim": 128}),
}
TEXTS = ["Where's my parcel no. 12,345.67?", "  naïve\n\n\tStraße 注文 <|user|>\nok<|end|>", "don't 007"]
IDS = torch.tensor([[1, *range(100, 140), 7, 9, 2]])


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of CONFIGS with random weights and the pocket model's tokenizer, one folder each."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, config in CONFIGS.items():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)
        for path in (*POCKET.glob("*token*"), POCKET / "chat_template.jinja"):
            text = path.read_text(encoding="utf-8")
            # A token that transformers adds to a Qwen that has none.
            text = text.replace("<|system|>", "<|endoftext|>") if "qwen" in name else text
            (folder / name / path.name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pocket_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model as a GGUF file of 4 bits."""
    return gguf_files.write_gguf(POCKET, tmp_path_factory.mktemp("gguf") / "pocket-q4_0.gguf", "Q4_0")


def logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def recipe(base: object, *overrides: str) -> Recipe:
    return load("classifier", [f"model.base={base}", *overrides], "cpu").recipe


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_of_a_file_is_the_model_that_it_was_made_of(name: str, tiny_models: Path, tmp_path: Path) -> None:
    tensors = {}
    if name == "llama 3":
        # As llama.cpp writes it: by how much each frequency is stretched.
        config = CONFIGS[name]
        scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        unscaled = 10000.0 ** -(np.arange(8) / 8)
        tensors = {"rope_freqs.weight": (unscaled / scaled.numpy()).astype(np.float32)}
        assert tensors["rope_freqs.weight"].max() == pytest.approx(8.0)
    path, folder = (
        gguf_files.write_gguf(tiny_models / name, tmp_path / "model.gguf", tensors=tensors),
        tmp_path / "folder",
    )
    folder.mkdir()
    info = gguf_program.write_model(path, folder, "float32")
    assert info["main_type"] == "F32" and info["bits"] == 32
    assert torch.allclose(logits(folder), logits(tiny_models / name), atol=1e-5)
    source, converted = (
        transformers.AutoTokenizer.from_pretrained(location) for location in (tiny_models / name, folder)
    )
    for text in TEXTS:
        assert (
            converted(text, add_special_tokens=False)["input_ids"]
            == source(text, add_special_tokens=False)["input_ids"]
        )
    assert converted.chat_template == source.chat_template
    assert (converted.bos_token, converted.eos_token, converted.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")
    for config_name in ("config.json", "generation_config.json"):
        ids = atomic_files.read_json(folder / config_name)
        eos = ids["eos_token_id"]
        assert (ids["bos_token_id"], ids["pad_token_id"]) == (1, 0) and eos in (2, [2])
    # Nothing of it names the machine that it was made on, or where the file lay.
    for json_path in folder.glob("*.json"):
        assert str(tmp_path) not in json_path.read_text(encoding="utf-8")
        assert "gguf" not in json_path.read_text(encoding="utf-8").lower()


def test_a_stop_that_is_no_eos_is_one_of_the_generation_config(tiny_models: Path, tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 2}
    path = gguf_files.write_gguf(tiny_models / "llama", tmp_path / "model.gguf", metadata=metadata)
    (folder := tmp_path / "folder").mkdir()
    gguf_program.write_model(path, folder, "float32")
    assert atomic_files.read_json(folder / "generation_config.json")["eos_token_id"] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"general.architecture": "starfish"}}, "is of architecture 'starfish', which cannot be read"),
        ({"leave_out": ["tokenizer.ggml.tokens"]}, "has no tokenizer"),
        ({"metadata": {"tokenizer.ggml.model": "none"}}, "has no tokenizer"),
        ({"metadata": {"tokenizer.ggml.model": "rwkv"}}, "has a tokenizer that cannot be read"),
        ({"leave_out": ["tokenizer.chat_template"]}, "has no chat template"),
        (
            {"metadata": {"tokenizer.chat_template": "<｜answer｜>"}, "rename": {"<|assistant|>": "<｜answer｜>"}},
            "it cuts '<｜answer｜>'",
        ),
        ({"metadata": {"split.count": 3}}, "is one of 3 parts; join them first"),
        ({"metadata": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}}, "scales its positions"),
        ({"metadata": {"llama.attention.sliding_window": 64}}, "look back 64 tokens"),
        ({"tensors": {"rope_freqs.weight": np.full(8, 3.0)}}, "scales its positions otherwise than Llama 3"),
        ({"tensors": {"blk.0.attn_q.bias": np.zeros(64)}}, "has 1 tensors that transformers does not read"),
        ({"leave_out": ["blk.1.ffn_down.weight"]}, "has 1 weights otherwise than its architecture llama, or not"),
        ({"metadata": {"llama.feed_forward_length": 96}}, "weights otherwise than its architecture llama"),
    ],
)
def test_a_file_that_would_be_another_model_is_refused(
    changes: dict[str, Any], message: str, tiny_models: Path, tmp_path: Path
) -> None:
    path = gguf_files.write_gguf(tiny_models / "llama", tmp_path / "model.gguf", **changes)
    (folder := tmp_path / "folder").mkdir()
    with raises_error(RecipeError, "INS-T003") as error:
        gguf_program.write_model(path, folder, "float32")
    assert str(error.value).startswith("model.base: model.gguf ") and message in str(error.value)
    assert not list(folder.iterdir())


def test_a_vocabulary_that_splits_texts_in_an_unknown_way_is_told(tiny_models: Path, tmp_path: Path) -> None:
    for pre, n_notes in (("qwen2", 0), ("smollm", 0), ("viking", 1)):
        path = gguf_files.write_gguf(
            tiny_models / "llama", tmp_path / "model.gguf", metadata={"tokenizer.ggml.pre": pre}
        )
        (folder := tmp_path / pre).mkdir()
        notes = gguf_program.write_model(path, folder, "float32")["notes"]
        assert len(notes) == n_notes and all("tokenizer.ggml.pre: viking" in note for note in notes)


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_told(fraction: float, pocket_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    content = pocket_gguf.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with raises_error(
        RecipeError, "INS-T003", match=r"cut.gguf (is damaged or cut off|contains no model) .*download it again"
    ):
        gguf_program.write_model(path, tmp_path, "float32")


def test_a_file_is_named_as_it_is_or_by_its_folder(pocket_gguf: Path, tmp_path: Path) -> None:
    assert recipe(pocket_gguf).model.base == str(pocket_gguf)
    (folder := tmp_path / "models").mkdir()
    shutil.copyfile(pocket_gguf, folder / "a.gguf")
    (folder / "mmproj-a.gguf").write_bytes(b"GGUF")
    assert recipe(folder).model.base == str(folder / "a.gguf")
    # The hub's cache has files under their hashes.
    (tmp_path / "blob").write_bytes(pocket_gguf.read_bytes())
    (tmp_path / "link.gguf").symlink_to(tmp_path / "blob")
    assert recipe(tmp_path / "link.gguf").model.base == str(tmp_path / "link.gguf")
    assert recipe(tmp_path / "blob").model.base == str(tmp_path / "blob")
    shutil.copyfile(pocket_gguf, folder / "b.gguf")
    for base, message in (
        (folder, rf"several GGUF files \(a.gguf, b.gguf\); name one of them: model.base={folder}/a.gguf"),
        (tmp_path / "none.gguf", "there is no file"),
        (POCKET / "tokenizer.json", "is a file; give the folder"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe(base)
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with raises_error(RecipeError, "INS-T002", match=r"pointer.gguf is not a GGUF file.*git lfs pull"):
        recipe(tmp_path / "pointer.gguf")
    # Beside safetensors a GGUF is not what the folder is for.
    mixed_folder = shutil.copytree(POCKET, tmp_path / "both")
    shutil.copyfile(pocket_gguf, mixed_folder / "a.gguf")
    assert recipe(mixed_folder).model.base == str(mixed_folder)


def test_it_is_written_once_and_again_where_it_was_changed(
    pocket_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(gguf_model.ensure_model_folder(recipe(pocket_gguf), tmp_path).model.base)
    assert folder.parent == tmp_path / base_store.BASES_FOLDER and atomic_files.find_changes(folder) == []
    info = gguf_model.read_gguf_info(str(folder))
    assert info and (info["file"], info["main_type"], info["architecture"]) == (pocket_gguf.name, "Q4_0", "llama")
    assert info["sha256"] == atomic_files.sha256(pocket_gguf) and 4.5 <= info["bits"] < 4.7
    checksums = atomic_files.read_checksums(folder)
    assert "dequantizing pocket-q4_0.gguf" in capsys.readouterr().err
    # Under another name, and with other settings: the same bytes are the same base.
    renamed = shutil.copyfile(pocket_gguf, tmp_path / "renamed.gguf")
    assert gguf_model.ensure_model_folder(recipe(renamed, "model.quantization=none"), tmp_path).model.base == str(
        folder
    )
    assert capsys.readouterr().err == ""
    (folder / "model.safetensors").write_bytes(b"")
    assert (
        gguf_model.ensure_model_folder(recipe(pocket_gguf), tmp_path).model.base == str(folder)
        and atomic_files.read_checksums(folder) == checksums
    )
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


WRITER = """
import sys
from pathlib import Path
from insource.config.load import load
from insource.tracking.base_models import gguf_model
recipe = load("classifier", [f"model.base={sys.argv[1]}"], "cpu").recipe
print(gguf_model.ensure_model_folder(recipe, Path(sys.argv[2])).model.base)
"""


def writer(pocket: Path, runs: Path) -> subprocess.Popen[str]:
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", WRITER, str(pocket), str(runs)]
    return subprocess.Popen(
        argv, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_killed_while_it_is_written_nothing_half_is_left_and_two_at_once_write_it_once(
    pocket_gguf: Path, tmp_path: Path
) -> None:
    process = writer(pocket_gguf, tmp_path)
    deadline = time.monotonic() + 120
    while not (temp_folders := [path for path in (tmp_path / base_store.BASES_FOLDER).glob(".*") if path.is_dir()]):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = commands.child_pids(process.pid)
    while not children:
        assert process.poll() is None, "it had written the base before it could be killed"
        children = commands.child_pids(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while commands.running_pids(children):
        assert time.monotonic() < deadline, "what writes it ends with the program that started it"
        time.sleep(0.05)
    name = temp_folders[0].name.split(".")[1]
    assert not (tmp_path / base_store.BASES_FOLDER / name).exists()
    writers = [writer(pocket_gguf, tmp_path) for _ in range(2)]
    outputs = [writer_process.communicate(timeout=300) for writer_process in writers]
    assert [writer_process.returncode for writer_process in writers] == [0, 0], outputs
    assert {stdout.strip() for stdout, _ in outputs} == {str(tmp_path / base_store.BASES_FOLDER / name)}
    assert sum("dequantizing" in stderr for _, stderr in outputs) == 1
    assert atomic_files.find_changes(tmp_path / base_store.BASES_FOLDER / name) == []
    assert sorted(path.name for path in (tmp_path / base_store.BASES_FOLDER).iterdir()) == [name, f"{name}.lock"]


def test_what_nf4_loses_on_top_is_measured(pocket_gguf: Path, tmp_path: Path) -> None:
    on_disk = gguf_model.ensure_model_folder(recipe(pocket_gguf), tmp_path)
    base = Path(on_disk.model.base)
    _, dequantized_folder = dequantize.load_training_base(
        on_disk, base_store.store_path(tmp_path / "recipe" / "run"), print
    )
    assert dequantized_folder is not None and dequantized_folder.parent == base.parent
    base_tensors, dequantized_tensors = (
        load_file(base / "model.safetensors"),
        load_file(dequantized_folder / "model.safetensors"),
    )
    changed_names = [name for name in base_tensors if not torch.equal(base_tensors[name], dequantized_tensors[name])]
    assert len(changed_names) == 6 * 7, "the linear layers, and neither embeddings nor norms"
    base_weights, dequantized_weights = (
        torch.cat([tensors[name].flatten() for name in changed_names])
        for tensors in (base_tensors, dequantized_tensors)
    )
    expected = float((base_weights - dequantized_weights).double().norm() / base_weights.double().norm())
    assert (
        gguf_model.measure_weight_change(base, dequantized_folder) == pytest.approx(expected, rel=1e-6)
        and 0.02 < expected < 0.2
    )
    message = gguf_model.describe_weight_loss(str(base), "nf4", dequantized_folder)
    assert message is not None and message.startswith(
        "GGUF Q4_0 (4.5 bits a weight), dequantized; nf4 on top of that moved"
    )
    assert message.endswith(f"by {expected:.1%}")
    assert "nothing is lost on top" in str(gguf_model.describe_weight_loss(str(base), "none", None))
    assert gguf_model.describe_weight_loss(str(POCKET), "nf4", dequantized_folder) is None


def test_a_file_that_cannot_be_taken_ends_training_before_it_begins(
    small_recipe: Path, pocket_gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(pocket_gguf.read_bytes()[:100_000])
    completed = commands.run_command(tmp_path / "runs", "train", small_recipe, f"model.base={path}")
    assert completed.returncode == 2, completed.stderr
    (error,) = [line for line in completed.stderr.splitlines() if line.startswith("error[")]
    assert (
        error.startswith("error[INS-T003]: model.base: cut.gguf is damaged or cut off")
        and "Traceback" not in completed.stderr
    )
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path.name for path in files] == [".recipe"]


@pytest.mark.slow(minutes=2)
@pytest.mark.parametrize("quantization", ["nf4", pytest.param("none", marks=pytest.mark.nightly)])
def test_what_is_served_is_what_was_trained(
    quantization: str, small_recipe: Path, pocket_gguf: Path, tmp_path: Path
) -> None:
    runs, overrides = tmp_path / "runs", (f"model.base={pocket_gguf}", f"model.quantization={quantization}")
    completed = commands.run_command(runs, "train", small_recipe, *commands.TRAIN_SETTINGS, *overrides)
    assert completed.returncode == 0, completed.stderr
    assert "weights   GGUF Q4_0 (4.5 bits a weight), dequantized" in completed.stderr
    repeated = commands.run_command(runs, "train", small_recipe, *commands.TRAIN_SETTINGS, *overrides)
    assert repeated.returncode == 0 and "unchanged" in repeated.stderr and "dequantizing" not in repeated.stderr
    run = Run((runs / "small" / "latest").resolve())
    recipe = run.recipe()
    assert base_models.is_gguf(recipe.model.base) is False and gguf_model.read_gguf_info(recipe.model.base)
    served = ServedModel("small", run, recipe, "adapter")
    folder, revision = launch_plan.locate_base(served, recipe.serve)
    base_spec = served.prompt.base
    assert (
        base_spec.name == pocket_gguf.name
        and revision is None
        and launch_plan.has_trained_weights(served, recipe.serve)
    )
    weights = base_spec.trained.sha256 if base_spec.trained and quantization == "nf4" else base_spec.sha256
    assert atomic_files.sha256(Path(folder) / "model.safetensors") == weights["model.safetensors"]
    assert (Path(folder) == Path(recipe.model.base)) is (quantization == "none")
    assert launch_plan.find_adapter_problems(served, recipe.serve) == []
    exported = commands.run_command(runs, "train.export", small_recipe, *overrides, "export.quantize=none")
    assert exported.returncode == 0, exported.stderr
    merged, base = (
        load_file(weights_folder / "model.safetensors") for weights_folder in (run.folder / "merged", Path(folder))
    )
    norms = [name for name in base if "norm" in name or "embed" in name]
    assert norms and all(torch.equal(merged[name], base[name]) for name in norms)
    assert any(not torch.equal(merged[name], base[name]) for name in base)
