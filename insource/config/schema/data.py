"""The sections that say what to do and with which rows: task, data, privacy."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from insource.config.schema import json_schema_subset, task_labels
from insource.config.schema.section import Count, Fraction, Name, OpenFraction, Section
from insource.config.schema.source import Columns, Source


class Task(Section):
    """What the model is asked to do."""

    kind: Literal["classification", "extraction", "generation", "preference"] = "classification"
    instruction: Annotated[str, Field(min_length=10)]
    """What the model is told to do, as one would tell a new colleague."""
    labels: Literal["auto"] | Annotated[list[Name], Field(min_length=2)] | dict[Name, str] = "auto"
    """classification: the labels, with descriptions if you have them, or `auto`: those of the rows."""
    labels_per_row: Literal["one", "many"] = "one"
    """classification: whether a row has one label, or any number of them: the answer is a JSON array then."""
    json_schema: dict[str, JsonValue] | None = None
    """extraction: the JSON Schema of the answer; its strings bounded by maxLength, its arrays by maxItems. A field may
    be an object, or an array of objects."""
    normalizers: dict[Name, list[Literal["whitespace", "case", "punctuation", "amount", "date_dmy", "date_mdy"]]] = {}
    """extraction: what is evened out in a field before two values are compared; a field not named is compared as is.
    A field in an object is named by its path: line_items.price."""

    absent: Literal["null", "omit"] = "null"
    """extraction: what stands in the answer for a field that the document does not have: null, or nothing at all."""

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_as_text(cls, labels: Any) -> Any:
        return task_labels.labels_to_text(labels)

    @field_validator("labels")
    @classmethod
    def _can_be_answered(cls, labels: Any) -> Any:
        if labels != "auto":
            task_labels.check_labels(labels)
        return labels

    @field_validator("json_schema")
    @classmethod
    def _can_be_held_to(cls, json_schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if json_schema is None:
            return None
        json_schema_subset.check_schema(json_schema)
        return json_schema_subset.limits_to_int(json_schema)  # type: ignore[no-any-return]

    @field_validator("normalizers")
    @classmethod
    def _of_known_fields(cls, normalizers: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if (json_schema := info.data.get("json_schema")) is not None:
            json_schema_subset.check_normalizers(normalizers, json_schema)
        return normalizers

    @property
    def variant(self) -> str:
        """Returns the name of the module of tasks/ that does it: its kind, or multilabel."""
        return "multilabel" if self.labels_per_row == "many" else self.kind

    @model_validator(mode="after")
    def _belongs_to_kind(self) -> Self:
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
            raise ValueError(f"labels must differ, and {', '.join(map(repr, duplicates))} stands there twice")
        if self.labels != "auto" and len(self.labels) < 2:
            raise ValueError("a choice needs two labels at least")
        return self


class Split(Section):
    """How rows are split where the source does not say; the rest is train."""

    test: OpenFraction = 0.2
    validation: OpenFraction = 0.1
    calibration: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stratify: Name | None = "label"
    """Keep the shares of this within each split: `label`, or null for no stratification."""
    group: Name | None = None
    """A column whose rows with one value all go to one split, such as a customer."""
    time: Name | None = None
    """A column of times (ISO 8601, or seconds since 1970): test is the newest rows."""
    cut: Name | None = None
    """The time from which on a row is test. Without it the newest `test` share is, and the cut moves as rows come."""
    straddling: Literal["keep", "drop"] = "keep"
    """What becomes of train rows whose group is in a given held-out split too, or whose time is not before given test
    rows; either way they are counted."""
    seed: Annotated[int, Field(ge=0)] = 17

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        held_out = self.test + self.validation + self.calibration
        if held_out >= 1:
            raise ValueError(f"test + validation + calibration = {held_out:g} leaves no rows for train")
        if self.time is not None and self.group is not None:
            raise ValueError("time and group can't both decide where a row goes; keep one")
        if self.cut is not None and self.time is None:
            raise ValueError("cut goes with time, the column that it cuts")
        return self


class Formats(Section):
    """How the source writes numbers and dates, where JSON and ISO 8601 would write them in another way."""

    decimal: Literal[".", ","] | None = None
    """extraction: the sign before the decimals of numbers that are text (`1.234,56`, `1 234,56` with a comma); the
    other one, spaces and apostrophes group thousands. Without it, numbers are read as JSON writes them."""
    amounts: dict[Name, Name | None] = {}
    """extraction: {field of a number: field of its currency}: `EUR 1.234,56` is 1234.56, and its currency, as it is
    written, goes to that field where the row gives none; null leaves it out."""
    dates: dict[Name, Name] = {}
    """{field of an extraction, or split.time: format}, in Python's strptime codes (`%d.%m.%Y`). A field becomes an ISO
    8601 date. What is in ISO 8601 already stays."""

    @field_validator("dates")
    @classmethod
    def _say_which_day(cls, dates: dict[str, str]) -> dict[str, str]:
        for column, date_format in dates.items():
            if not _has_full_date(date_format):
                raise ValueError(
                    f"{column}: {date_format!r} is no format of a date: it needs year, month and day, such as %d.%m.%Y"
                )
        return dates

    @model_validator(mode="after")
    def _amounts_are_plain(self) -> Self:
        if self.amounts and self.decimal is None:
            raise ValueError("amounts need decimal: is 1.234 more than a thousand, or more than one?")
        return self


def _has_full_date(date_format: str) -> bool:
    """Whether a date can be read back from what this strptime format writes."""
    day = datetime(2026, 11, 25, 13, 14, 15, tzinfo=UTC)
    try:
        return datetime.strptime(day.strftime(date_format), date_format).date() == day.date()
    except ValueError:
        return False


class RareLabels(Section):
    """What becomes of labels that are found in the rows and have few of them."""

    min_rows: Annotated[int, Field(ge=2)]
    do: Literal["drop", "other", "fail"]
    """drop: their rows leave; other: they become one label; fail: the stage stops and names them."""
    other: Name = "other"
    """With do: other, the name of that label."""


class Deduplicate(Section):
    """Which rows count as the same."""

    near: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Jaccard similarity from which two rows with one label are near-duplicates; 1 keeps to exact ones."""
    shingle: Literal["char3", "char4", "char5", "char6", "word1", "word2", "word3"] = "char5"


