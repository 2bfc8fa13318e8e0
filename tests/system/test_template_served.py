"""A base with everything that may vary at once, through training and vLLM: a thinking switch, today's date, a stop that
is not the tokenizer's EOS, and an answered form that the open prompt does not continue into."""

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from insource.system import atomic_files
from serve.vllm.server_process import free_port
from tests.helpers import chat_templates as kinds
from tests.helpers import commands

KIND = replace(
    kinds.STOP_OF_CONFIG,
    generation_prompt="<|assistant|>\n" + kinds.NO_THINKING + kinds.EMPTY_THOUGHT + "{% else %}<think>\n{% endif %}",
    preamble="{% if date_string is not defined %}{% set date_string = strftime_now('%A %d %B %Y') %}{% endif %}"
    "Today: {{ date_string }}\n{% if reasoning_effort is defined %}Effort: {{ reasoning_effort }}\n{% endif %}",
)


@pytest.mark.slow(minutes=2)
def test_what_is_pinned_stays_pinned_in_training_and_in_vllm(small_recipe: Path, tmp_path: Path) -> None:
    base = kinds.write_base(tmp_path / "varies", KIND, weights=True)
    runs, setting = tmp_path / "runs", f"model.base={base}"
    completed = commands.run_command(runs, "train", small_recipe, *commands.TRAIN_SETTINGS, setting)
    assert completed.returncode == 0, completed.stderr
    assert "pinned: enable_thinking false, date 2026-01-01 (model.template)" in completed.stderr
    assert "answers end in '<end_of_turn>', not in the tokenizer's EOS '<eos>'" in completed.stderr
    assert "fallback  its template begins an answer with" in completed.stderr
    (adapter,) = (runs / small_recipe.stem / "latest").glob("adapter")
    prompt = atomic_files.read_json(adapter / "prompt.json")
    assert prompt["stop"] == "<end_of_turn>" and prompt["template"]["pinned"]["enable_thinking"] is False
    references = list(atomic_files.read_jsonl(adapter.parent / "reference.jsonl"))
    port, log = free_port(), tmp_path / "serve.log"
    # Serving compares the ids of all prompts, and all answers, with those of the training before it is ready.
    args = ("serve", small_recipe, setting, f"serve.port={port}", "serve.model=adapter")
    with commands.run_in_background(runs, log, *args) as process:
        log_text = commands.wait_for(log, "ready     http", process)
        assert "100.0% of" in log_text and "prompts read as trained" in log_text
        assert "Error parsing config" not in (adapter.parent / "serve.log").read_text(encoding="utf-8")
        request_body: dict[str, Any] = {"model": small_recipe.stem, "messages": prompt["messages"]}
        assert posted(port, "/tokenize", request_body)["tokens"] == prompt["prompt_ids"]
        for thinking in (True, False):
            extra = {
                "chat_template_kwargs": {
                    "enable_thinking": thinking,
                    "date_string": "today",
                    "reasoning_effort": "high",
                }
            }
            assert posted(port, "/tokenize", request_body | extra)["tokens"] == prompt["prompt_ids"]
        completion_body = {"model": small_recipe.stem, "prompt": references[0]["prompt_ids"], "max_tokens": 64}
        (choice,) = posted(
            port, "/v1/completions", completion_body | {"structured_outputs": {"grammar": prompt["grammar"]}}
        )["choices"]
        assert (choice["text"], choice["finish_reason"]) == (references[0]["answer"], "stop")


def posted(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        return json.loads(response.read())  # type: ignore[no-any-return]
