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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of CONFIGS with random weights and the pocket model's tokenizer, one folder each."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, config in CONFIGS.items():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for one, parameter in model.named_parameters():
            if "norm" in one or "bias" in one:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)
        for path in (*POCKET.glob("*token*"), POCKET / "chat_template.jinja"):
            text = path.read_text(encoding="utf-8")
            # A token that transformers adds to a Qwen that has none.
            text = text.replace("<|system|>", "<|endoftext|>") if "qwen" in name else text
            (folder / name / path.name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model as a GGUF file of 4 bits."""
    return gguf_files.write_gguf(POCKET, tmp_path_factory.mktemp("gguf") / "pocket-q4_0.gguf", "Q4_0")


def logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def recipe(base: object, *changes: str) -> Recipe:
    return load("classifier", [f"model.base={base}", *changes], "cpu").recipe


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_of_a_file_is_the_model_that_it_was_made_of(name: str, tiny: Path, tmp_path: Path) -> None:
    more = {}
    if name == "llama 3":
        # As llama.cpp writes it: by how much each frequency is stretched.
        config = CONFIGS[name]
        stretched, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 10000.0 ** -(np.arange(8) / 8)
        more = {"rope_freqs.weight": (plain / stretched.numpy()).astype(np.float32)}
        assert more["rope_freqs.weight"].max() == pytest.approx(8.0)
    path, folder = gguf_files.write_gguf(tiny / name, tmp_path / "model.gguf", tensors=more), tmp_path / "folder"
    folder.mkdir()
    held = gguf_program.write_model(path, folder, "float32")
    assert held["main_type"] == "F32" and held["bits"] == 32
    assert torch.allclose(logits(folder), logits(tiny / name), atol=1e-5)
    source, read = (transformers.AutoTokenizer.from_pretrained(one) for one in (tiny / name, folder))
    for text in TEXTS:
        assert read(text, add_special_tokens=False)["input_ids"] == source(text, add_special_tokens=False)["input_ids"]
    assert read.chat_template == source.chat_template
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")
    for name_of_config in ("config.json", "generation_config.json"):
        ids = atomic_files.read_json(folder / name_of_config)
        eos = ids["eos_token_id"]
        assert (ids["bos_token_id"], ids["pad_token_id"]) == (1, 0) and eos in (2, [2])
    # Nothing of it names the machine that it was made on, or where the file lay.
    for one in folder.glob("*.json"):
        assert str(tmp_path) not in one.read_text(encoding="utf-8")
        assert "gguf" not in one.read_text(encoding="utf-8").lower()


def test_a_stop_that_is_no_eos_is_one_of_the_generation_config(tiny: Path, tmp_path: Path) -> None:
    more = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 2}
    path = gguf_files.write_gguf(tiny / "llama", tmp_path / "model.gguf", more=more)
    (folder := tmp_path / "folder").mkdir()
    gguf_program.write_model(path, folder, "float32")
    assert atomic_files.read_json(folder / "generation_config.json")["eos_token_id"] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"more": {"general.architecture": "starfish"}}, "is of architecture 'starfish', which cannot be read"),
        ({"leave_out": ["tokenizer.ggml.tokens"]}, "has no tokenizer"),
        ({"more": {"tokenizer.ggml.model": "none"}}, "has no tokenizer"),
        ({"more": {"tokenizer.ggml.model": "rwkv"}}, "has a tokenizer that cannot be read"),
        ({"leave_out": ["tokenizer.chat_template"]}, "has no chat template"),
        (
            {"more": {"tokenizer.chat_template": "<｜answer｜>"}, "rename": {"<|assistant|>": "<｜answer｜>"}},
            "it cuts '<｜answer｜>'",
        ),
        ({"more": {"split.count": 3}}, "is one of 3 parts; join them first"),
        ({"more": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}}, "scales its positions"),
        ({"more": {"llama.attention.sliding_window": 64}}, "look back 64 tokens"),
        ({"tensors": {"rope_freqs.weight": np.full(8, 3.0)}}, "scales its positions otherwise than Llama 3"),
        ({"tensors": {"blk.0.attn_q.bias": np.zeros(64)}}, "has 1 tensors that transformers does not read"),
        ({"leave_out": ["blk.1.ffn_down.weight"]}, "has 1 weights otherwise than its architecture llama, or not"),
        ({"more": {"llama.feed_forward_length": 96}}, "weights otherwise than its architecture llama"),
    ],
)
def test_a_file_that_would_be_another_model_is_refused(
    changes: dict[str, Any], told: str, tiny: Path, tmp_path: Path
) -> None:
    path = gguf_files.write_gguf(tiny / "llama", tmp_path / "model.gguf", **changes)
    (folder := tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError) as error:
        gguf_program.write_model(path, folder, "float32")
    assert str(error.value).startswith("model.base: model.gguf ") and told in str(error.value)
    assert not list(folder.iterdir())


def test_a_vocabulary_that_splits_texts_in_an_unknown_way_is_told(tiny: Path, tmp_path: Path) -> None:
    for pre, told in (("qwen2", 0), ("smollm", 0), ("viking", 1)):
        path = gguf_files.write_gguf(tiny / "llama", tmp_path / "model.gguf", more={"tokenizer.ggml.pre": pre})
        (folder := tmp_path / pre).mkdir()
        notes = gguf_program.write_model(path, folder, "float32")["notes"]
        assert len(notes) == told and all("tokenizer.ggml.pre: viking" in note for note in notes)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_told(share: float, pocket: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    whole = pocket.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RecipeError, match=r"cut.gguf (is damaged or cut off|holds no model) .*fetch it again"):
        gguf_program.write_model(path, tmp_path, "float32")


def test_a_file_is_named_as_it_is_or_by_its_folder(pocket: Path, tmp_path: Path) -> None:
    assert recipe(pocket).model.base == str(pocket)
    (folder := tmp_path / "models").mkdir()
    shutil.copyfile(pocket, folder / "a.gguf")
    (folder / "mmproj-a.gguf").write_bytes(b"GGUF")
    assert recipe(folder).model.base == str(folder / "a.gguf")
    # The hub's cache has files under their hashes.
    (tmp_path / "blob").write_bytes(pocket.read_bytes())
    (tmp_path / "link.gguf").symlink_to(tmp_path / "blob")
    assert recipe(tmp_path / "link.gguf").model.base == str(tmp_path / "link.gguf")
    assert recipe(tmp_path / "blob").model.base == str(tmp_path / "blob")
    shutil.copyfile(pocket, folder / "b.gguf")
    for base, told in (
        (folder, rf"several GGUF files \(a.gguf, b.gguf\); name one of them: model.base={folder}/a.gguf"),
        (tmp_path / "none.gguf", "there is no file"),
        (POCKET / "tokenizer.json", "is a file; give the folder"),
    ):
        with pytest.raises(RecipeError, match=told):
            recipe(base)
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(RecipeError, match=r"pointer.gguf is no GGUF file.*git lfs pull"):
        recipe(tmp_path / "pointer.gguf")
    # Beside safetensors a GGUF is not what the folder is for.
    both = shutil.copytree(POCKET, tmp_path / "both")
    shutil.copyfile(pocket, both / "a.gguf")
    assert recipe(both).model.base == str(both)


def test_it_is_written_once_and_again_where_it_was_changed(
    pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(gguf_model.ensure_model_folder(recipe(pocket), tmp_path).model.base)
    assert folder.parent == tmp_path / base_store.BASES_FOLDER and atomic_files.find_changes(folder) == []
    about = gguf_model.read_gguf_info(str(folder))
    assert about and (about["file"], about["main_type"], about["architecture"]) == (pocket.name, "Q4_0", "llama")
    assert about["sha256"] == atomic_files.sha256(pocket) and 4.5 <= about["bits"] < 4.7
    before = atomic_files.read_checksums(folder)
    assert "dequantizing pocket-q4_0.gguf" in capsys.readouterr().err
    # Under another name, and with other settings: the same bytes are the same base.
    other = shutil.copyfile(pocket, tmp_path / "renamed.gguf")
    assert gguf_model.ensure_model_folder(recipe(other, "model.quantization=none"), tmp_path).model.base == str(folder)
    assert capsys.readouterr().err == ""
    (folder / "model.safetensors").write_bytes(b"")
    assert (
        gguf_model.ensure_model_folder(recipe(pocket), tmp_path).model.base == str(folder)
        and atomic_files.read_checksums(folder) == before
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
    asked = [sys.executable, "-c", WRITER, str(pocket), str(runs)]
    return subprocess.Popen(
        asked, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def test_killed_while_it_is_written_nothing_half_is_left_and_two_at_once_write_it_once(
    pocket: Path, tmp_path: Path
) -> None:
    process = writer(pocket, tmp_path)
    end = time.monotonic() + 120
    while not (found := [path for path in (tmp_path / base_store.BASES_FOLDER).glob(".*") if path.is_dir()]):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    children = commands.child_pids(process.pid)
    while not children:
        children = commands.child_pids(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while commands.running_pids(children):
        assert time.monotonic() < end, "what writes it ends with the program that started it"
        time.sleep(0.05)
    name = found[0].name.split(".")[1]
    assert not (tmp_path / base_store.BASES_FOLDER / name).exists()
    both = [writer(pocket, tmp_path) for _ in range(2)]
    said = [one.communicate(timeout=300) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(tmp_path / base_store.BASES_FOLDER / name)}
    assert sum("dequantizing" in err for _, err in said) == 1
    assert atomic_files.find_changes(tmp_path / base_store.BASES_FOLDER / name) == []
    assert sorted(path.name for path in (tmp_path / base_store.BASES_FOLDER).iterdir()) == [name, f"{name}.lock"]


def test_what_nf4_loses_on_top_is_measured(pocket: Path, tmp_path: Path) -> None:
    on_disk = gguf_model.ensure_model_folder(recipe(pocket), tmp_path)
    base = Path(on_disk.model.base)
    _, kept = dequantize.load_training_base(on_disk, base_store.store_path(tmp_path / "recipe" / "run"), print)
    assert kept is not None and kept.parent == base.parent
    before, after = load_file(base / "model.safetensors"), load_file(kept / "model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 6 * 7, "the linear layers, and neither embeddings nor norms"
    one, other = (torch.cat([tensors[name].flatten() for name in changed]) for tensors in (before, after))
    expected = float((one - other).double().norm() / one.double().norm())
    assert gguf_model.measure_weight_change(base, kept) == pytest.approx(expected, rel=1e-6) and 0.02 < expected < 0.2
    told = gguf_model.describe_weight_loss(str(base), "nf4", kept)
    assert told is not None and told.startswith("GGUF Q4_0 (4.5 bits a weight), dequantized; nf4 on top of that moved")
    assert told.endswith(f"by {expected:.1%}")
    assert "nothing is lost on top" in str(gguf_model.describe_weight_loss(str(base), "none", None))
    assert gguf_model.describe_weight_loss(str(POCKET), "nf4", kept) is None


def test_a_file_that_cannot_be_taken_ends_training_before_it_begins(
    small_recipe: Path, pocket: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(pocket.read_bytes()[:100_000])
    answer = commands.run_command(tmp_path / "runs", "train", small_recipe, f"model.base={path}")
    assert answer.returncode == 2, answer.stderr
    (error,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: model.base: cut.gguf is damaged or cut off") and "Traceback" not in answer.stderr
    left = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path.name for path in left] == [".recipe"]


@pytest.mark.slow(minutes=2)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_what_is_served_is_what_was_trained(
    quantization: str, small_recipe: Path, pocket: Path, tmp_path: Path
) -> None:
    runs, words = tmp_path / "runs", (f"model.base={pocket}", f"model.quantization={quantization}")
    trained = commands.run_command(runs, "train", small_recipe, *commands.TRAIN_SETTINGS, *words)
    assert trained.returncode == 0, trained.stderr
    assert "weights   GGUF Q4_0 (4.5 bits a weight), dequantized" in trained.stderr
    again = commands.run_command(runs, "train", small_recipe, *commands.TRAIN_SETTINGS, *words)
    assert again.returncode == 0 and "unchanged" in again.stderr and "dequantizing" not in again.stderr
    here = Run((runs / "small" / "latest").resolve())
    recipe = here.recipe()
    assert base_models.is_gguf(recipe.model.base) is False and gguf_model.read_gguf_info(recipe.model.base)
    served = ServedModel("small", here, recipe, "adapter")
    folder, revision = launch_plan.locate_base(served, recipe.serve)
    told = served.prompt["base"]
    assert told["name"] == pocket.name and revision is None and launch_plan.has_trained_weights(served, recipe.serve)
    weights = told["trained"]["sha256"] if quantization == "nf4" else told["sha256"]
    assert atomic_files.sha256(Path(folder) / "model.safetensors") == weights["model.safetensors"]
    assert (Path(folder) == Path(recipe.model.base)) is (quantization == "none")
    assert launch_plan.adapter_problems(served, recipe.serve) == []
    exported = commands.run_command(runs, "train.export", small_recipe, *words, "export.quantize=none")
    assert exported.returncode == 0, exported.stderr
    merged, base = (load_file(one / "model.safetensors") for one in (here.folder / "merged", Path(folder)))
    norms = [name for name in base if "norm" in name or "embed" in name]
    assert norms and all(torch.equal(merged[name], base[name]) for name in norms)
    assert any(not torch.equal(merged[name], base[name]) for name in base)
