"""The user's file of answers (JSONL, CSV, TSV, JSON or Parquet), converted to one answer for each test row.

in   {"id": "T000017", "output": "Delivery-Delay", "input_tokens": 231, "output_tokens": 5, "cost_usd": 0.0004}
     {"id": "T000018", "output": null}
out  SystemAnswer("T000017", "delivery_delay", input_tokens=231, output_tokens=5, cost_usd=0.0004)
     SystemAnswer("T000018", "", finish_reason="refusal")

The file is read like a data file (answer_file_rows.py), ids and labels like those of the source in data preparation.
Nothing is guessed: a duplicate id, or a number that is not finite, is an error.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compare.eval_dataset import EvalDataset
from compare.records import SystemAnswer
from compare.systems import answer_file_rows
from compare.systems.answer_file_rows import MAX_SHOWN_CHARACTERS, AnswerRow
from data_prep.readers.dotted_paths import parse_json_text
from data_prep.rows.value_formats import parse_record_values
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.compare import Baseline
from insource.config.schema.data import Formats
from insource.tasks.pii import redaction
from insource.tasks.source_record import UnusableRowError, to_text
from insource.tasks.task_kind import DecodedTaskKind

TOKEN_FIELDS = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")
AMOUNT_FIELDS = ("latency_seconds", "cost_usd")
FRACTION_FIELDS = ("confidence",)
NUMERIC_FIELDS = (*TOKEN_FIELDS, *AMOUNT_FIELDS, *FRACTION_FIELDS)
# A larger number cannot be a measurement, and a larger integer may not fit into a float.
MAX_NUMBER = 1e15


@dataclass(frozen=True)
class ReadingRules:
    """How data preparation read the ids and labels that the file repeats."""

    normalize_labels: bool = True
    """Whether spellings of a label are merged (data.normalize_labels)."""
    redact: Collection[str] = ()
    """Kinds of personal data that are replaced (privacy.redact)."""
    label_separator: str | None = None
    """Separator of several labels in one text (data.columns.label_separator)."""
    formats: Formats | None = None
    """Number and date formats of the source (data.formats)."""
    json_schema: Mapping[str, Any] | None = None
    """The schema of the records to which `formats` applies."""


DEFAULT_RULES = ReadingRules()


@dataclass(frozen=True)
class FileAnswer:
    """One answer of the file."""

    number: int
    output: Any
    """Text, or a record as an object; None for a refusal."""
    model_id: str | None
    numeric_fields: Mapping[str, Any]


@dataclass(frozen=True)
class AnswerFile:
    """A file of answers, read completely."""

    path: Path
    by_id: Mapping[str, FileAnswer]
    guessed_encoding: str | None
    """The encoding, if it was guessed from the bytes."""
    reformatted: int = 0
    """Number of answers that data.formats changed."""


def build_rules(recipe: Recipe) -> ReadingRules:
    """Return the rules with which the data of a recipe were prepared."""
    return ReadingRules(
        recipe.data.normalize_labels,
        recipe.privacy.redact,
        recipe.data.columns.label_separator,
        recipe.data.formats,
        recipe.task.json_schema,
    )


def read_answer_file(baseline: Baseline, rules: ReadingRules) -> AnswerFile:
    """Return the answers of a baseline's file. Raise RecipeError with file, line, id and key of the error."""
    assert baseline.path is not None
    path = Path(baseline.path)
    if not path.is_file():
        raise RecipeError(f"compare.baselines: there is no file {path}", code="INS-C006")
    answer_rows = answer_file_rows.read_answer_rows(path, baseline.encoding, NUMERIC_FIELDS)
    by_id: dict[str, FileAnswer] = {}
    reformatted = 0
    for row in answer_rows.rows:
        row_id, answer = _parse_row(row, rules)
        if (formatted := _apply_formats(answer.output, answer_rows.has_objects, rules)) is not answer.output:
            answer, reformatted = replace(answer, output=formatted), reformatted + isinstance(formatted, dict)
        if (previous := by_id.get(row_id)) is not None:
            raise RecipeError(
                f"{row.location}: id {row_id!r} is in {answer_rows.unit} {previous.number} already; a row has one "
                "answer: keep one of them",
                code="INS-C007",
            )
        by_id[row_id] = answer
    return AnswerFile(path, by_id, answer_rows.guessed_encoding, reformatted)


