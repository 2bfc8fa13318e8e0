"""The rows of an import as data preparation will read them, from the given file or from a converted one.

Every row passes `make_row` of data preparation. Rows that it would reject are known before a recipe is written, and
rows of a converted file are cleaned and redacted.
"""

import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from data_prep import minhash
from data_prep.importer.examples import WEIGHT_REASON, Example, ExampleReader, detect_format
from data_prep.importer.recipe_text import ROW_TOKEN_LIMITS, RecipeSource
from data_prep.importer.survey import Survey
from data_prep.readers import dotted_paths, limits, read, sources
from data_prep.readers.limits import DEFAULT_LIMITS
from data_prep.readers.source_row import SourceRow
from data_prep.rows import columns, data_row
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.data import Deduplicate
from insource.config.schema.source import Source
from insource.tasks import TASKS
from insource.tasks.source_record import UnusableRowError
from insource.text.text_keys import duplicate_key

# Keys by which the JSON reader recognizes rows and objects that contain rows.
ROW_KEYS = (
    "messages",
    "input",
    "request",
    "response",
    "attributes",
    "resourceSpans",
    "resourceLogs",
    "resourceMetrics",
)
# A line of a log may hold thousands of calls.
LOG_ROW_MIB = 512
# No model trains on more: the largest token limit of a recipe with eight characters a token.
MAX_EXAMPLE_CHARACTERS = 8 * ROW_TOKEN_LIMITS[-1]
# Data preparation refuses lines of 8 MiB. Escapes may make a line eight times as long as its texts.
MAX_CHARACTERS_IN_PLACE = DEFAULT_LIMITS.row // 8
# Reasons of unusable rows that data preparation would read, and why the file is converted for them.
CONVERSION_REASONS = {"weight_0": WEIGHT_REASON, "bad_weight": WEIGHT_REASON}
LARGE_ROW_REASON = "a row is too large to be read in place"
# Near-duplicates are counted among this many rows; data preparation finds all of them.
COMPARED_ROWS, SKETCHED_ROWS = 50_000, 2_000


@dataclass
class ImportCounts:
    """Counts of imported rows by outcome."""

    selected: int = 0
    """Rows that the recipe selects, usable or not."""
    usable: int = 0
    other_system: int = 0
    other_preamble: int = 0
    pii_rows: Counter[str] = field(default_factory=Counter)
    """Rows with personal data, by kind."""
    duplicates: int = 0
    near_duplicates: int = 0
    keys: list[str] = field(default_factory=list)
    """The duplicate key and the target of each row of a converted file, at most COMPARED_ROWS."""

    @property
    def unusable_fraction(self) -> float:
        """Return the fraction of selected rows that are unusable."""
        return 1 - self.usable / self.selected if self.selected else 0.0


