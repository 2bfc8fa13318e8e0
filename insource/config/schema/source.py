"""Where the rows of a recipe are, and which of their columns holds what: data.source and data.columns."""

import codecs
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from insource.config.schema.section import Count, Name, Section

SPLITS = ("train", "validation", "calibration", "test")


class Source(Section):
    """Where the rows are: one of `path`, `paths`, `hub` (split by us), or `train` and `test` (given splits).

    A path is a file, a glob, a folder of files, or a folder that `datasets` saved: CSV, TSV, JSON, JSONL, text (.txt),
    each also as .gz or .zst, Parquet, and Excel workbooks (.xlsx).
    """

    path: Name | None = None
    paths: Annotated[list[Name], Field(min_length=1)] | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")] | None = None
    """The commit of the hub data set: data that can change under a result is no evidence."""
    config: Name | None = None
    """The configuration of the hub data set, where it has several."""
    train: Name | None = None
    validation: Name | None = None
    calibration: Name | None = None
    test: Name | None = None
    encoding: Name = "auto"
    """A Python codec name, or `auto`: UTF-8, UTF-16, CESU-8, or, said aloud, latin-1 and cp1252."""
    delimiter: Literal["auto"] | Annotated[str, Field(min_length=1, max_length=8)] = "auto"
    """What separates the columns of a CSV file; several characters, such as `::`, with quotes: false alone. With a
    space and quotes: false the last column has the rest of the line, spaces and all."""
    header: Annotated[list[Name], Field(min_length=1)] | None = None
    """The names of the columns of CSV, TSV and Excel files that have no header line."""
    quotes: bool | Annotated[str, Field(min_length=1, max_length=1)] = True
    """What opens a quoted field in CSV and TSV: true is a double quote, or another character, such as `'`; false: no
    character does."""
    escape: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What stands in CSV and TSV before a quote, a delimiter or a line end that is a character like any other: `\\`. A
    cell of that sign and N is empty then."""
    sheet: Name | None = None
    """The sheet of an Excel workbook; without it, the one visible sheet that has the recipe's columns."""
    sample_by: Literal["line", "document"] | None = None
    """Whether a line or a whole file of .txt is one text. The label of a line is the name of its file, that of a
    document the name of its folder. Without it, files that are named one by one are read by lines, and with `delimiter`
    or `header` .txt files are tables."""
    max_row_mib: Count = 8
    """MiB that one row may have."""
    max_unpacked_mib: Count = 512
    """MiB that may be unpacked as one piece: a JSON file, a workbook; of Parquet and packed files, what is 100 to 1,000
    times larger than the file."""

    @field_validator("encoding")
    @classmethod
    def _known_codec(cls, name: str) -> str:
        try:
            codecs.lookup("utf-8" if name == "auto" else name)
        except LookupError:
            raise ValueError(f"given {name!r}, allowed: auto or a codec of Python, such as utf-8, cp1252") from None
        return name

    @field_validator("header")
    @classmethod
    def _names_differ(cls, header: list[str] | None) -> list[str] | None:
        if header and (duplicates := sorted({name for name in header if header.count(name) > 1})):
            raise ValueError(f"names must differ, and {', '.join(map(repr, duplicates))} stands there twice")
        return header

    @property
    def quote(self) -> str | None:
        """Returns the character that opens a quoted field, None where none does."""
        return '"' if self.quotes is True else self.quotes or None

    @property
    def tables_in_txt(self) -> bool:
        """Returns whether .txt files are read as CSV files are."""
        return self.sample_by is None and (self.delimiter != "auto" or self.header is not None)

    @model_validator(mode="after")
    def _several_characters_need_no_quotes(self) -> Self:
        if self.delimiter != "auto" and len(self.delimiter) > 1 and self.quotes is not False:
            raise ValueError(f"delimiter {self.delimiter!r} has several characters; that needs quotes: false")
        if self.quote is not None and (self.quote == self.delimiter or self.quote in "\r\n"):
            raise ValueError(f"quotes: {self.quote!r} cannot open a field: it ends fields or lines")
        if self.escape is not None and (self.escape in (self.delimiter, self.quote) or self.escape in "\r\n "):
            raise ValueError(f"escape: {self.escape!r} quotes fields, or ends fields or lines; a backslash is usual")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> Self:
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
    def given(self) -> dict[str, list[str]]:
        """Returns {split or "all": paths} as this source names them; {} for a hub data set."""
        if self.paths is not None:
            return {"all": self.paths}
        if self.path is not None:
            return {"all": [self.path]}
        return {split: [path] for split in SPLITS if (path := getattr(self, split)) is not None}


