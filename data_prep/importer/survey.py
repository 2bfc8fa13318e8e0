"""A survey of the examples of a file: system messages, common parts of the texts, and answers.

Everything is counted while the rows pass, so that a large log needs no more memory than a small one.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_prep.importer.examples import Example
from data_prep.importer.schema_inference import Shape
from insource.text.labels import clean_label
from insource.text.text_keys import label_key

# Maximum length of a label; of longer answers only the number is counted.
MAX_LABEL_CHARACTERS, MAX_ANSWERS = 80, 5000
# Maximum number of spellings of one label or of one system message that are told apart.
MAX_SPELLINGS = 20
# A preamble is common to at least this fraction of the first texts, has a minimum length, and ends at a line or
# heading.
MAX_SAMPLE_TEXTS, MIN_PREAMBLE_FRACTION, MIN_PREAMBLE_CHARACTERS = 2000, 0.95, 20
MAX_PROBLEMS_SHOWN = 5
# Maximum number of distinct system messages; of further ones only the number of rows is counted.
MAX_SYSTEMS = 200
_CODE_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)


@dataclass
class AnswerStatistics:
    """Statistics of the answers with one system message."""

    rows: int = 0
    longest: int = 0
    """Characters of the longest answer."""
    longest_row_bytes: int = 0
    """Bytes of the longest text with its answer in UTF-8."""
    short_answers: Counter[str] = field(default_factory=Counter)
    """Rows per answer that may be a label, by label_key."""
    spellings: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows per spelling of each short answer."""
    too_many: bool = False
    """Whether there are more than MAX_ANSWERS distinct short answers."""
    object_rows: int = 0
    """Rows with a JSON object as the answer."""
    fenced_rows: int = 0
    """Rows with JSON in a Markdown code fence as the answer."""
    shape: Shape = field(default_factory=Shape)
    """The shape of these objects."""
    list_rows: int = 0
    """Rows with a JSON array of texts as the answer."""
    list_labels: Counter[str] = field(default_factory=Counter)
    """Rows per text in these arrays."""

    def add(self, answer: str) -> None:
        """Count an answer."""
        self.rows += 1
        self.longest = max(self.longest, len(answer))
        if answer[:1] in "{[" and (value := _parse_json_container(answer)) is not None:
            if isinstance(value, dict):
                self.object_rows += 1
                self.shape.add(value)
            elif len(self.list_labels) <= MAX_ANSWERS:
                self.list_rows += all(isinstance(item, str) for item in value)
                self.list_labels.update(item for item in value if isinstance(item, str))
        elif len(answer) <= MAX_LABEL_CHARACTERS and "\n" not in answer:
            key = label_key(clean_label(answer))
            if key not in self.short_answers and len(self.short_answers) >= MAX_ANSWERS:
                self.too_many = True
            else:
                self.short_answers[key] += 1
                _count_spelling(self.spellings.setdefault(key, Counter()), answer)
        self.fenced_rows += _is_fenced_json(answer)

    def most_frequent_spelling(self, key: str) -> str:
        """Return the most frequent spelling of a short answer, the first one of several."""
        return self.spellings[key].most_common(1)[0][0]