def read_source_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a file, a folder or a glob; unreadable rows have a problem."""
    source = Source(path=str(path), max_row_mib=LOG_ROW_MIB)
    try:
        for file in sources.find_files(source):
            _, rows = read.read(file, source, ROW_KEYS)
            yield from rows
    except RecipeError as error:
        # The hint names a recipe key, and there is no recipe yet.
        raise error.with_message(str(error).partition(f", or set {limits.ROW_LIMIT_KEY}")[0]) from None


def read_examples(path: Path) -> Iterator[tuple[SourceRow, str, Example | UnusableRowError]]:
    """Yield (row, format of its file, example or problem) of every row; a row may have several examples.

    Raise RecipeError if a file is in no supported format.
    """
    formats: dict[str, tuple[str, ExampleReader]] = {}
    for row in read_source_rows(path):
        if row.problem:
            yield row, "", UnusableRowError("unreadable", row.problem)
            continue
        title, reader = formats.get(row.file) or formats.setdefault(row.file, detect_format(row.file, row.values))
        for example in reader(row.values):
            if isinstance(example, Example) and example.characters > MAX_EXAMPLE_CHARACTERS:
                limit = f"allowed: {MAX_EXAMPLE_CHARACTERS:,}"
                yield row, title, UnusableRowError("too_long", f"{example.characters:,} characters, {limit}")
            else:
                yield row, title, example


def survey_files(paths: list[Path]) -> Survey:
    """Return the survey of the files. Raise RecipeError if a file is in no supported format or the formats differ."""
    survey = Survey()
    for path in paths:
        previous = None
        for row, title, example in read_examples(path):
            if previous != (previous := (row.file, row.line)):
                survey.lines_read += 1
                if limits.estimate_bytes(row.values) > MAX_CHARACTERS_IN_PLACE:
                    survey.require_conversion(LARGE_ROW_REASON)
            if title and survey.format not in ("", title):
                raise RecipeError(
                    f"{row.file} is {title}, but the other file is {survey.format}; give files of one format",
                    code="INS-D035",
                )
            survey.format = title or survey.format
            if isinstance(example, UnusableRowError):
                # Data preparation trains on the last answer whatever its weight.
                survey.require_conversion(CONVERSION_REASONS.get(example.reason, ""))
                if example.reason != "other_span":
                    survey.add_problem(f"{row.file}:{row.line}", example.reason, example.detail)
            else:
                survey.add(example)
    return survey


def check_rows(
    path: Path,
    recipe: Recipe,
    recipe_source: RecipeSource,
    survey: Survey,
    outcome: ImportCounts,
    converted: "ConvertedFile | None",
) -> None:
    """Count the outcome of each row of a file, and write usable rows to `converted` if it is given."""
    examples_per_line = Counter[tuple[str, int]]()
    for row, _, example in read_examples(path):
        location = f"{row.file}:{row.line}"
        if isinstance(example, UnusableRowError):
            outcome.selected += example.reason != "other_span"
            continue
        if example.system.strip() != recipe_source.system.strip() and (recipe_source.filters_system or converted):
            outcome.other_system += 1
            continue
        outcome.selected += 1
        values = dict(row.values)
        if converted:
            text = recipe_source.preamble.remove_from(example.text)
            if text is None:
                outcome.other_preamble += 1
                survey.add_problem(
                    location, "other_preamble", "the text does not begin and end as nearly all others do"
                )
                continue
            examples_per_line[row.file, row.line] += 1
            values = _make_values(example, text, location, examples_per_line[row.file, row.line], recipe_source.group)
        values |= dotted_paths.resolve_columns(values, columns.columns_to_read(recipe, "all"))
        result = data_row.make_row(SourceRow(row.file, row.line, values), recipe)
        if isinstance(result, data_row.Rejected):
            survey.add_problem(location, result.reason, result.detail)
            continue
        outcome.usable += 1
        outcome.pii_rows.update(result.pii_kinds)
        if converted:
            converted.write(result, recipe, recipe_source.group)
            if len(outcome.keys) < COMPARED_ROWS:
                outcome.keys.append(f"{duplicate_key(result.text)}\x1f{result.target}")


def count_near_duplicates(outcome: ImportCounts) -> None:
    """Count the rows that are duplicates or near-duplicates of an earlier row with the same answer."""
    keys = list(dict.fromkeys(outcome.keys))
    outcome.duplicates = len(outcome.keys) - len(keys)
    settings = Deduplicate()
    texts = [key.partition("\x1f") for key in keys]
    first_seen: dict[tuple[int, int, str], int] = {}
    for index, (text, _, answer) in enumerate(texts):
        if index % SKETCHED_ROWS == 0:
            bands, _ = minhash.sketch([key_text for key_text, _, _ in texts[index : index + SKETCHED_ROWS]], settings)
        buckets = [(band, int(hashed), answer) for band, hashed in enumerate(bands[index % SKETCHED_ROWS])]
        shingle_set = minhash.shingles(text, settings.shingle)
        candidates = {first_seen[bucket] for bucket in buckets if bucket in first_seen}
        if any(
            minhash.jaccard(shingle_set, minhash.shingles(texts[number][0], settings.shingle)) >= settings.near
            for number in candidates
        ):
            outcome.near_duplicates += 1
            continue
        for bucket in buckets:
            first_seen.setdefault(bucket, index)


class ConvertedFile:
    """A converted file that is written atomically: `keep` puts it in place. The null device keeps nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._is_null_device = path == Path(os.devnull)
        self._temp_path = path if self._is_null_device else path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._stack = ExitStack()
        self._file: IO[str] = self._stack.enter_context(self._temp_path.open("w", encoding="utf-8", newline=""))

    def write(self, row: data_row.Row, recipe: Recipe, group: str | None) -> None:
        """Write a row as cleaned and redacted by data preparation."""
        target = TASKS[recipe.task.task_name].parse_target(row.target)
        answer_fields = target if recipe.task.kind == "preference" else {"answer": target}
        group_fields = {group: row.group} if group else {}
        self._file.write(
            json.dumps({"id": row.id, **group_fields, "text": row.text, **answer_fields}, ensure_ascii=False) + "\n"
        )
        self.rows += 1

    def commit(self) -> None:
        """Flush the file to disk and put it in place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._stack.close()
        self._temp_path.replace(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if not self._is_null_device:
            self._temp_path.unlink(missing_ok=True)


def _make_values(example: Example, text: str, location: str, number: int, group: str | None) -> dict[str, Any]:
    """Return a row of a converted file before it is cleaned."""
    row_id = location if number == 1 else f"{location}#{number}"
    answers = (
        {"answer": example.answer}
        if example.rejected is None
        else {"chosen": example.answer, "rejected": example.rejected}
    )
    return {"id": row_id, "text": text, **answers} | ({group: location} if group else {})
