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
from data_prep.dedup.drops import DropDecisions
from data_prep.report import html
from data_prep.row_table import Table
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
        known = {name: value or "" for name, value in attrs}
        self.tags.append((tag, known))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = known["id"]
        elif tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._section][-1].append("")
            self._cell = True
        elif tag == "rect":
            self.bars.append({"section": self._section, **known})

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.words[self._section] = self.words.get(self._section, "") + data
        if self._cell:
            self.tables[self._section][-1][-1] += data

    def row(self, section: str, first: str) -> list[str]:
        """The cells of the row that opens with this."""
        return next(cells for cells in self.tables[section] if cells[0] == first)


Prepared = tuple[Page, dict[str, Any]]


def page_of(
    folder: Path, rows: Iterable[Sequence[str]], more: str = "", *overrides: str, name: str = "rows", given: str = ""
) -> Prepared:
    """Prepares rows of (text, label, customer). Returns the page and data.json."""
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "customer"), *rows])
    (folder / "r.yaml").write_text(
        "task: {kind: classification, instruction: Route the message to one queue.}\nmodel: {base: pocket}\n"
        f"data:\n  source: {{{'train' if given else 'path'}: '{name}.csv'{given}}}\n{more}",
        encoding="utf-8",
    )
    return prepared(folder, *overrides)


def prepared(folder: Path, *overrides: str) -> Prepared:
    made, _ = prepare.main(load(str(folder / "r.yaml"), overrides, "cpu").recipe, folder / "runs")
    return Page((made / "data.html").read_text(encoding="utf-8")), atomic_files.read_json(made / "data.json")


def messages(count: int, labels: Sequence[str] = "ab") -> list[tuple[str, str, str]]:
    """Rows of which none is near another."""
    words = [
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
            "about " + " ".join(f"{words[(number * step + step) % 11]}{number * step}" for step in (1, 5, 7, 11)),
            labels[number % len(labels)],
            f"c{number}",
        )
        for number in range(count)
    ]


def soil(folder: Path) -> Prepared:
    """A source with something of each kind: duplicates, near ones, conflicts, two spellings, an unusable row."""
    rows = messages(300, ("refund_status", "delivery"))
    rows += [(f"{text}!", label, f"d{number}") for number, (text, label, _) in enumerate(rows[:60])]
    near = "{}, my {} and thank you very much for your help with all of that"
    rows += [
        (near.format(hello, one[0]), one[1], hello + one[2]) for hello in ("Hi", "Hello", "Hallo") for one in rows[:9]
    ]
    rows += [
        (f"torn {number} apart{'!' * twice}", ("delivery", "refund_status")[twice], f"t{number}")
        for number in range(9)
        for twice in (0, 1)
    ]
    rows += [("one more of the other spelling", "Refund-Status", "v"), ("", "delivery", "z")]
    return page_of(folder, rows, "  split: {group: customer}\n  slices: {who: {by: label}}\n")


