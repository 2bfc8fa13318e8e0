"""FSDP2, as far as a CPU goes: two gloo processes spread a model, train, answer rows and leave its adapter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel

from insource.tasks.rendering import chat_template
from tests.conftest import ROOT
from tests.helpers import fsdp_ranks
from train.model import base


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize(("quantization", "initialization"), [("nf4", "true"), ("none", "olora")])
def test_the_adapter_of_spread_layers_is_written_whole_and_answers_as_they_do(
    quantization: str, initialization: str, tmp_path: Path
) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.helpers.fsdp_ranks"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "adapter"
    argv = [sys.executable, "-m", *launcher, str(folder), quantization, initialization]
    completed = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert completed.returncode == 0, completed.stderr
    payload = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    # Between validations each process holds half, and learns what one process learns.
    assert payload["local"] < 0.6 * payload["whole"]
    recipe = fsdp_ranks.load_recipe(f"model.quantization={quantization}", f"lora.init_lora_weights={initialization}")
    rows = fsdp_ranks.make_evaluator(chat_template.load_tokenizer(recipe.model))
    model = base.add_adapter(base.load_base_model(recipe), recipe.lora, 1)
    losses = [fsdp_ranks.train_one_update(model, rows.prompts) for _ in range(2)]
    assert payload["losses"] == pytest.approx(losses, rel=1e-4) and losses[1] != losses[0]
    assert [ids for ids, _ in payload["unchanged"]] == [ids for ids, _ in payload["untuned"]]
    assert payload["tuned"] != payload["tuned_again"] != payload["untuned"]

    model = PeftModel.from_pretrained(base.load_base_model(recipe), folder, autocast_adapter_dtype=False)
    answers = rows.predict(model, "alone")
    for answer, (token_ids, log_probability) in zip(answers, payload["tuned_again"], strict=True):
        assert answer.token_ids == token_ids
        assert answer.log_probability == pytest.approx(log_probability, abs=2e-3)
