"""predictions/<system>.jsonl: the parsed and scored answers of a system to each row, with their costs.

{"id": "T000017", "system": "tuned", "split": "test", "repeat": 0, "model_id": "classifier", "request_sha256": "...",
 "output": "delivery_delay", "parsed": "delivery_delay", "parse_ok": true, "schema_ok": true, "label_ok": true,
 "scores": {"accuracy": 1.0}, "confidence": 0.97, "input_tokens": 231, "output_tokens": 5, "reasoning_tokens": null,
 "cached_tokens": 208, "latency_seconds": 0.041, "attempt_latencies_seconds": [0.041], "reused": false,
 "cost_usd": null, "error": null, "probabilities": null, "not_asked": false}

Three flags are separate: whether an answer can be read (parse), whether it has the required structure (schema), and
whether it is an allowed answer (label). All three are false for a row without an answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from compare.eval_dataset import EvalDataset
from compare.records import SystemAnswer
from insource.system import atomic_files
from insource.tasks.data_row import Rows
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer

NO_ANSWER = "no_answer"
# Problems by the stage at which they stop an answer. Any other problem passes parse and schema.
UNPARSEABLE = (NO_ANSWER, TRUNCATED, "refusal", "empty", "not_json")
OUTSIDE_SCHEMA = ("wrong_schema", "invented_key")


@dataclass(frozen=True)
class Predictions:
    """The answers of one system to the rows of one split, in the order of the rows."""

    answers: Sequence[SystemAnswer]
    parsed: Sequence[ParsedAnswer]
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Values by row, for the metrics that a single row has."""


def score_answers(dataset: EvalDataset, rows: Rows, answers: Sequence[SystemAnswer]) -> Predictions:
    """Return the answers with parsed values and metrics of the task."""
    import numpy as np

    parsed = [parse_answer(dataset, answer) for answer in answers]
    metrics = {
        name: [float(value) for value in stats.from_sums(stats.row_stats)]
        for name, stats in dataset.compute_metric_stats(rows, parsed).items()
        if isinstance(stats.row_stats, np.ndarray)
    }
    return Predictions(answers, parsed, metrics)


def parse_answer(dataset: EvalDataset, answer: SystemAnswer) -> ParsedAnswer:
    """Return the parsed answer. An answer that was cut off, refused or missing has a problem."""
    if answer.output is None:
        return ParsedAnswer(None, NO_ANSWER)
    if answer.finish_reason == "length":
        return ParsedAnswer(None, TRUNCATED)
    if answer.finish_reason in ("refusal", "content_filter"):
        return ParsedAnswer(None, "refusal")
    if not answer.output.strip():
        return ParsedAnswer(None, "empty")
    if dataset.task.OBJECTIVE == "prefer":
        return ParsedAnswer(json.loads(answer.output))
    parsed: ParsedAnswer = dataset.task.parse(dataset.spec, answer.output)
    return parsed


def validity_flags(problem: str | None) -> tuple[bool, bool, bool]:
    """Return the flags parse, schema and label of an answer with this problem."""
    if problem is None:
        return True, True, True
    if problem in UNPARSEABLE:
        return False, False, False
    return True, problem not in OUTSIDE_SCHEMA, False


def write_predictions(
    folder: Path,
    system: str,
    predictions: Predictions,
    confidences: Sequence[float | None],
    repeat: int = 0,
) -> None:
    """Write the predictions of a system to the test rows atomically."""
    lines = []
    for index, (answer, parsed) in enumerate(zip(predictions.answers, predictions.parsed, strict=True)):
        parse_ok, schema_ok, label_ok = validity_flags(parsed.problem)
        payload = asdict(answer)
        for name in ("log_probability", "field_log_probability", "finish_reason", "may_pass"):
            del payload[name]
        payload["not_asked"] = payload.pop("not_queried")
        record = {
            "id": answer.id,
            "system": system,
            "split": "test",
            "repeat": repeat,
            **payload,
            "parsed": parsed.value,
            "parse_ok": parse_ok,
            "schema_ok": schema_ok,
            "label_ok": label_ok,
            "scores": {name: values[index] for name, values in predictions.metrics.items()},
            "confidence": confidences[index],
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    folder.mkdir(exist_ok=True)
    atomic_files.write_text(folder / f"{slug(system)}{f'.{repeat}' if repeat else ''}.jsonl", "\n".join(lines) + "\n")


def slug(system: str) -> str:
    """Return a system's name as a file name. If the name had to be changed, a digest keeps it unique."""
    plain = re.sub(r"[^\w.-]+", "-", system).strip("-.") or "system"
    return plain if plain == system else f"{plain}-{atomic_files.digest(system)[:6]}"