class NotInTrain(Section):
    """Rows whose value of this column or field does not occur in train."""

    not_in_train: Name


class By(Section):
    """One slice for each value of this column."""

    by: Name


class Data(Section):
    """The rows: where they are, what is in them, how they are split."""

    source: Source
    columns: Columns = Columns()
    where: dict[Name, str | int | float | bool | list[str | int | float | bool | None] | None] = {}
    """Which rows are meant: {column: value, or list of values}, all of them; null is an empty cell. The others are
    counted and are otherwise not there."""
    formats: Formats = Formats()
    rare_labels: RareLabels | None = None
    """classification with labels: auto: what becomes of labels with few rows."""
    split: Split = Split()
    deduplicate: Deduplicate = Deduplicate()
    conflicts: Literal["drop", "majority", "fail"] = "drop"
    """What becomes of train rows with one text and several labels or records; preference: with one text and the same
    two answers, each preferred to the other. generation: one text may have several answers."""
    normalize_labels: bool = True
    """Whether labels that differ in case, spaces, underscores and hyphens alone are one; the original is kept."""
    too_long: Literal["drop", "fail"] = "drop"
    """What becomes of train rows of more than train.max_length tokens; no row is ever cut."""
    num_proc: Literal["auto"] | Count = "auto"
    """Processes to prepare with; auto: one a core. The bytes written are the same."""
    max_rejected: Fraction = 0.01
    """Above this share of unusable rows, preparation fails."""
    slices: dict[Name, NotInTrain | By] = {}
    """Parts of the test set that are reported apart."""


class Privacy(Section):
    """What may leave this machine."""

    data_may_leave: bool = True
    trusted_hosts: list[Name] = []
    redact: list[Literal["email", "phone", "card", "iban", "secret"]] = []
    """What is replaced by a placeholder before anything is written; the rest is counted."""
