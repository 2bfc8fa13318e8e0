"""The typed records of data.json: counts, findings and hashes of prepared data.

runs/<recipe>/.data/<digest>/data.json   {"schema_version": 2, "digest": "...", "rows": {"read": 13083, ...}, ...}

DataReport.read(run.folder / "data").rows.written["train"]          7900
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insource.system import atomic_files
from insource.tracking.record import Number, StoredRecord, key

REPORT_FILE = "data.json"


class RowCounts(StoredRecord):
    """What became of the rows: read = written + rejected + dropped + filtered + unlabelled."""

    read: int
    filtered: int = 0
    """Rows that data.where filters out."""
    unlabelled: int = 0
    """Rows of labelled files that nobody has labelled."""
    written: Mapping[str, int]
    """{split: rows}."""
    rejected: Mapping[str, int]
    """{reason: rows}."""
    dropped: Mapping[str, int]
    """{reason: rows}."""


class SourceReport(StoredRecord):
    """One source file."""

    split: str
    """"all", "labelled" or a given split."""
    file: str
    sha256: str
    bytes: int = 0
    """Left out for a source that is no single file."""
    rows_read: int
    detected: Mapping[str, Any]
    """Detected properties: encoding, delimiter, columns."""
    lacks: list[str] = []
    """Columns of data.split that it does not have."""
    lacks_answers: list[str] = []
    """Answer columns that it does not have."""
    rows_unlabelled: int = 0
    """Left out unless the file is a labelled one."""


class SplitFractions(StoredRecord):
    """The size of an assigned split, before deduplication."""

    requested: Number = key("asked")
    """Requested fraction."""
    actual: Number = key("share")
    """Actual fraction."""
    worst_label_deviation: Number


class SplitReport(StoredRecord):
    """How rows were split."""

    by: str
    """The method as text."""
    cut: str | None = None
    """Time from which on rows are test rows; None without a time column."""
    rows_without_group: int = 0
    fractions: Mapping[str, SplitFractions] = key("shares", default={})
    """{split: sizes} of the splits that are not given."""


class NearDuplicateSettings(StoredRecord):
    """The settings of the search for near-duplicates."""

    threshold: Number
    """Jaccard similarity; 1 is off."""
    shingle: str
    recall_at_threshold: Number = key("found_at_threshold")
    """Probability of finding a pair with that similarity."""


class LabelReport(StoredRecord):
    """A label, with the rows written by split."""

    description: str
    train: int = 0
    validation: int = 0
    calibration: int = 0
    test: int = 0
    spellings: Mapping[str, int] = {}
    """{label as written: rows}; left out if the only spelling is the label."""

    @property
    def rows_by_split(self) -> dict[str, int]:
        """{split: rows written}."""
        return {
            "train": self.train,
            "validation": self.validation,
            "calibration": self.calibration,
            "test": self.test,
        }


class LabelsPerRow(StoredRecord):
    """Numbers of labels of multi-label rows."""

    may_be_empty: bool
    """Whether rows without a label were written."""
    rows: Mapping[str, int]
    """{number of labels: rows written}."""


class ServedLimit(StoredRecord):
    """The limit of tokens of a served model."""

    tokens: int
    limit: str
    """The key that sets it."""
    for_the_answer: int
    """Tokens of them for the answer."""
    test_rows_that_do_not_fit: int
    train_rows_that_do_not_fit: int = 0


class TokenReport(StoredRecord):
    """Token counts. All but `max_length` is left out if no row was counted."""

    max_length: int
    longest: int = 0
    median: int = 0
    over_max_length: Mapping[str, int] = {}
    """{split: rows}."""
    served: ServedLimit | None = None
    histogram: Mapping[str, list[int]] = {}
    """"edges" of the bins, and by split the rows of each bin."""


class PersonalDataReport(StoredRecord):
    """Personal data of one kind: counts and locations, never values."""

    rows: int
    redacted: bool
    locations: list[str] = key("at")
    """First locations."""


class SliceReport(StoredRecord):
    """A slice of the recipe."""

    column: str = key("of")
    """The column or field name."""
    values: Mapping[str, Mapping[str, int]]
    """{value: {split: rows written}}."""
    test_rows_known_to_given_train: int | None = None
    """Left out unless the slice is a not_in_train slice of a source with given test rows."""


class LabelIssueReport(StoredRecord):
    """Likely label errors."""

    rows_examined: int = key("rows_looked_at")
    count: int = key("found")
    accuracy: Number | None = None
    """Of the linear model, cross-validated."""
    mean_recall: Number | None = None
    no_issues_reason: str = key("why_none", default="")


class TeacherRows(StoredRecord):
    """What became of the unlabelled rows."""

    read: int
    unusable: Mapping[str, int]
    """{reason: rows}."""
    sent: int
    labelled: int
    left_out: Mapping[str, int]
    """{reason: rows}."""


class TeacherReport(StoredRecord):
    """Contents of teacher.json: the labels of a teacher."""

    name: str
    """Provider, model and API."""
    model_ids: Mapping[str, int]
    """{model that answered: labels}."""
    stand_in: bool
    """Whether a server on this machine stood in for the provider."""
    rows: TeacherRows
    min_confidence: Number | None
    has_probabilities: bool
    spent_usd: Number
    budget_usd: Number
    written: int = 0
    """Train rows with its labels; only in data.json."""
    labels_sha256: str = ""
    """Only in data.json."""


class DataReport(StoredRecord):
    """Contents of data.json. A field with a default is missing in files of earlier versions."""

    schema_version: int
    digest: str
    started: str
    """UTC time."""
    processes: int
    seconds: Mapping[str, Number]
    """{step: duration}."""
    sources: list[SourceReport]
    left_out: list[str]
    """Files that were not read."""
    rows: RowCounts
    split: SplitReport
    duplicate_key: str
    near_duplicates: NearDuplicateSettings
    test_rows_also_elsewhere: Mapping[str, int]
    labels: Mapping[str, LabelReport]
    labels_per_row: LabelsPerRow | None = None
    """None unless rows have several labels."""
    fields: Mapping[str, Mapping[str, Mapping[str, int]]] = {}
    """{field: {given split: {state: rows}}} before deduplication."""
    answers: Mapping[str, Mapping[str, Number]] = {}
    """{trait: {"mean", "median"}} of free-text answers."""
    tokens: TokenReport
    personal_data: Mapping[str, PersonalDataReport] = {}
    system_prompts_replaced: int = 0
    provenance: Mapping[str, Mapping[str, int]] = {}
    """{origin of the label: {split: rows written}}."""
    where_unmatched: list[str] = []
    rare_labels: list[str] = []
    not_learnable: list[str] = []
    straddling: Mapping[str, int] = {}
    """{reason: train rows}."""
    slices: Mapping[str, SliceReport] = {}
    label_issues: LabelIssueReport = key("suspects")
    teacher: TeacherReport | None = None
    sha256: Mapping[str, str]
    """{file: hash} of all other files."""

    @classmethod
    def read(cls, folder: Path) -> "DataReport":
        """Return the report of prepared data. Raise RecipeError if this version cannot read it."""
        path = folder / REPORT_FILE
        return cls.parse(atomic_files.read_json(path), path)

    @property
    def label_descriptions(self) -> dict[str, str]:
        """{label: description} in prompt order."""
        return {label: entry.description for label, entry in self.labels.items()}

    @property
    def may_be_empty(self) -> bool:
        """Whether multi-label rows without a label were written."""
        return self.labels_per_row is not None and self.labels_per_row.may_be_empty

    @property
    def max_answer_tokens(self) -> int:
        """The limit of an answer in tokens of the base, as training sets it."""
        assert self.tokens.served is not None, "no row was written"
        return self.tokens.served.for_the_answer
