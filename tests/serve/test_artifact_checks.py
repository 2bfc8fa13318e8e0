"""What is caught before anything is served: each with a message that says which file, and what to do."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file

from deploy.gateway import versions
from insource.config.base_models import POCKET
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.serving_and_cost import Serve
from insource.system import atomic_files, environment
from insource.tasks import classification
from insource.tasks.rendering import chat_template
from insource.tracking.run import Run
from serve import artifact_checks
from serve.vllm import launch_plan
from serve.vllm.launch_plan import ServedModel
from serve.vllm.server_process import Address, LaunchPlan, vllm_command, vllm_environment
from tests.helpers.errors import raises_error
from train.export import adapter
from train.model import base

SPEC = classification.Spec("Say what the user wants.", {"find_bus": "", "get_weather": ""})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder as training writes it, untrained."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    recipe = load("classifier", ["model.quantization=none"], "cpu").recipe
    rendering = chat_template.load_rendering(recipe.model)
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    get_peft_model(base.load_base_model(recipe), config).save_pretrained(folder, save_embedding_layers=False)
    rendering.tokenizer.save_pretrained(folder)
    adapter.build_generation_config(rendering.tokenizer).save_pretrained(folder)
    atomic_files.write_json(folder / "prompt.json", adapter.build_prompt_spec(recipe, rendering, SPEC, 64).to_json())
    atomic_files.write_checksums(folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "adapter")


def problems(folder: Path, base: Path = POCKET) -> str:
    prompt = folder / "prompt.json"
    hashes = atomic_files.read_json(prompt)["base"]["sha256"] if prompt.exists() else {}
    return "\n".join(artifact_checks.check_adapter(folder, base, hashes))


def resummed(folder: Path) -> None:
    """As if all had been written like this, so that not the hashes tell."""
    (folder / atomic_files.CHECKSUMS).unlink()
    atomic_files.write_checksums(folder)


def test_what_training_wrote_may_be_served(folder: Path) -> None:
    assert problems(folder) == ""
    assert artifact_checks.max_lora_rank({"classifier": folder}) == 8


@pytest.mark.parametrize("rewrite_hashes", [False, True], ids=["hashes kept", "hashes written anew"])
def test_a_template_changed_after_training(folder: Path, rewrite_hashes: bool) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    if rewrite_hashes:
        resummed(folder)
    message = problems(folder)
    assert (
        "chat_template.jinja" in message
        and "prompts would differ from the trained ones" in message
        and "restore the trained template" in message
    )


def test_an_adapter_of_rank_600(folder: Path) -> None:
    path = folder / "adapter_config.json"
    atomic_files.write_json(path, atomic_files.read_json(path) | {"r": 600})
    resummed(folder)
    assert "rank 600, and vLLM serves at most 512; set lora.r" in problems(folder)


def test_what_vllm_serves_only_merged(folder: Path) -> None:
    path = folder / "adapter_config.json"
    atomic_files.write_json(
        path, atomic_files.read_json(path) | {"use_dora": True, "bias": "all", "modules_to_save": ["lm_head"]}
    )
    resummed(folder)
    message = problems(folder)
    assert all(word in message for word in ("use_dora", "bias 'all'", "modules_to_save", "SET=serve.model=merged"))


def test_a_pickle_instead_of_safetensors(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    resummed(folder)
    message = problems(folder)
    assert "adapter_model.bin" in message and "is a pickle" in message and "only safetensors are served" in message
    assert "adapter_model.safetensors is missing" in message


@pytest.mark.parametrize("n_bytes", [0, 4, 60, 5000])
def test_a_truncated_file(folder: Path, n_bytes: int) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    resummed(folder)
    message = problems(folder)
    assert path.name in message and ("cut off" in message or "is no safetensors file" in message)


def test_a_truncated_shard_of_a_merged_model(tmp_path: Path, folder: Path) -> None:
    merged = shutil.copytree(POCKET, tmp_path / "merged")
    for name in ("prompt.json", "chat_template.jinja"):
        shutil.copyfile(folder / name, merged / name)
    tensors = load_file(merged / "model.safetensors")
    (merged / "model.safetensors").unlink()
    half = len(tensors) // 2
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:]), 1):
        save_file({name: tensors[name] for name in names}, merged / f"model-{number:05}-of-00002.safetensors")
    atomic_files.write_checksums(merged)
    assert artifact_checks.check_model(merged) == []
    shard = merged / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    (message,) = artifact_checks.check_model(merged)
    assert shard.name in message and "cut off" in message and "make export" in message
    shard.unlink()
    (message,) = artifact_checks.check_model(merged)
    assert f"{shard.name} is missing" in message


def test_one_changed_byte(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "adapter_model.safetensors was changed" in problems(folder)


def test_a_base_of_another_shape(folder: Path, tmp_path: Path) -> None:
    other_base = shutil.copytree(POCKET, tmp_path / "other")
    tensors = load_file(other_base / "model.safetensors")
    save_file(
        {name: tensor[..., :-8].contiguous() for name, tensor in tensors.items()}, other_base / "model.safetensors"
    )
    message = problems(folder, other_base)
    assert "is not the one of this adapter (pocket/model)" in message and "set model.base to that one" in message


def test_a_base_with_other_weights(folder: Path, tmp_path: Path) -> None:
    other_base = shutil.copytree(POCKET, tmp_path / "other")
    tensors = load_file(other_base / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, other_base / "model.safetensors")
    message = problems(folder, other_base)
    assert "model.safetensors differ" in message and "is not as it was in training" in message


def test_nothing_there(tmp_path: Path) -> None:
    assert "there is no" in problems(tmp_path / "adapter")


def test_weights_take_more_memory_than_there_is() -> None:
    plan = LaunchPlan(str(POCKET), "pocket", Serve(cpu_cache_gib=2.0), use_cpu=True)
    assert launch_plan.memory_problem(plan, 4 * 2**30) is None
    message = launch_plan.memory_problem(plan, 2**30)
    assert message is not None and "not enough memory" in message and "serve.cpu_cache_gib" in message


@pytest.mark.parametrize(("amx", "dtypes"), [(True, ["float32", "bfloat16"]), (False, ["float32", "float32"])])
def test_int8_is_computed_in_what_the_kernel_for_this_cpu_takes(
    amx: bool, dtypes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_has_amx", lambda: amx)
    folders = ("run/merged", "run/quantized/int8")
    assert [LaunchPlan(model_folder, "small", Serve(), use_cpu=True).dtype for model_folder in folders] == dtypes
    assert LaunchPlan("run/quantized/int8", "small", Serve(dtype="float16"), use_cpu=True).dtype == "float16"


def test_an_open_address_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch_plan.API_KEY_VARIABLE, raising=False)
    assert launch_plan.require_api_key(Address("127.0.0.1", 8000)) is None
    with raises_error(RecipeError, "INS-E004", match=launch_plan.API_KEY_VARIABLE):
        launch_plan.require_api_key(Address("0.0.0.0", 8000))  # noqa: S104
    monkeypatch.setenv(launch_plan.API_KEY_VARIABLE, "secret")
    assert launch_plan.require_api_key(Address("0.0.0.0", 8000)) == "secret"  # noqa: S104


def test_the_command_serves_adapters_and_hides_the_key(folder: Path) -> None:
    plan = LaunchPlan("base", "base", Serve(), True, adapters={"classifier": folder}, max_lora_rank=8)
    argv = vllm_command(plan, Address("127.0.0.1", 8000))
    option: Callable[[str], Any] = lambda name: argv[argv.index(name) + 1]  # noqa: E731
    assert (option("--dtype"), option("--max-lora-rank"), option("--load-format")) == ("float32", "8", "safetensors")
    assert option("--lora-modules") == f"classifier={folder}"
    assert option("--allowed-media-domains") == "none.invalid"
    assert json.loads(option("--override-generation-config")) == {"temperature": 0.0}
    assert vllm_environment(plan, "secret")["VLLM_API_KEY"] == "secret" and "secret" not in " ".join(argv)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in vllm_environment(plan, None)


def planned(folder: Path, name: str = "smol", base: str = "/models/smol") -> tuple[ServedModel, LaunchPlan]:
    """What serves an adapter folder whose base bears a name."""
    prompt = atomic_files.read_json(folder / "prompt.json")
    atomic_files.write_json(folder / "prompt.json", prompt | {"base": prompt["base"] | {"name": base}})
    resummed(folder)
    recipe = load("classifier", ["model.quantization=none"], "cpu").recipe
    served = ServedModel(name, Run(folder.parent), recipe, "adapter")
    return served, launch_plan.plan_launch([served], recipe.serve)


def test_a_base_that_is_named_like_a_recipe_gets_another_name(folder: Path) -> None:
    """vLLM refuses to start where base and adapter have one name."""
    _, plan = planned(folder)
    assert (plan.name, list(plan.adapters)) == ("smol-base", ["smol"])
    _, plan = planned(folder, name="other")
    assert (plan.name, list(plan.adapters)) == ("smol", ["other"])


def test_vllm_gets_template_tokenizer_and_stop_of_the_training(folder: Path) -> None:
    _, plan = planned(folder)
    argv = vllm_command(plan, Address("127.0.0.1", 1))
    following = dict(pairwise(argv))
    assert following["--chat-template"] == str(folder / "chat_template.jinja")
    assert following["--tokenizer"] == following["--generation-config"] == str(folder)
    assert following["--tokenizer-mode"] == "hf"
    # Of an earlier version of this project, without a generation config.
    (folder / "generation_config.json").unlink()
    assert dict(pairwise(vllm_command(plan, Address("127.0.0.1", 1))))["--generation-config"] == "vllm"


def test_a_version_with_another_template_or_stop_is_not_loaded_beside(folder: Path, tmp_path: Path) -> None:
    served, running_plan = planned(folder)
    assert versions.find_incompatibility(running_plan, served) is None
    other_folder = shutil.copytree(folder, tmp_path / "later" / "adapter")
    later_model = replace(served, run=Run(other_folder.parent))
    prompt = atomic_files.read_json(other_folder / "prompt.json")
    atomic_files.write_json(other_folder / "prompt.json", prompt | {"stop": "<|user|>"})
    resummed(other_folder)
    assert "another stop token" in str(versions.find_incompatibility(running_plan, later_model))
    template = other_folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "{# later #}", encoding="utf-8")
    sha256 = atomic_files.sha256(template)
    atomic_files.write_json(other_folder / "prompt.json", prompt | {"chat_template_sha256": sha256})
    resummed(other_folder)
    assert "its chat template is another" in str(versions.find_incompatibility(running_plan, later_model))


def test_a_base_folder_that_is_gone_is_told(folder: Path, tmp_path: Path) -> None:
    """The run was trained on another machine, or the cache that held the base was emptied."""
    served, _ = planned(folder)
    recipe = served.recipe.with_model(base=str(tmp_path / "gone"), quantization="none")
    with raises_error(RecipeError, "INS-E003", match="there is no such folder"):
        launch_plan.locate_base(replace(served, recipe=recipe), Serve())