@dataclass
class Survey:
    """The survey of one or several files of one format."""

    format: str = ""
    lines_read: int = 0
    n_examples: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    """Unusable rows, by reason."""
    shown_problems: list[str] = field(default_factory=list)
    """The first problems, with their lines."""
    shown_by_reason: Counter[str] = field(default_factory=Counter)
    """How many of the shown problems have each reason."""
    systems: Counter[str] = field(default_factory=Counter)
    """Rows per system message without white space around it, "" for none."""
    system_spellings: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows per system message as written, by the message without white space around it."""
    n_uncounted_systems: int = 0
    """Rows whose system message exceeded the maximum number."""
    models: Counter[str] = field(default_factory=Counter)
    multi_turn_rows: int = 0
    conversion_reasons: list[str] = field(default_factory=list)
    """Why data preparation would not read the same rows from the file; [] if it would."""
    expanded: bool = False
    """Whether a conversation has several examples."""
    joined_system_rows: int = 0
    """Rows with several system messages."""
    has_plain_system: bool = True
    """Whether each system message is the text of the first message."""
    untrained_answer_rows: int = 0
    """Rows whose text contains an answer of weight 0."""
    sample_texts: dict[str, list[str]] = field(default_factory=dict)
    """The first texts with each system message."""
    answers: dict[str, AnswerStatistics] = field(default_factory=dict)
    """Answer statistics by system message."""
    preference_pairs: int = 0

    def add_problem(self, location: str, reason: str, detail: str) -> None:
        """Count an unusable row."""
        self.problems[reason] += 1
        detail = "".join(character if character.isprintable() else " " for character in detail)
        if self.shown_by_reason[reason] < 2 and len(self.shown_problems) < MAX_PROBLEMS_SHOWN:
            self.shown_problems.append(f"{location}  {reason}: {detail}")
            self.shown_by_reason[reason] += 1

    def require_conversion(self, reason: str) -> None:
        """Note a reason to convert the file, unless it is ""."""
        if reason and reason not in self.conversion_reasons:
            self.conversion_reasons.append(reason)

    def add(self, example: Example) -> None:
        """Count an example."""
        self.n_examples += 1
        self.multi_turn_rows += example.turns > 1
        self.require_conversion(example.conversion_reason)
        self.expanded |= example.expanded
        self.joined_system_rows += example.system_messages > 1
        self.has_plain_system &= example.has_plain_system
        self.untrained_answer_rows += example.has_untrained_answer
        self.preference_pairs += example.rejected is not None
        if example.model:
            self.models[example.model] += 1
        system = example.system.strip()
        if system not in self.systems and len(self.systems) >= MAX_SYSTEMS:
            self.n_uncounted_systems += 1
            return
        self.systems[system] += 1
        _count_spelling(self.system_spellings.setdefault(system, Counter()), example.system)
        texts = self.sample_texts.setdefault(system, [])
        if len(texts) < MAX_SAMPLE_TEXTS and example.turns == 1:
            texts.append(example.text)
        answers = self.answers.setdefault(system, AnswerStatistics())
        answers.add(example.answer)
        row_bytes = len(example.text.encode()) + len(example.answer.encode())
        answers.longest_row_bytes = max(answers.longest_row_bytes, row_bytes)


@dataclass(frozen=True)
class Preamble:
    """The common beginning and end of texts."""

    prefix: str = ""
    suffix: str = ""

    def __bool__(self) -> bool:
        return bool(self.prefix or self.suffix)

    def remove_from(self, text: str) -> str | None:
        """Return the text between beginning and end; None if the text does not have both."""
        if not (text.startswith(self.prefix) and text.endswith(self.suffix)):
            return None
        middle = text[len(self.prefix) : len(text) - len(self.suffix)]
        return middle if len(text) >= len(self.prefix) + len(self.suffix) and middle.strip() else None


def find_preamble(texts: list[str]) -> Preamble:
    """Return the common beginning and end of nearly all texts, up to the end of a line or of a heading."""
    if len(texts) < 10:
        return Preamble()
    prefix = _longest_common_prefix(texts)
    cut_points = [prefix.rfind(mark) + len(mark) for mark in ("\n", ": ") if mark in prefix]
    prefix = prefix[: max(cut_points, default=0)]
    rest = [text.removeprefix(prefix) for text in texts]
    suffix = _longest_common_prefix([text[::-1] for text in rest])[::-1]
    suffix = suffix[suffix.find("\n") :] if "\n" in suffix else ""
    return Preamble(
        prefix if len(prefix.strip()) >= MIN_PREAMBLE_CHARACTERS else "",
        suffix if len(suffix.strip()) >= MIN_PREAMBLE_CHARACTERS else "",
    )


def _longest_common_prefix(texts: list[str]) -> str:
    """Return the longest prefix that MIN_PREAMBLE_FRACTION of the texts have."""
    min_count = math.ceil(MIN_PREAMBLE_FRACTION * len(texts))
    low, high = 0, max(map(len, texts))
    while low < high:
        middle = (low + high + 1) // 2
        if _most_common_prefix(texts, middle)[1] >= min_count:
            low = middle
        else:
            high = middle - 1
    return _most_common_prefix(texts, low)[0]


def _most_common_prefix(texts: list[str], length: int) -> tuple[str, int]:
    """Return the most common prefix of this length, and the number of texts that have it."""
    top = Counter(text[:length] for text in texts if len(text) >= length).most_common(1)
    return top[0] if top else ("", 0)


def _count_spelling(spellings: Counter[str], spelling: str) -> None:
    """Count a spelling, unless it is new and there are MAX_SPELLINGS."""
    if spelling in spellings or len(spellings) < MAX_SPELLINGS:
        spellings[spelling] += 1


def _is_fenced_json(text: str) -> bool:
    """Return whether a text is a JSON object or array in a Markdown code fence."""
    match = _CODE_FENCE.fullmatch(text)
    return match is not None and _parse_json_container(match[1]) is not None


def _parse_json_container(text: str) -> Any:
    """Return the JSON object or array of a text; None if it is neither."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict | list) else None
