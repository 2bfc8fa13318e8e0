"""The sections that say what to do and with which rows: task, data, privacy."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from recipes.section import Name, OpenShare, Section, Share

SPLITS = ("train", "validation", "calibration", "test")


class Task(Section):
    """What the model is asked to do."""

    kind: Literal["classification", "extraction", "generation", "preference"] = "classification"
    instruction: Annotated[str, Field(min_length=10)]
    """What the model is told to do, as one would tell a new colleague."""
    labels: Literal["auto"] | Annotated[list[Name], Field(min_length=2)] | dict[Name, str] = "auto"
    """classification: the labels, with descriptions if you have them, or `auto`: those of the rows."""
    json_schema: dict[str, JsonValue] | None = None
    """extraction: the JSON Schema of the answer; its strings bounded by maxLength."""

    @model_validator(mode="after")
    def _belongs_to_kind(self) -> Self:
        if self.kind == "extraction" and self.json_schema is None:
            raise ValueError("kind extraction needs json_schema, the JSON Schema of the answer")
        if self.kind != "extraction" and self.json_schema is not None:
            raise ValueError(f"json_schema belongs to kind extraction, and kind is {self.kind}")
        if self.kind != "classification" and self.labels != "auto":
            raise ValueError(f"labels belong to kind classification, and kind is {self.kind}")
        if isinstance(self.labels, list) and len(set(self.labels)) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise ValueError(f"labels must differ, and {', '.join(map(repr, twice))} stands there twice")
        if self.labels != "auto" and len(self.labels) < 2:
            raise ValueError("a choice needs two labels at least")
        return self


class Source(Section):
    """Where the rows are: one of `path`, `paths`, `hub` (split by us), or `train` and `test` (given splits)."""

    path: Name | None = None
    paths: Annotated[list[Name], Field(min_length=1)] | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Name | None = None
    """The commit of the hub data set; pinned when given, recorded when resolved."""
    train: Name | None = None
    validation: Name | None = None
    calibration: Name | None = None
    test: Name | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("path", "paths", "hub", "train") if getattr(self, name) is not None]
        if len(ways) != 1:
            given = " and ".join(ways) if ways else "none of them"
            raise ValueError(f"give exactly one of path, paths, hub, or train (with test); given: {given}")
        extra = [name for name in SPLITS[1:] if getattr(self, name) is not None]
        if extra and self.train is None:
            raise ValueError(f"{', '.join(extra)} goes with train (given splits), not with {ways[0]}")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        return self

    @property
    def files(self) -> dict[str, str]:
        """Returns {split or "all": path} of the files that this source names."""
        if self.path is not None:
            return {"all": self.path}
        return {split: path for split in SPLITS if (path := getattr(self, split)) is not None}


class Columns(Section):
    """Which column of the source holds what."""

    text: Name = "text"
    label: Name = "label"
    id: Name | None = None
    """A column of unique row ids; without it, ids are made from the file and the row number."""


class Split(Section):
    """How rows are split where the source does not say; the rest is train."""

    test: OpenShare = 0.2
    validation: OpenShare = 0.1
    calibration: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stratify: Name | None = "label"
    """Keep the shares of this within each split: `label`, or null for no stratification."""
    group: Name | None = None
    """A column whose rows with one value all go to one split, such as a customer."""
    time: Name | None = None
    """A column to sort by: test is the newest rows."""
    seed: Annotated[int, Field(ge=0)] = 17

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        held_out = self.test + self.validation + self.calibration
        if held_out >= 1:
            raise ValueError(f"test + validation + calibration = {held_out:g} leaves no rows for train")
        if self.time is not None and self.group is not None:
            raise ValueError("time and group can't both decide where a row goes; keep one")
        return self


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
    split: Split = Split()
    deduplicate: Deduplicate = Deduplicate()
    conflicts: Literal["drop", "majority", "fail"] = "drop"
    """What becomes of train rows with one text and several labels."""
    max_rejected: Share = 0.01
    """Above this share of unusable rows, preparation fails."""
    slices: dict[Name, NotInTrain | By] = {}
    """Parts of the test set that are reported apart."""


class Privacy(Section):
    """What may leave this machine."""

    data_may_leave: bool = True
    trusted_hosts: list[Name] = []
    redact: list[Literal["email", "phone", "card", "iban", "secret"]] = []