def match_rows(
    file: AnswerFile, name: str, dataset: EvalDataset, rules: ReadingRules
) -> tuple[list[SystemAnswer], str | None, list[str]]:
    """Return an answer for each test row, the reason if they are not complete (else None), and notes on the reading.

    Raise RecipeError if no id belongs to a test row.
    """
    # A comparison of kind preference has no file baselines (catalog.py).
    assert isinstance(dataset.task, DecodedTaskKind)
    normalize = dataset.task.make_answer_reader(dataset.spec, rules.normalize_labels, rules.label_separator)
    answers, n_respelt = [], 0
    for row in dataset.test:
        file_answer = file.by_id.get(row["id"])
        output = None
        if file_answer is not None:
            output = "" if file_answer.output is None else normalize(file_answer.output)
            if isinstance(file_answer.output, str):
                n_respelt += output != file_answer.output and output != file_answer.output.strip()
        answers.append(_to_system_answer(row["id"], file_answer, output, name, rules))
    n_answered = sum(row["id"] in file.by_id for row in dataset.test)
    coverage = f"{file.path.name} answers {n_answered:,} of {len(answers):,} test rows"
    extra_ids = f", and has {len(file.by_id) - n_answered:,} ids that are none of them"
    if not n_answered:
        raise RecipeError(
            f"{file.path} answers none of the {len(answers):,} test rows: its ids must be those of data/test.jsonl",
            code="INS-C008",
        )
    notes = []
    if file.guessed_encoding:
        notes.append(f"{name}: {file.path.name} is not UTF-8: read as {file.guessed_encoding}; set encoding to be sure")
    if file.reformatted:
        notes.append(f"{name}: numbers or dates of {file.reformatted:,} answers are read as data.formats says")
    if n_respelt:
        notes.append(f"{name}: {n_respelt:,} answers in another spelling of a label, read as data preparation reads it")
    if n_answered == len(answers):
        return answers, None, notes
    return answers, coverage + (extra_ids if len(file.by_id) > n_answered else ""), notes


def _apply_formats(output: object, has_objects: bool, rules: ReadingRules) -> object:
    """Return an answer with its numbers and dates converted like those of the source.

    The answer itself is returned if nothing changes. A value in another format becomes text, which no schema accepts. A
    text is a model's output and must have the format of every model's answer. Tables are an exception: they can contain
    a record only as text.
    """
    formats, schema = rules.formats, rules.json_schema
    if schema is None or formats is None or not (formats.decimal or formats.dates):
        return output
    record = output if has_objects else parse_json_text(output)
    if not isinstance(record, dict):
        return output
    try:
        parsed = parse_record_values(record, schema, formats)
    except UnusableRowError:
        return to_text(output)
    return output if parsed == record else parsed


def _to_system_answer(
    row_id: str, file_answer: FileAnswer | None, output: str | None, name: str, rules: ReadingRules
) -> SystemAnswer:
    if file_answer is None or output is None:
        return SystemAnswer(row_id, None, model_id=name, error="not in the file")
    if rules.redact:
        output = redaction.redact(output, rules.redact).text
    reason = "refusal" if file_answer.output is None else "stop"
    return SystemAnswer(
        row_id, output, finish_reason=reason, model_id=file_answer.model_id or name, **file_answer.numeric_fields
    )


def _parse_row(row: AnswerRow, rules: ReadingRules) -> tuple[str, FileAnswer]:
    """Return the id and the answer of one row."""
    row_id = _parse_id(row.location, row.values["id"], rules)
    location, model = f"{row.location}: id {row_id!r}", row.values.get("model_id")
    if model is not None and not isinstance(model, str):
        raise RecipeError(f"{location}: model_id is {model!r}; give text, or leave it out", code="INS-C007")
    numbers = {name: _check_number(location, name, row.values[name]) for name in NUMERIC_FIELDS if name in row.values}
    reported = {name: value for name, value in numbers.items() if value is not None}
    return row_id, FileAnswer(row.number, row.values["output"], model, reported)


def _parse_id(location: str, value: object, rules: ReadingRules) -> str:
    """Return an id as data preparation writes it: a number as text, personal data as pseudonyms."""
    usable = isinstance(value, str | int | float) and not isinstance(value, bool)
    row_id = to_text(value).strip() if usable else ""
    if not row_id or (isinstance(value, float) and not math.isfinite(value)):
        raise RecipeError(f"{location}: id is {value!r}; give the id of a test row, text or a number", code="INS-C007")
    return redaction.pseudonymize(row_id, rules.redact)


def _check_number(location: str, name: str, value: Any) -> int | float | None:
    """Return a number of the file, None for null (unknown). Raise RecipeError for any other value."""
    if value is None:
        return None
    requirement, max_value, is_integer = "a number of at least 0", MAX_NUMBER, name in TOKEN_FIELDS
    if is_integer:
        requirement = "a whole number of at least 0"
    elif name in FRACTION_FIELDS:
        requirement, max_value = "a number from 0 to 1", 1.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is false for NaN.
    if not is_number or not 0 <= value <= max_value or (is_integer and value != int(value)):
        display = repr(value) if is_number else to_text(value)
        raise RecipeError(
            f"{location}: {name} is {display[:MAX_SHOWN_CHARACTERS]}; give {requirement}, or null where it is not "
            "known",
            code="INS-C007",
        )
    return int(value) if is_integer else float(value)
