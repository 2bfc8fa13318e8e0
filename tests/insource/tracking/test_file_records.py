"""The typed records of the files of a run: old files are read, and what is not known stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from insource.config.errors import RecipeError
from insource.tracking.data_report import DataReport
from insource.tracking.manifest import Manifest
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.reference_row import ReferenceRow, read_references
from insource.tracking.run import Run
from tests.helpers.data_reports import write_data_report
from tests.helpers.errors import raises_error

STAGE = {
    "state": "done",
    "started": "2026-11-21T09:30:00+00:00",
    "ended": "2026-11-21T09:40:00+00:00",
    "inputs": {"data/train.jsonl": "ab"},
    "outputs": {},
    "fallbacks": ["packing: none"],
    "exit_reason": "done",
    "metrics": {"validation": {"tuned": {"accuracy": 0.87, "n": 300}}, "seconds": 12},
}
MANIFEST = {
    "schema_version": 1,
    "run_id": "20261121T093000Z-x4fd",
    "recipe": "classifier",
    "digest": "9f2c",
    "replaced": ["train.epochs"],
    "stages": {"train": STAGE},
}
PROMPT = {
    "schema_version": 1,
    "task": {"kind": "classification", "instruction": "Choose.", "labels": {"late": "", "lost": ""}},
    "messages": [{"role": "user", "content": "Choose.\n{input}"}],
    "prompt_ids": [1, 2, 3],
    "output_schema": {"type": "string", "enum": ["late", "lost"]},
    "grammar": 'root ::= "late" | "lost"',
    "stop": "<|end|>",
    "max_answer_tokens": 16,
    "chat_template_sha256": "5c1d",
    "template": {"pinned": {"enable_thinking": False}, "own_suffix": None},
    "base": {"name": "pocket/model", "commit": None, "sha256": {"model.safetensors": "cd"}, "trained": None},
    "references": {"rows": 300, "sha256": "ef"},
}


def without(payload: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in names}


@pytest.mark.parametrize(
    ("record", "payload"),
    [
        (Manifest, MANIFEST),
        (Manifest, without(MANIFEST, "replaced") | {"stages": {"train": without(STAGE, "fallbacks", "metrics")}}),
        (PromptSpec, PROMPT),
        (PromptSpec, without(PROMPT, "task", "prompt_ids", "stop", "template", "references")),
        (PromptSpec, PROMPT | {"of_a_later_version": {"x": 1}}),
        (ReferenceRow, {"id": "T1", "prompt_ids": [1], "answer": "late", "log_probability": -1, "margin": None}),
    ],
)
def test_a_file_of_another_version_is_written_again_with_the_same_values(record: Any, payload: dict[str, Any]) -> None:
    assert record.model_validate(payload).to_json() == payload
    assert json.dumps(record.model_validate(payload).to_json()) == json.dumps(payload)


def test_a_file_with_a_wrong_value_names_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text(json.dumps(PROMPT | {"max_answer_tokens": "16"}), encoding="utf-8")
    with raises_error(RecipeError, "INS-R014", match=r"prompt\.json.*max_answer_tokens"):
        PromptSpec.read(tmp_path)
    (tmp_path / "reference.jsonl").write_text('{"id": "T1", "answer": "late"}\n', encoding="utf-8")
    with raises_error(RecipeError, "INS-R014", match=r"reference\.jsonl.*prompt_ids"):
        list(read_references(tmp_path / "reference.jsonl"))
    (tmp_path / "manifest.json").write_text(json.dumps(without(MANIFEST, "digest")), encoding="utf-8")
    with raises_error(RecipeError, "INS-R014", match=r"manifest\.json.*digest"):
        Run(tmp_path).stage("train")


def test_a_prompt_without_a_task_says_which_version_wrote_it(tmp_path: Path) -> None:
    spec = PromptSpec.model_validate(without(PROMPT, "task"))
    assert spec.kind == ""
    with raises_error(RecipeError, "INS-R014", match="earlier version"):
        spec.load_task()


def test_a_report_of_an_earlier_version_lacks_what_came_later(tmp_path: Path) -> None:
    write_data_report(tmp_path)
    report = DataReport.read(tmp_path)
    assert (report.teacher, report.may_be_empty, report.provenance, report.label_descriptions) == (None, False, {}, {})
    assert "teacher" not in json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
