"""The sections task, data and privacy: the task and its rows."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from insource.config.schema import json_schema_subset, task_labels
from insource.config.schema.section import Count, Fraction, Name, OpenFraction, Section
from insource.config.schema.source import Columns, Source
from insource.config.schema.teacher import Teacher


class Task(Section):
    """The task of the model."""

    kind: Literal["classification", "extraction", "generation", "preference"] = "classification"
    instruction: Annotated[str, Field(min_length=10)]
    """The instruction of the prompt, as you would give it to a new colleague."""
    labels: Literal["auto"] | Annotated[list[Name], Field(min_length=2)] | dict[Name, str] = "auto"
    """classification: the labels, optionally with descriptions, or `auto`: those of the rows."""
    labels_per_row: Literal["one", "many"] = "one"
    """classification: one label per row, or any number of labels; the answer then is a JSON array."""
    json_schema: dict[str, JsonValue] | None = None
    """extraction: the JSON Schema of the answer, with maxLength for strings and maxItems for arrays. A field may be an
    object, or an array of objects."""
    normalizers: dict[Name, list[Literal["whitespace", "case", "punctuation", "amount", "date_dmy", "date_mdy"]]] = {}
    """extraction: normalizers of a field before two values are compared; other fields are compared unchanged. A path
    names a field in an object: line_items.price."""

    absent: Literal["null", "omit"] = "null"
    """extraction: the form of a missing field in the answer: null, or omit to leave it out."""

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_to_text(cls, labels: object) -> object:
        return task_labels.labels_to_text(labels)

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: Any) -> object:
        if labels != "auto":
            task_labels.check_labels(labels)
        return labels

    @field_validator("json_schema")
    @classmethod
    def _check_json_schema(cls, json_schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if json_schema is None:
            return None
        json_schema_subset.check_schema(json_schema)
        return json_schema_subset.limits_to_int(json_schema)  # type: ignore[no-any-return]

    @field_validator("normalizers")
    @classmethod
    def _check_normalizers(cls, normalizers: dict[str, object], info: ValidationInfo) -> dict[str, object]:
        if (json_schema := info.data.get("json_schema")) is not None:
            json_schema_subset.check_normalizers(normalizers, json_schema)
        return normalizers

    @property
    def task_name(self) -> str:
        """Return the name of the task's module in insource/tasks: its kind, or multilabel."""
        return "multilabel" if self.labels_per_row == "many" else self.kind

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.labels_per_row == "many" and self.kind != "classification":
            raise ValueError(f"labels_per_row belongs to kind classification, and kind is {self.kind}")
        if self.normalizers and self.kind != "extraction":
            raise ValueError(f"normalizers belong to kind extraction, and kind is {self.kind}")
        if self.absent != "null" and self.kind != "extraction":
            raise ValueError(f"absent belongs to kind extraction, and kind is {self.kind}")
        if self.kind == "extraction" and self.json_schema is None:
            raise ValueError("kind extraction needs json_schema, the JSON Schema of the answer")
        if self.kind != "extraction" and self.json_schema is not None:
            raise ValueError(f"json_schema belongs to kind extraction, and kind is {self.kind}")
        if self.kind != "classification" and self.labels != "auto":
            raise ValueError(f"labels belong to kind classification, and kind is {self.kind}")
        if isinstance(self.labels, list) and len(set(self.labels)) < len(self.labels):
            duplicates = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ValueError(f"labels must differ, and {', '.join(map(repr, duplicates))} occurs twice")
        if self.labels != "auto" and len(self.labels) < 2:
            raise ValueError("a choice needs two labels at least")
        return self


class Split(Section):
    """How rows are split if the source has no splits; the remaining rows are train."""

    test: OpenFraction = 0.2
    validation: OpenFraction = 0.1
    calibration: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stratify: Name | None = "label"
    """Keep the label proportions in each split: `label`, or null for no stratification."""
    group: Name | None = None
    """A column, such as the customer. Rows with the same value go to the same split."""
    time: Name | None = None
    """A column of times (ISO 8601, or seconds since 1970): the newest rows are test."""
    cut: Name | None = None
    """The time at which test begins. Without it test is the newest fraction, and its begin moves with new rows."""
    straddling: Literal["keep", "drop"] = "keep"
    """What happens to train rows whose group is also in a given held-out split, or whose time is not before given test
    rows. They are counted in both cases."""
    seed: Annotated[int, Field(ge=0)] = 17

    @model_validator(mode="after")
    def _check_train_fraction(self) -> Self:
        held_out = self.test + self.validation + self.calibration
        if held_out >= 1:
            raise ValueError(f"test + validation + calibration = {held_out:g} leaves no rows for train")
        if self.time is not None and self.group is not None:
            raise ValueError("time and group can't both decide where a row goes; keep one")
        if self.cut is not None and self.time is None:
            raise ValueError("cut goes with time, the column that it cuts")
        return self


