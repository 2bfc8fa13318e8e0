"""data.html: the numbers sum up, nothing is kept from the reader, and no text of a user becomes markup."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare
from data_prep.report import html
from insource.config.load import load
from insource.config.schema.source import SPLITS
from insource.system import atomic_files

VOID = {"meta", "br", "wbr", "rect", "line", "polygon", "i"}
NEAR_OFF = "data.deduplicate.near=1"
HOSTILE = "<script>alert(1)</script>"
TESTS = ("text,label,customer\n", "how do I cancel,a,x\nwhere can I pay it,b,y\n")


@dataclass
class Page(HTMLParser):
    """What a reader of data.html sees, by section, and what a browser would load."""

    text: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    bars: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._section, self._cell, self._open = "", False, list[str]()
        self.feed(self.text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = attributes["id"]
        elif tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._section][-1].append("")
            self._cell = True
        elif tag == "rect":
            self.bars.append({"section": self._section, **attributes})

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.words[self._section] = self.words.get(self._section, "") + data
        if self._cell:
            self.tables[self._section][-1][-1] += data

    def row(self, section: str, title: str) -> list[str]:
        """The cells of the row that opens with this."""
        return next(cells for cells in self.tables[section] if cells[0] == title)


Prepared = tuple[Page, dict[str, Any]]


def prepare_rows(
    folder: Path,
    rows: Iterable[Sequence[str]],
    settings: str = "",
    *overrides: str,
    name: str = "rows",
    other_sources: str = "",
) -> Prepared:
    """Prepares rows of (text, label, customer). Returns the page and data.json."""
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "customer"), *rows])
    (folder / "r.yaml").write_text(
        "task: {kind: classification, instruction: Route the message to one queue.}\nmodel: {base: pocket}\n"
        f"data:\n  source: {{{'train' if other_sources else 'path'}: '{name}.csv'{other_sources}}}\n{settings}",
        encoding="utf-8",
    )
    return prepare_page(folder, *overrides)


def prepare_page(folder: Path, *overrides: str) -> Prepared:
    data_folder, _ = prepare.main(load(str(folder / "r.yaml"), overrides, "cpu").recipe, folder / "runs")
    return Page((data_folder / "data.html").read_text(encoding="utf-8")), atomic_files.read_json(
        data_folder / "data.json"
    )


def messages(count: int, labels: Sequence[str] = "ab") -> list[tuple[str, str, str]]:
    """Rows of which none is near another."""
    template = [
        "card",
        "parcel",
        "login",
        "refund",
        "address",
        "invoice",
        "router",
        "battery",
        "contract",
        "window",
        "van",
    ]
    return [
        (
            "about " + " ".join(f"{template[(number * step + step) % 11]}{number * step}" for step in (1, 5, 7, 11)),
            labels[number % len(labels)],
            f"c{number}",
        )
        for number in range(count)
    ]


def prepare_dirty_rows(folder: Path) -> Prepared:
    """A source with something of each kind: duplicates, near ones, conflicts, two spellings, an unusable row."""
    rows = messages(300, ("refund_status", "delivery"))
    rows += [(f"{text}!", label, f"d{number}") for number, (text, label, _) in enumerate(rows[:60])]
    template = "{}, my {} and thank you very much for your help with all of that"
    rows += [
        (template.format(greeting, row[0]), row[1], greeting + row[2])
        for greeting in ("Hi", "Hello", "Hallo")
        for row in rows[:9]
    ]
    rows += [
        (f"torn {number} apart{'!' * copy}", ("delivery", "refund_status")[copy], f"t{number}")
        for number in range(9)
        for copy in (0, 1)
    ]
    rows += [("one more of the other spelling", "Refund-Status", "v"), ("", "delivery", "z")]
    return prepare_rows(folder, rows, "  split: {group: customer}\n  slices: {who: {by: label}}\n")


@pytest.fixture(scope="module")
def dirty_data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_dirty_rows(tmp_path_factory.mktemp("soiled"))


def parse_count(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_rows_shown_sum_up_and_are_those_of_data_json(dirty_data: Prepared) -> None:
    page, report = dirty_data
    counts = {
        cells[0]: parse_count(cells[2]) for cells in page.tables["rows"] if len(cells) == 4 and cells[0] != "Where to"
    }
    counts_by_code = {cells[1]: parse_count(cells[2]) for cells in page.tables["rows"] if len(cells) == 4 and cells[1]}
    rows = report["rows"]
    assert counts_by_code == {**rows["dropped"], **rows["rejected"]}
    assert {"duplicate", "conflict", "in_test", "near_duplicate", "no_text"} <= counts_by_code.keys()
    assert {name: counts[name] for name in SPLITS} == rows["written"]
    assert counts["left out"] == sum(counts_by_code.values())
    assert sum(counts[name] for name in SPLITS) + counts["left out"] == counts["read"] == rows["read"]
    row_bars = [bar for bar in page.bars if bar["section"] == "rows"]
    for is_warning in (True, False):
        total_width = sum(float(bar["width"]) for bar in row_bars if bar["class"].startswith("s-warn") == is_warning)
        assert total_width == pytest.approx(100, abs=0.05)


def test_every_label_is_shown_with_its_rows_in_every_split_and_its_spellings(dirty_data: Prepared) -> None:
    page, report = dirty_data
    for label, entry in report["labels"].items():
        counts = [entry[name] for name in SPLITS]
        assert [parse_count(cell) for cell in page.row("labels", label)[2:]] == [*counts, sum(counts)]
    spellings = next(cells[1] for cells in page.tables["labels"] if cells[0] == "refund_status" and len(cells) == 2)
    assert spellings == ", ".join(
        f"{entry} {rows}" for entry, rows in report["labels"]["refund_status"]["spellings"].items()
    )
    assert spellings.endswith("Refund-Status 1")
    for name, entry in report["split"]["shares"].items():
        requested, actual = f"{entry['asked']:.1%}", f"{entry['share']:.1%}"
        assert page.row("labels", name)[1:3] == [requested, actual]


def test_labels_stand_in_the_order_of_their_frequency(tmp_path: Path) -> None:
    page, _ = prepare_rows(tmp_path, messages(200, ("rare", "often", "often", "often")))
    totals = [parse_count(cells[-1]) for cells in page.tables["labels"] if cells[0] in ("rare", "often")]
    assert len(totals) == 2 and totals == sorted(totals, reverse=True)


def test_test_rows_found_elsewhere_are_told_and_its_seal(dirty_data: Prepared) -> None:
    page, report = dirty_data
    n_removed = report["test_rows_also_elsewhere"]["normalised"]
    assert n_removed > 0
    assert f"It is now. {n_removed}" in page.words["test"]
    assert page.row("test", "after removal, counted again")[1] == "0"
    assert report["sha256"]["test.jsonl"] in page.words["test"]


def test_a_test_set_that_is_not_clean_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.exact, "deduplicate", lambda *_: None)
    page, report = prepare_dirty_rows(tmp_path)
    n_leaked = report["test_rows_also_elsewhere"]["normalised"]
    assert f"No: {n_leaked} test rows also stand in another split" in page.words["test"]


def test_pairs_show_both_texts_and_where_they_stand(dirty_data: Prepared) -> None:
    page, report = dirty_data
    section_text = page.words["duplicates"]
    assert re.search(r"rows\.csv:\d+, train, left out", section_text)
    assert re.search(r"rows\.csv:\d+, test, kept", section_text)
    assert "Similarity 0." in section_text
    reasons = [reason for reason in report["rows"]["dropped"] if reason != "too_long"]
    assert section_text.count(", left out") >= len(reasons)


def test_what_a_user_wrote_never_becomes_markup(tmp_path: Path) -> None:
    rows = [(f"{HOSTILE} {text}", f"{HOSTILE}{label}", f"{HOSTILE}c") for text, label, _ in messages(120)]
    rows += [(f"{text}!?", label, HOSTILE) for text, label, _ in rows[:40]]
    rows += [("", HOSTILE, HOSTILE)]
    page, _ = prepare_rows(
        tmp_path, rows, f"  slices: {{'{HOSTILE}': {{by: customer}}}}\n", name="<img src=x onerror=alert(1)>"
    )
    assert {"script", "img", "iframe", "link", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert "<script" not in page.text and "<img" not in page.text
    for section in ("labels", "duplicates", "slices"):
        assert HOSTILE in page.words[section]
    assert "<img src=x" in page.words["sources"]


def test_a_field_name_never_becomes_markup_and_the_states_of_a_field_sum_up(tmp_path: Path) -> None:
    name = f"total{HOSTILE}"
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": 40}, "due": {"type": "string", "maxLength": 9}},
    }
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number, (text, _, _) in enumerate(messages(150)):
            target = {name: f"{number} EUR" if number % 3 else f"EUR {number}", "due": None if number % 2 else ""}
            file.write(json.dumps({"text": f"{text}\ncosts {number} EUR", "target": target}) + "\n")
    task = {"kind": "extraction", "instruction": "Read the bill and give the total.", "json_schema": schema}
    (tmp_path / "r.yaml").write_text(
        f"task: {json.dumps(task)}\nmodel: {{base: pocket}}\n"
        "data: {source: {path: rows.jsonl}, columns: {target: target}, split: {stratify: null}}\n",
        encoding="utf-8",
    )
    page, report = prepare_page(tmp_path)
    assert "<script" not in page.text
    assert "labels" not in page.words and "doubts" not in page.words
    for field_name in (name, "due"):
        counts = [parse_count(cell) for cell in page.row("fields", field_name)[2:]]
        assert sum(counts[:-1]) == counts[-1] == report["rows"]["read"]
        assert dict(zip(html.FIELD_STATES, counts, strict=False)).items() >= report["fields"][field_name]["all"].items()
    assert "this task has none" in page.words["unsought"]


def test_the_page_loads_nothing_and_links_only_to_what_lies_beside_it(dirty_data: Prepared) -> None:
    page, report = dirty_data
    sections = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "action", "data", "xlink:href"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        if "href" in attributes:
            target = attributes["href"]
            assert target.removeprefix("#") in sections or target in {*report["sha256"], "data.json"}
    assert not re.search(r"https?:|@import|url\(|//[a-z]", page.text)


def test_headings_tables_and_figures_are_named(dirty_data: Prepared) -> None:
    page, _ = dirty_data
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(current - previous <= 1 for previous, current in pairwise(levels))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(attributes.get("role") == "img" or attributes.get("aria-hidden") == "true" for attributes in figures)
    assert (
        sum(attributes.get("role") == "img" for attributes in figures)
        == [tag for tag, _ in page.tags].count("title") - 1
    )


def test_doubtful_labels_are_shown_with_what_the_model_would_rather_give(tmp_path: Path) -> None:
    phrases = {"a": "the cat and a cat", "b": "the dog and a dog"}
    rows = [(f"{phrases[label]} {text}", label, "") for text, label, _ in messages(200)]
    rows[20:24] = [(text, "ab"[label == "a"], customer) for text, label, customer in rows[20:24]]
    page, report = prepare_rows(tmp_path, rows, "  split: {test: 0.01, validation: 0.01, calibration: 0}\n", NEAR_OFF)
    assert report["suspects"]["found"] == 4
    section_text = page.words["doubts"]
    assert "4 of 198 labels examined" in section_text
    suspects = re.findall(r"rows\.csv:(\d+), \w+the (\w+) .*\s+label(\w)[\d.<]+%\s+predicted(\w)", section_text)
    cat, dog = ("cat", "b", "a"), ("dog", "a", "b")
    assert sorted(suspects) == [("22", *cat), ("23", *dog), ("24", *cat), ("25", *dog)]
    assert "Nothing was changed" in section_text


def test_what_is_redacted_is_nowhere_on_the_page_and_counts_are(tmp_path: Path) -> None:
    rows = messages(100) + [(f"write to ann{n % 9}@example.org please", "ab"[n % 2], "") for n in range(30)]
    page, report = prepare_rows(tmp_path, rows, "privacy: {redact: [email]}\n")
    assert "@example" not in page.text
    assert "[EMAIL_1]" in page.text
    assert page.row("personal", "e-mail address")[1:3] == ["30", "replaced by a placeholder"]
    assert report["personal_data"]["email"]["rows"] == 30


def test_sections_without_content_are_left_out_and_what_was_not_looked_for_is_told(tmp_path: Path) -> None:
    page, _ = prepare_rows(tmp_path, messages(200), "", NEAR_OFF)
    assert not {"duplicates", "slices", "fields"} & page.words.keys()
    assert "200 rows read, 200 written, none left out." in page.words["rows"]
    assert "Yes. None of" in page.words["test"]
    assert "None was found" in page.words["personal"]
    for hint in ("data.deduplicate.near is 1", "data.split.group names no", "Label errors in test", "Names"):
        assert hint in page.words["unsought"]
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"].startswith("#")}
    assert links == {f"#{section}" for section in page.words if section}


def test_one_of_each_thing_is_told_in_the_singular(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("".join(TESTS), encoding="utf-8")
    rows = [*messages(60), ("how do I cancel!", "a", "z"), ("", "a", "z")]
    page, report = prepare_rows(tmp_path, rows, "  max_rejected: 0.1\n", other_sources=", test: test.csv")
    assert report["rows"]["rejected"] == {"no_text": 1}
    assert report["rows"]["dropped"] == {"in_test": 1}
    assert "1 row removed from the other splits" in page.words["test"]
    page_text = " ".join(page.words.values())
    assert not re.search(r"\b1 (rows|labels|fields|files|values|slices|processes|tokens)\b", page_text)


def test_rows_over_the_limit_are_told_by_split_and_the_limit_is_drawn_inside_the_figure(tmp_path: Path) -> None:
    rows = [
        (f"{text} {'and so on ' * (number % 9) * 8}", label, "")
        for number, (text, label, _) in enumerate(messages(200))
    ]
    page, report = prepare_rows(tmp_path, rows, "", "train.max_length=150", NEAR_OFF)
    over_limit = report["tokens"]["over_max_length"]
    counts = {cells[0]: parse_count(cells[1]) for cells in page.tables["lengths"][1:]}
    assert counts == {
        "train": report["rows"]["dropped"]["too_long"],
        **{name: n for name, n in over_limit.items() if n},
    }
    (limit,) = (attributes for tag, attributes in page.tags if tag == "line")
    assert 0 < float(limit["x1"]) < 100
    columns = [bar for bar in page.bars if bar["section"] == "lengths" and bar["class"] != "over"]
    assert all(float(bar["x"]) >= 0 and float(bar["x"]) + float(bar["width"]) <= 100.01 for bar in columns)
    beyond = [bar for bar in columns if float(bar["x"]) >= float(limit["x1"])]
    assert beyond and all(bar["class"] != "s-train" for bar in beyond)


def test_seventy_seven_labels_are_all_there_in_a_file_of_modest_size(tmp_path: Path) -> None:
    labels = [f"balance_not_updated_after_cheque_or_cash_deposit_{number}" for number in range(77)]
    limits = [f"{key}=8192" for key in ("train.max_length", "train.pack_tokens", "serve.max_model_len")]
    page, _ = prepare_rows(tmp_path, messages(1540, labels), "", *limits)
    assert {cells[0] for cells in page.tables["labels"]} >= set(labels)
    assert len(page.text.encode()) < 400_000


@given(st.dictionaries(st.text(), st.integers(0, 10**9), max_size=12), st.integers(0, 10**9))
def test_segments_cover_their_share_of_the_bar_without_gaps(parts: dict[str, int], rest: int) -> None:
    total = sum(parts.values()) + rest
    segments = html.make_segments(parts, total)
    assert sum(segment["rows"] for segment in segments) == total - rest
    end = 0.0
    for segment in segments:
        assert segment["x"] == pytest.approx(end, abs=0.01)
        end = segment["x"] + segment["width"]
    assert end == pytest.approx(100 * (total - rest) / max(total, 1), abs=0.02)


@given(st.text(max_size=900), st.text(max_size=900), st.text(max_size=400))
def test_pieces_of_two_texts_are_the_texts_cut_and_mark_a_difference(first: str, second: str, prefix: str) -> None:
    for a, b in ((first, second), (prefix + first, prefix + second)):
        pieces = html.diff_texts(a, b)
        texts = ["".join(text for text, _ in side) for side in pieces]
        assert all(len(text.replace(" ↵ ", "\n")) <= html.MAX_EXCERPT_CHARACTERS + 3 for text in texts)
        assert any(differs for side in pieces for _, differs in side) == (texts[0] != texts[1])
        common = ["".join(text for text, differs in side if not differs) for side in pieces]
        assert common[0] == common[1]


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_percentages_are_never_rounded_to_nothing_or_to_all(part: int, rest: int) -> None:
    percentage = html._format_part(part, part + rest)
    assert (percentage == "0.0%") == (part == 0)
    assert (percentage == "100.0%") == (part > 0 and rest == 0)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_ticks_are_few_and_inside(low: int, span: int) -> None:
    ticks = html.ticks(low, low + span)
    assert len(ticks) <= 6
    assert all(low <= tick <= low + span for tick in ticks)
