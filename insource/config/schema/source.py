"""The sections data.source and data.columns: the location of the rows, and their columns."""

import codecs
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from insource.config.schema.section import Count, Name, Section

SPLITS = ("train", "validation", "calibration", "test")


class Source(Section):
    """Location of the rows: one of `path`, `paths`, `hub` (split by this project), or `train` and `test` (given
    splits).

    A path is a file, a glob, a folder of files, or a folder that `datasets` saved: CSV, TSV, JSON, JSONL, text (.txt),
    each also as .gz or .zst, Parquet, and Excel workbooks (.xlsx).
    """

    path: Name | None = None
    paths: Annotated[list[Name], Field(min_length=1)] | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")] | None = None
    """The commit of the hub data set, so that results stay reproducible."""
    config: Name | None = None
    """The configuration of the hub data set, if it has several."""
    train: Name | None = None
    validation: Name | None = None
    calibration: Name | None = None
    test: Name | None = None
    labelled: Annotated[list[Name], Field(min_length=1)] | None = None
    """Files that `make label` wrote and a person filled in. Their labelled rows go to train, never to another split."""
    encoding: Name = "auto"
    """A Python codec name, or `auto`: UTF-8, UTF-16, CESU-8, or, with a warning, latin-1 and cp1252."""
    delimiter: Literal["auto"] | Annotated[str, Field(min_length=1, max_length=8)] = "auto"
    """The delimiter of a CSV file; several characters, such as `::`, only with quotes: false. With a space and quotes:
    false the last column has the rest of the line, spaces included."""
    header: Annotated[list[Name], Field(min_length=1)] | None = None
    """The column names of CSV, TSV and Excel files without a header line."""
    quotes: bool | Annotated[str, Field(min_length=1, max_length=1)] = True
    """The quote character of CSV and TSV: true is a double quote; any other character, such as `'`; false: no quotes.
    """
    escape: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """The escape character of CSV and TSV before a literal quote, delimiter or line end: `\\`. A cell of this character
    and N is empty."""
    sheet: Name | None = None
    """The sheet of an Excel workbook; without it, the only visible sheet that has the recipe's columns."""
    sample_by: Literal["line", "document"] | None = None
    """Whether a line or a complete .txt file is one text. The label of a line is the name of its file, that of a
    document the name of its folder. Without it, files that are named individually are read by lines, and with
    `delimiter` or `header` .txt files are tables."""
    max_row_mib: Count = 8
    """Maximum size of one row in MiB."""
    max_unpacked_mib: Count = 512
    """Maximum size of one unpacked piece in MiB: a JSON file, a workbook; in Parquet and compressed files, parts that
    are 100 to 1,000 times larger than the file."""

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str) -> str:
        try:
            codecs.lookup("utf-8" if name == "auto" else name)
        except LookupError:
            raise ValueError(f"given {name!r}, allowed: auto or a codec of Python, such as utf-8, cp1252") from None
        return name

    @field_validator("header")
    @classmethod
    def _unique_names(cls, header: list[str] | None) -> list[str] | None:
        if header and (duplicates := sorted({name for name in header if header.count(name) > 1})):
            raise ValueError(f"names must differ, and {', '.join(map(repr, duplicates))} occurs twice")
        return header

    @property
    def quote(self) -> str | None:
        """Return the quote character, None without quotes."""
        return '"' if self.quotes is True else self.quotes or None

    @property
    def tables_in_txt(self) -> bool:
        """Return whether .txt files are read as CSV files."""
        return self.sample_by is None and (self.delimiter != "auto" or self.header is not None)

    @model_validator(mode="after")
    def _check_quoting(self) -> Self:
        if self.delimiter != "auto" and len(self.delimiter) > 1 and self.quotes is not False:
            raise ValueError(f"delimiter {self.delimiter!r} has several characters; that needs quotes: false")
        if self.quote is not None and (self.quote == self.delimiter or self.quote in "\r\n"):
            raise ValueError(f"quotes: {self.quote!r} cannot open a field: it ends fields or lines")
        if self.escape is not None and (self.escape in (self.delimiter, self.quote) or self.escape in "\r\n "):
            raise ValueError(f"escape: {self.escape!r} quotes fields, or ends fields or lines; a backslash is usual")
        return self

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        sources = [name for name in ("path", "paths", "hub", "train") if getattr(self, name) is not None]
        if len(sources) != 1:
            actual = " and ".join(sources) if sources else "none of them"
            raise ValueError(f"give exactly one of path, paths, hub, or train (with test); given: {actual}")
        extra = [name for name in SPLITS[1:] if getattr(self, name) is not None]
        if extra and self.train is None:
            raise ValueError(f"{', '.join(extra)} goes with train (given splits), not with {sources[0]}")
        for name in ("revision", "config"):
            if getattr(self, name) is not None and self.hub is None:
                raise ValueError(f"{name} goes with hub")
        if self.hub is not None and self.revision is None:
            raise ValueError("hub needs revision, the commit of the data set: its page lists them under History")
        return self

    @property
    def paths_by_split(self) -> dict[str, list[str]]:
        """Return {split or "all": paths} as in the recipe, without `labelled`; {} for a hub data set."""
        if self.paths is not None:
            return {"all": self.paths}
        if self.path is not None:
            return {"all": [self.path]}
        return {split: [path] for split in SPLITS if (path := getattr(self, split)) is not None}