class Slots(Section):
    """extraction: a column of lists, each entry of which names a field of the record and has its value, or says where
    in the text it stands. Names reach into an entry as columns do: `valueSpan.endIndex`, or `2` of a list."""

    column: Name
    name: Name = "name"
    """What names the field."""
    value: Name | None = None
    """What holds the value. Where `column` is the column of the text too, the text is all values, one after another,
    and those without a name are no fields."""
    start: Name | None = None
    """Where the value begins in the text, in characters; an entry without it begins at 0, as protobuf writes it."""
    end: Name | None = None
    """The character after its last one."""
    end_inclusive: bool = False
    """Whether `end` is the last character itself."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.value is None) == (self.end is None) or (self.start is None) != (self.end is None):
            raise ValueError("give value, or start and end")
        return self


class Columns(Section):
    """Which column of the source holds what. A dot reaches into an object or a list (`order.customer.name`,
    `answers.text.0`), unless a column bears that very name."""

    text: Name | Annotated[list[Name], Field(min_length=1)] = "text"
    """The input; several columns are joined by `separator`, empty ones left out. preference: text or a list of
    messages; `chosen` where the prompt stands inside both conversations."""
    label: Name = "label"
    """classification: the column of the label; with task.labels_per_row: many, of a list of labels."""
    label_separator: Name | None = None
    """task.labels_per_row many: what stands between the labels of a text, such as ";"; without it, a text is a JSON
    array."""
    label_columns: Annotated[list[Name], Field(min_length=2)] | None = None
    """task.labels_per_row many: a column for each label, named as the label is, with 1 (true, yes) where a row has it
    and 0 where it has not; in place of `label`."""
    target: Name | None = None
    """extraction: the column of the whole record, a JSON object; without it, each field is a column of its name.
    generation: the column of the answer; without it, `target`."""
    slots: Slots | None = None
    """extraction: where the fields of a record come as a list of names and values, or of places in the text."""
    tags: Name | None = None
    """extraction: a column of tags, one a token (IOB, IOBES: B-artist, I-artist, O), as a list or with spaces between;
    the text is a list of tokens, or has spaces between them."""
    targets: Name | Annotated[list[Name], Field(min_length=2)] | None = None
    """extraction, generation: a column of lists of right answers, or several columns of one each. An answer is scored
    against the nearest of them, and training learns the first."""
    chosen: Name = "chosen"
    """preference: the better answer, as text or as a list of messages that ends in it (TRL's format)."""
    rejected: Name = "rejected"
    """preference: the worse answer, in the same form."""
    messages: Name | None = None
    """A column of chat messages, in place of text and answer: the last assistant turn is the answer."""
    separator: str = "\n\n"
    """What stands between the texts of several columns."""
    id: Name | None = None
    """A column of unique row ids; without it, ids are made from the file and the row number."""

    @property
    def of_targets(self) -> dict[str, str]:
        """Returns {recipe key: column} of the columns of several answers."""
        if self.targets is None or isinstance(self.targets, str):
            return {"data.columns.targets": self.targets} if self.targets else {}
        return {f"data.columns.targets[{index}]": name for index, name in enumerate(self.targets)}

    @property
    def of_slots(self) -> dict[str, str]:
        """Returns {recipe key: column} of the column that fields come from as a list; {} where they do not."""
        slots = {"data.columns.slots.column": self.slots.column} if self.slots else {}
        return slots | ({"data.columns.tags": self.tags} if self.tags else {})

    @property
    def texts(self) -> list[str]:
        """Returns the columns of the input."""
        return [self.text] if isinstance(self.text, str) else list(self.text)