@pytest.fixture(scope="module")
def soiled(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return soil(tmp_path_factory.mktemp("soiled"))


def whole(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_rows_shown_sum_up_and_are_those_of_data_json(soiled: Prepared) -> None:
    page, told = soiled
    shown = {cells[0]: whole(cells[2]) for cells in page.tables["rows"] if len(cells) == 4 and cells[0] != "Where to"}
    by_code = {cells[1]: whole(cells[2]) for cells in page.tables["rows"] if len(cells) == 4 and cells[1]}
    rows = told["rows"]
    assert by_code == {**rows["dropped"], **rows["rejected"]}
    assert {"duplicate", "conflict", "in_test", "near_duplicate", "no_text"} <= by_code.keys()
    assert {name: shown[name] for name in SPLITS} == rows["written"]
    assert shown["left out"] == sum(by_code.values())
    assert sum(shown[name] for name in SPLITS) + shown["left out"] == shown["read"] == rows["read"]
    flow = [bar for bar in page.bars if bar["section"] == "rows"]
    for warn in (True, False):
        drawn = sum(float(bar["width"]) for bar in flow if bar["class"].startswith("s-warn") == warn)
        assert drawn == pytest.approx(100, abs=0.05)


def test_every_label_is_shown_with_its_rows_in_every_split_and_its_spellings(soiled: Prepared) -> None:
    page, told = soiled
    for label, one in told["labels"].items():
        counts = [one[name] for name in SPLITS]
        assert [whole(cell) for cell in page.row("labels", label)[2:]] == [*counts, sum(counts)]
    spelt = next(cells[1] for cells in page.tables["labels"] if cells[0] == "refund_status" and len(cells) == 2)
    assert spelt == ", ".join(f"{one} {rows}" for one, rows in told["labels"]["refund_status"]["spellings"].items())
    assert spelt.endswith("Refund-Status 1")
    for name, one in told["split"]["shares"].items():
        asked, got = f"{one['asked']:.1%}", f"{one['share']:.1%}"
        assert page.row("labels", name)[1:3] == [asked, got]


def test_labels_stand_in_the_order_of_their_frequency(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path, messages(200, ("rare", "often", "often", "often")))
    sums = [whole(cells[-1]) for cells in page.tables["labels"] if cells[0] in ("rare", "often")]
    assert len(sums) == 2 and sums == sorted(sums, reverse=True)


def test_test_rows_found_elsewhere_are_told_and_its_seal(soiled: Prepared) -> None:
    page, told = soiled
    found = told["test_rows_also_elsewhere"]["normalised"]
    assert found > 0
    assert f"It is now. {found}" in page.words["test"]
    assert page.row("test", "after removal, counted anew")[1] == "0"
    assert told["sha256"]["test.jsonl"] in page.words["test"]


def test_a_test_set_that_is_not_clean_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_leaves(table: Table, *_: Any) -> DropDecisions:
        return DropDecisions.none(len(table))

    monkeypatch.setattr(prepare, "deduplicate", none_leaves)
    page, told = soil(tmp_path)
    found = told["test_rows_also_elsewhere"]["normalised"]
    assert f"No: {found} test rows also stand in another split" in page.words["test"]


def test_pairs_show_both_texts_and_where_they_stand(soiled: Prepared) -> None:
    page, told = soiled
    words = page.words["duplicates"]
    assert re.search(r"rows\.csv:\d+, train, left out", words)
    assert re.search(r"rows\.csv:\d+, test, stays", words)
    assert "Similarity 0." in words
    kinds = [reason for reason in told["rows"]["dropped"] if reason != "too_long"]
    assert words.count(", left out") >= len(kinds)


def test_what_a_user_wrote_never_becomes_markup(tmp_path: Path) -> None:
    rows = [(f"{HOSTILE} {text}", f"{HOSTILE}{label}", f"{HOSTILE}c") for text, label, _ in messages(120)]
    rows += [(f"{text}!?", label, HOSTILE) for text, label, _ in rows[:40]]
    rows += [("", HOSTILE, HOSTILE)]
    page, _ = page_of(
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
    page, told = prepared(tmp_path)
    assert "<script" not in page.text
    assert "labels" not in page.words and "doubts" not in page.words
    for field_name in (name, "due"):
        counts = [whole(cell) for cell in page.row("fields", field_name)[2:]]
        assert sum(counts[:-1]) == counts[-1] == told["rows"]["read"]
        assert dict(zip(html.FIELD_STATES, counts, strict=False)).items() >= told["fields"][field_name]["all"].items()
    assert "this task has none" in page.words["unsought"]


def test_the_page_loads_nothing_and_links_only_to_what_lies_beside_it(soiled: Prepared) -> None:
    page, told = soiled
    sections = {known["id"] for tag, known in page.tags if tag == "section"}
    for tag, known in page.tags:
        assert not {"src", "srcset", "action", "data", "xlink:href"} & known.keys(), tag
        assert not [name for name in known if name.startswith("on")], tag
        if "href" in known:
            target = known["href"]
            assert target.removeprefix("#") in sections or target in {*told["sha256"], "data.json"}
    assert not re.search(r"https?:|@import|url\(|//[a-z]", page.text)


def test_headings_tables_and_figures_are_named(soiled: Prepared) -> None:
    page, _ = soiled
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all("scope" in known for tag, known in page.tags if tag == "th")
    figures = [known for tag, known in page.tags if tag == "svg"]
    assert all(known.get("role") == "img" or known.get("aria-hidden") == "true" for known in figures)
    assert sum(known.get("role") == "img" for known in figures) == [tag for tag, _ in page.tags].count("title") - 1


def test_doubtful_labels_are_shown_with_what_the_model_would_rather_give(tmp_path: Path) -> None:
    animals = {"a": "the cat and a cat", "b": "the dog and a dog"}
    rows = [(f"{animals[label]} {text}", label, "") for text, label, _ in messages(200)]
    rows[20:24] = [(text, "ab"[label == "a"], customer) for text, label, customer in rows[20:24]]
    page, told = page_of(tmp_path, rows, "  split: {test: 0.01, validation: 0.01, calibration: 0}\n", NEAR_OFF)
    assert told["suspects"]["found"] == 4
    words = page.words["doubts"]
    assert "4 of 198 labels looked at" in words
    shown = re.findall(r"rows\.csv:(\d+), \w+the (\w+) .*\s+label(\w)[\d.<]+%\s+rather(\w)", words)
    cat, dog = ("cat", "b", "a"), ("dog", "a", "b")
    assert sorted(shown) == [("22", *cat), ("23", *dog), ("24", *cat), ("25", *dog)]
    assert "Nothing was changed" in words


def test_what_is_redacted_is_nowhere_on_the_page_and_counts_are(tmp_path: Path) -> None:
    rows = messages(100) + [(f"write to ann{n % 9}@example.org please", "ab"[n % 2], "") for n in range(30)]
    page, told = page_of(tmp_path, rows, "privacy: {redact: [email]}\n")
    assert "@example" not in page.text
    assert "[EMAIL_1]" in page.text
    assert page.row("personal", "e-mail address")[1:3] == ["30", "replaced by a placeholder"]
    assert told["personal_data"]["email"]["rows"] == 30


def test_sections_without_content_are_left_out_and_what_was_not_looked_for_is_told(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path, messages(200), "", NEAR_OFF)
    assert not {"duplicates", "slices", "fields"} & page.words.keys()
    assert "200 rows read, 200 written, none left out." in page.words["rows"]
    assert "Yes. None of" in page.words["test"]
    assert "None was found" in page.words["personal"]
    for silence in ("data.deduplicate.near is 1", "data.split.group names no", "Doubtful labels in test", "Names"):
        assert silence in page.words["unsought"]
    links = {known["href"] for tag, known in page.tags if tag == "a" and known["href"].startswith("#")}
    assert links == {f"#{section}" for section in page.words if section}


def test_one_of_each_thing_is_told_in_the_singular(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("".join(TESTS), encoding="utf-8")
    rows = [*messages(60), ("how do I cancel!", "a", "z"), ("", "a", "z")]
    page, told = page_of(tmp_path, rows, "  max_rejected: 0.1\n", given=", test: test.csv")
    assert told["rows"]["rejected"] == {"no_text": 1}
    assert told["rows"]["dropped"] == {"in_test": 1}
    assert "1 row left the other splits" in page.words["test"]
    everything = " ".join(page.words.values())
    assert not re.search(r"\b1 (rows|labels|fields|files|values|slices|processes|tokens)\b", everything)


def test_rows_over_the_limit_are_told_by_split_and_the_limit_is_drawn_inside_the_figure(tmp_path: Path) -> None:
    rows = [
        (f"{text} {'and so on ' * (number % 9) * 8}", label, "")
        for number, (text, label, _) in enumerate(messages(200))
    ]
    page, told = page_of(tmp_path, rows, "", "train.max_length=150", NEAR_OFF)
    over = told["tokens"]["over_max_length"]
    shown = {cells[0]: whole(cells[1]) for cells in page.tables["lengths"][1:]}
    assert shown == {"train": told["rows"]["dropped"]["too_long"], **{name: n for name, n in over.items() if n}}
    (limit,) = (known for tag, known in page.tags if tag == "line")
    assert 0 < float(limit["x1"]) < 100
    columns = [bar for bar in page.bars if bar["section"] == "lengths" and bar["class"] != "over"]
    assert all(float(bar["x"]) >= 0 and float(bar["x"]) + float(bar["width"]) <= 100.01 for bar in columns)
    beyond = [bar for bar in columns if float(bar["x"]) >= float(limit["x1"])]
    assert beyond and all(bar["class"] != "s-train" for bar in beyond)


def test_seventy_seven_labels_are_all_there_in_a_file_of_modest_size(tmp_path: Path) -> None:
    labels = [f"balance_not_updated_after_cheque_or_cash_deposit_{number}" for number in range(77)]
    limits = [f"{key}=8192" for key in ("train.max_length", "train.pack_tokens", "serve.max_model_len")]
    page, _ = page_of(tmp_path, messages(1540, labels), "", *limits)
    assert {cells[0] for cells in page.tables["labels"]} >= set(labels)
    assert len(page.text.encode()) < 400_000


@given(st.dictionaries(st.text(), st.integers(0, 10**9), max_size=12), st.integers(0, 10**9))
def test_segments_cover_their_share_of_the_bar_without_gaps(parts: dict[str, int], rest: int) -> None:
    total = sum(parts.values()) + rest
    drawn = html.make_segments(parts, total)
    assert sum(one["rows"] for one in drawn) == total - rest
    end = 0.0
    for one in drawn:
        assert one["x"] == pytest.approx(end, abs=0.01)
        end = one["x"] + one["width"]
    assert end == pytest.approx(100 * (total - rest) / max(total, 1), abs=0.02)


@given(st.text(max_size=900), st.text(max_size=900), st.text(max_size=400))
def test_pieces_of_two_texts_are_the_texts_cut_and_mark_a_difference(one: str, other: str, shared: str) -> None:
    for a, b in ((one, other), (shared + one, shared + other)):
        pieces = html.diff_texts(a, b)
        texts = ["".join(text for text, _ in side) for side in pieces]
        assert all(len(text.replace(" ↵ ", "\n")) <= html.MAX_EXCERPT_CHARACTERS + 3 for text in texts)
        assert any(differs for side in pieces for _, differs in side) == (texts[0] != texts[1])
        same = ["".join(text for text, differs in side if not differs) for side in pieces]
        assert same[0] == same[1]


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_percentages_are_never_rounded_to_nothing_or_to_all(part: int, rest: int) -> None:
    shown = html.percent(part, part + rest)
    assert (shown == "0.0%") == (part == 0)
    assert (shown == "100.0%") == (part > 0 and rest == 0)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_ticks_are_few_and_inside(low: int, span: int) -> None:
    found = html.ticks(low, low + span)
    assert len(found) <= 6
    assert all(low <= tick <= low + span for tick in found)