class Slots(Section):
    """extraction: a column of lists whose entries have the name of a field, and its value or its position in the text.

    Names reach into an entry as columns do: `valueSpan.endIndex`, or `2` of a list.
    """

    column: Name
    name: Name = "name"
    """Key of the field's name."""
    value: Name | None = None
    """Key of the value. If `column` is also the column of the text, the text is the concatenation of all values, and
    values without a name are not fields."""
    start: Name | None = None
    """Key of the first character's position in the text; an entry without it begins at 0, as in protobuf."""
    end: Name | None = None
    """Key of the position after the last character."""
    end_inclusive: bool = False
    """Whether `end` is the position of the last character itself."""

    @model_validator(mode="after")
    def _exactly_one_value(self) -> Self:
        if (self.value is None) == (self.end is None) or (self.start is None) != (self.end is None):
            raise ValueError("give value, or start and end")
        return self


class Columns(Section):
    """Columns of the source and their roles.

    A dot reaches into an object or a list (`order.customer.name`, `answers.text.0`), unless a column has that exact
    name.
    """

    text: Name | Annotated[list[Name], Field(min_length=1)] = "text"
    """The input; several columns are joined by `separator`, without empty ones. preference: text or a list of messages;
    `chosen` if both conversations contain the prompt."""
    label: Name = "label"
    """classification: the column of the label; with task.labels_per_row: many, of a list of labels."""
    label_separator: Name | None = None
    """task.labels_per_row many: the separator of labels in a text, such as ";"; without it, a text is a JSON array."""
    label_columns: Annotated[list[Name], Field(min_length=2)] | None = None
    """task.labels_per_row many: one column per label, with the label's name and values 1 (true, yes) or 0; replaces
    `label`."""
    target: Name | None = None
    """extraction: the column of the complete record, a JSON object; without it, each field is a column of its name.
    generation: the column of the answer; without it, `target`."""
    slots: Slots | None = None
    """extraction: fields of a record as a list of names with values, or with positions in the text."""
    tags: Name | None = None
    """extraction: a column of tags, one per token (IOB, IOBES: B-artist, I-artist, O), as a list or separated by
    spaces; the text is a list of tokens, or tokens separated by spaces."""
    targets: Name | Annotated[list[Name], Field(min_length=2)] | None = None
    """extraction, generation: a column of lists of references, or several columns of one reference each. An answer is
    scored against the nearest reference, and training uses the first."""
    chosen: Name = "chosen"
    """preference: the better answer, as text or as a list of messages that ends in it (TRL's format)."""
    rejected: Name = "rejected"
    """preference: the worse answer, in the same form."""
    messages: Name | None = None
    """A column of chat messages instead of text and answer: the last assistant turn is the answer."""
    separator: str = "\n\n"
    """Separator between the texts of several columns."""
    id: Name | None = None
    """A column of unique row ids; without it, ids are made from file and row number."""

    @property
    def target_columns(self) -> dict[str, str]:
        """Return {recipe key: column} of the columns of references."""
        if self.targets is None or isinstance(self.targets, str):
            return {"data.columns.targets": self.targets} if self.targets else {}
        return {f"data.columns.targets[{index}]": name for index, name in enumerate(self.targets)}

    @property
    def slot_columns(self) -> dict[str, str]:
        """Return {recipe key: column} of the column of slots or tags; {} if there is none."""
        slots = {"data.columns.slots.column": self.slots.column} if self.slots else {}
        return slots | ({"data.columns.tags": self.tags} if self.tags else {})

    @property
    def texts(self) -> list[str]:
        """Return the columns of the input."""
        return [self.text] if isinstance(self.text, str) else list(self.text)
