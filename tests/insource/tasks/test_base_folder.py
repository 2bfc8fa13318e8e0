"""Bases as people have them on disk: what is missing there is told in one line, before any weights are read."""

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bench import chat_templates
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.train import Model
from insource.tasks.rendering import base_tokenizer, chat_template
from tests.conftest import ROOT
from tests.helpers import chat_templates as kinds


def refused(folder: Path) -> str:
    with pytest.raises(RecipeError) as error:
        chat_template.load_rendering(Model(base=str(folder)))
    return str(error.value)


def test_a_base_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(POCKET / name, tmp_path / name)
    assert "has no tokenizer (no tokenizer.json); copy tokenizer.json" in refused(tmp_path)


def test_a_folder_that_has_its_weights_as_gguf_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model-Q4_1.gguf"
    path.write_bytes(b"GGUF\3" + bytes(19))
    message = refused(tmp_path)
    assert (
        "has its weights as GGUF (model-Q4_1.gguf); name the file itself" in message and f"model.base={path}" in message
    )
    # In a recipe the folder stands for its one file.
    assert load("classifier", [f"model.base={tmp_path}"], "cpu").recipe.model.base == str(path)


def test_a_repository_of_mistral_with_tekken_json_has_its_ordinary_tokenizer(tmp_path: Path) -> None:
    folder = kinds.write_base(tmp_path / "with", kinds.PLAIN)
    (folder / "tekken.json").write_text("{}", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}), encoding="utf-8")
    assert chat_template.load_tokenizer(Model(base=str(folder))).chat_template == kinds.PLAIN.template
    tekken_only = tmp_path / "alone"
    tekken_only.mkdir()
    (tekken,) = (Path(str(files("mistral_common"))) / "data").glob("tekken_240911.json")
    shutil.copyfile(tekken, tekken_only / "tekken.json")
    assert "has no chat template" in refused(tekken_only) and "add chat_template.jinja" in refused(tekken_only)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text", None])
def test_the_tokenizer_is_that_of_auto_tokenizer(model_type: str | None, tmp_path: Path) -> None:
    """For llama without importing AutoTokenizer; qwen2 has a class of its own; None is a folder without config.json."""
    folder = kinds.write_base(tmp_path / "base", kinds.STOP_OF_CONFIG)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}), encoding="utf-8")
    if model_type is None:
        (folder / "config.json").unlink()
    expected = AutoTokenizer.from_pretrained(folder, mistral_format=False)
    tokenizer = base_tokenizer.load_auto_tokenizer(str(folder), Model(base=str(folder)))
    assert type(tokenizer) is type(expected)
    assert tokenizer.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert (tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.model_max_length) == (
        expected.special_tokens_map,
        expected.chat_template,
        expected.model_max_length,
    )


def test_prompts_are_rendered_without_torch() -> None:
    code = "import sys; from insource.config.schema.train import Model; "
    code += "from insource.tasks.rendering import chat_template; "
    code += f"chat_template.load_rendering(Model(base={str(POCKET)!r})); "
    code += "print([name for name in ('torch', 'sklearn', 'scipy') if name in sys.modules])"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "[]"


def test_of_several_named_templates_the_default_is_taken_or_they_are_named(tmp_path: Path) -> None:
    folder = kinds.write_base(tmp_path / "base", kinds.PLAIN)
    extra_templates = folder / "additional_chat_templates"
    extra_templates.mkdir()
    (extra_templates / "rag.jinja").write_text("{{ documents }}", encoding="utf-8")
    tokenizer = chat_template.load_tokenizer(Model(base=str(folder)))
    assert tokenizer.chat_template == kinds.PLAIN.template
    assert len(chat_template.template_sha256(tokenizer)) == 64
    (folder / "chat_template.jinja").rename(extra_templates / "tool_use.jinja")
    assert "several chat templates and none is named 'default': rag, tool_use" in refused(folder)


def test_stops_are_the_eos_and_those_of_the_generation_config(tmp_path: Path) -> None:
    folder = kinds.write_base(tmp_path / "base", kinds.STOP_OF_CONFIG)
    model = Model(base=str(folder))
    tokenizer = base_tokenizer.load_base_tokenizer(model)
    assert base_tokenizer.list_stop_tokens(model, tokenizer) == ["<eos>", "<end_of_turn>"]
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ids = tokenizer.convert_tokens_to_ids(["<end_of_turn>"])
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": ids}), encoding="utf-8")
    assert base_tokenizer.list_stop_tokens(model, tokenizer) == ["<eos>", "<end_of_turn>"]


@pytest.mark.parametrize("text", ["{cut off", "[1]"])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_damaged_configuration_is_told(name: str, text: str, tmp_path: Path) -> None:
    folder = kinds.write_base(tmp_path / "base", kinds.STOP_OF_CONFIG)
    (folder / "generation_config.json").unlink()
    (folder / name).write_text(text, encoding="utf-8")
    assert name in refused(folder)


def test_stops_outside_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    folder = kinds.write_base(tmp_path / "base", kinds.STOP_OF_CONFIG)
    (folder / "generation_config.json").write_text('{"eos_token_id": [-1, 10000000, "2", null]}', encoding="utf-8")
    assert "none of its stop tokens (<eos>)" in refused(folder)


def test_the_census_of_templates_writes_its_table_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for kind in (kinds.HYBRID, kinds.STOP_OF_CONFIG, kinds.SPACE_BEFORE_ANSWER, kinds.CHANNEL):
        (tmp_path / f"{kind.model}.jinja").write_text(kind.template, encoding="utf-8")
        lines.append("\t".join((kind.model, f"{kind.model}.jinja", "", kind.eos, " ".join(kind.stops))))
    (tmp_path / "list.tsv").write_text("# name, file, bos, eos, stops\n" + "\n".join(lines) + "\n", encoding="utf-8")
    page = tmp_path / "page.md"
    begin_mark, end_mark = "<!-- chat_templates:begin -->", "<!-- chat_templates:end -->"
    page.write_text(f"before\n{begin_mark}\nold\n{end_mark}\nafter\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["chat_templates", str(tmp_path / "list.tsv"), "--page", str(page)])
    chat_templates.main()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and str(tmp_path) not in text
    assert "4 templates: 2 as its template has it, 1 own suffix, 1 refused, 0 MISHANDLED." in text
    assert "| Qwen3 hybrid | as its template has it | enable_thinking false | `<\\|end\\|>` |" in text
    assert "| gpt-oss | refused |  |  |  | does not answer right behind its open prompt" in text
