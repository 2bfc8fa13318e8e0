"""The pocket model: what it is, and that it never saw what it is scored on."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo_data import purchase_phrases
from demo_data.support_phrases import QUEUES
from insource.config.base_models import POCKET
from insource.config.load import load
from pocket import corpus
from tests.conftest import REAL_DATA, ROOT
from tests.helpers.property_tests import examples

SGD = ROOT.parent / "shared" / "data" / "sgd"


@pytest.fixture(scope="module")
def sgd() -> corpus.SgdCorpus:
    if not SGD.exists():
        pytest.skip("the Schema-Guided Dialogue corpus is not on this machine (../shared/data/sgd)")
    return corpus.load_corpus(SGD)


def test_no_label_and_no_phrase_of_what_it_is_scored_on_is_in_its_corpus(sgd: corpus.SgdCorpus) -> None:
    packs = [
        pack
        for mixture in (corpus.LANGUAGE_MIX, corpus.TASK_MIX)
        for pack in itertools.islice(corpus.generate_packs(sgd, random.Random(1), mixture), 4000)
    ]
    text = "\n".join(pack.opening + "".join(part.prompt + part.answer for part in pack.parts) for pack in packs)
    labels = set(QUEUES)
    if (REAL_DATA / "banking77").exists():
        labels |= set(json.loads((REAL_DATA / "banking77" / "categories.json").read_text(encoding="utf-8")))
    assert not {label for label in labels if "_" in label and label in text}
    recipe = load("classifier", (), "cpu").recipe
    assert isinstance(recipe.task.labels, dict)
    assert recipe.task.instruction not in text
    assert not [
        description for description in recipe.task.labels.values() if len(description) > 15 and description in text
    ]
    # The longest fixed piece of each phrase of the generator.
    fragments = {
        max(phrase.replace("]", "[").replace("<", "[").split("["), key=len)
        for queue in QUEUES.values()
        for phrase in queue.core
    }
    assert not {fragment for fragment in fragments if len(fragment) > 25 and fragment in text}
    # What the extractor copies: names of companies and buyers, and what it is asked.
    names = {f"{stem} {trade}" for stem in purchase_phrases.STEMS for trade in purchase_phrases.TRADES}
    assert not [name for name in (*names, *purchase_phrases.BUYERS) if name in text]
    assert load("extractor", (), "cpu").recipe.task.instruction not in text


def test_its_files_are_the_ones_a_deployment_needs_and_small() -> None:
    names = {path.name for path in POCKET.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert (POCKET / "model.safetensors").stat().st_size <= 12e6
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    config = json.loads((POCKET / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    card = (POCKET / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in card and "Schema-Guided Dialogue" in card and "python -m pocket.pretrain" in card


@examples(200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_its_tokenizer_gives_any_text_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if "<|" not in text:
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_its_template_marks_who_speaks_and_where_the_answer_begins(tokenizer: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|begin|><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
    )


def test_a_pack_shares_its_opening_and_each_part_ends_its_turn(sgd: corpus.SgdCorpus) -> None:
    for make_pack in corpus.TASK_MIX:
        pack = make_pack(sgd, random.Random(2))
        assert pack.parts
        assert all(part.answer.endswith(f"{corpus.END}\n") for part in pack.parts)
        if pack.opening:
            assert pack.opening.startswith(corpus.BEGIN + corpus.USER)
            assert all(part.prompt.endswith(corpus.ANSWER_PREFIX) for part in pack.parts)


def test_the_corpus_is_drawn_from_its_seed(sgd: corpus.SgdCorpus) -> None:
    first, second = (
        list(itertools.islice(corpus.generate_packs(sgd, random.Random(3), corpus.TASK_MIX), 20)) for _ in range(2)
    )
    assert first == second


def test_the_corpus_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"schema\.json"):
        corpus.load_corpus(tmp_path)