class Formats(Section):
    """Formats of numbers and dates in the source, if they differ from JSON and ISO 8601."""

    decimal: Literal[".", ","] | None = None
    """extraction: the decimal sign of numbers in text (a comma in `1.234,56` and `1 234,56`). The other sign, spaces
    and apostrophes group thousands. Without it, numbers are parsed as JSON."""
    amounts: dict[Name, Name | None] = {}
    """extraction: {field of a number: field of its currency}. `EUR 1.234,56` becomes 1234.56, and the currency, in its
    spelling, fills that field if the row has none; null discards the currency."""
    dates: dict[Name, Name] = {}
    """{field of an extraction, or split.time: format}, in Python's strptime codes (`%d.%m.%Y`). A field becomes an ISO
    8601 date. Values in ISO 8601 stay unchanged."""

    @field_validator("dates")
    @classmethod
    def _check_date_formats(cls, dates: dict[str, str]) -> dict[str, str]:
        for column, date_format in dates.items():
            if not _has_full_date(date_format):
                raise ValueError(
                    f"{column}: {date_format!r} is no format of a date: it needs year, month and day, such as %d.%m.%Y"
                )
        return dates

    @model_validator(mode="after")
    def _check_amounts(self) -> Self:
        if self.amounts and self.decimal is None:
            raise ValueError("amounts need decimal: is 1.234 more than a thousand, or more than one?")
        return self


def _has_full_date(date_format: str) -> bool:
    """Return whether a date survives formatting and parsing with this strptime format."""
    day = datetime(2026, 11, 25, 13, 14, 15, tzinfo=UTC)
    try:
        return datetime.strptime(day.strftime(date_format), date_format).date() == day.date()
    except ValueError:
        return False


class RareLabels(Section):
    """Policy for rare labels that were found in the rows."""

    min_rows: Annotated[int, Field(ge=2)]
    do: Literal["drop", "other", "fail"]
    """drop: their rows are dropped; other: they become one label; fail: the stage stops and lists them."""
    other: Name = "other"
    """With do: other, the name of that label."""


class Deduplicate(Section):
    """Which rows count as duplicates."""

    near: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Minimum Jaccard similarity of near-duplicates with one label; 1: exact duplicates only."""
    shingle: Literal["char3", "char4", "char5", "char6", "word1", "word2", "word3"] = "char5"


class NotInTrain(Section):
    """Rows whose value of this column or field does not occur in train."""

    not_in_train: Name


class By(Section):
    """One slice for each value of this column."""

    by: Name


class Data(Section):
    """The rows: source, columns, split."""

    source: Source
    columns: Columns = Columns()
    where: dict[Name, str | int | float | bool | list[str | int | float | bool | None] | None] = {}
    """The selected rows: {column: value, or list of values}, all conditions; null is an empty cell. Other rows are
    counted and ignored."""
    formats: Formats = Formats()
    rare_labels: RareLabels | None = None
    """classification with labels: auto: policy for labels with few rows."""
    split: Split = Split()
    deduplicate: Deduplicate = Deduplicate()
    conflicts: Literal["drop", "majority", "fail"] = "drop"
    """What happens to train rows with one text and several labels or records; preference: with one text and the same
    two answers, each preferred to the other. generation: one text may have several answers."""
    normalize_labels: bool = True
    """Whether labels that differ only in case, spaces, underscores and hyphens are one label; the original is kept."""
    too_long: Literal["drop", "fail"] = "drop"
    """What happens to train rows of more than train.max_length tokens; rows are never truncated."""
    num_proc: Literal["auto"] | Count = "auto"
    """Number of processes for preparation; auto: one per core. The output does not depend on it."""
    max_rejected: Fraction = 0.01
    """Maximum fraction of unusable rows; above it, preparation fails."""
    slices: dict[Name, NotInTrain | By] = {}
    """Parts of the test set that are reported separately."""
    teacher: Teacher | None = None
    """An API model that labels unlabelled rows, which are added to train. classification, extraction."""


class Privacy(Section):
    """Which data may leave this machine."""

    data_may_leave: bool = True
    trusted_hosts: list[Name] = []
    redact: list[Literal["email", "phone", "card", "iban", "secret"]] = []
    """Kinds of personal data that are replaced by placeholders before anything is written; other kinds are only
    counted."""
