"""report.html and report.md: what a comparison found, exact, and safe whatever a model has answered."""

import json
import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.decision import criteria
from compare.report import console, html_page, markdown_page, section_data, wording
from insource.system import number_format
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Disagreement, Scores, TeacherSummary
from tests.helpers import example_scores
from tests.helpers.example_scores import API_MODEL, IMAGE_TAG, SCRIPT_TAG, SECOND_MODEL, TUNED_MODEL

VOID = {"meta", "br", "wbr", "input"}


@dataclass
class Page(HTMLParser):
    """What a reader of report.html without scripts sees."""

    text: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    cells: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._section, self._open = "", list[str]()
        self.feed(self.text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = attributes["id"]
        if tag in ("td", "th"):
            self.cells.append("")
        if tag in ("p", "h1"):
            self.paragraphs.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._open):
            return
        self.words[self._section] = self.words.get(self._section, "") + data
        if {"td", "th"} & set(self._open):
            self.cells[-1] += data
        if {"p", "h1"} & set(self._open):
            self.paragraphs[-1] += data

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def page_of(scores: dict[str, Any], rows: list[Disagreement] | None = None) -> Page:
    rows = example_scores.make_disagreements() if rows is None else rows
    return Page(html_page.render_html(Scores.model_validate(scores), rows))


def markdown_of(scores: dict[str, Any]) -> str:
    return markdown_page.render_markdown(Scores.model_validate(scores))


@pytest.fixture(scope="module")
def page() -> Page:
    return page_of(example_scores.make_json())


def test_the_verdict_comes_first_and_every_reason_has_its_figure(page: Page) -> None:
    verdict = example_scores.make_json()["verdict"]
    assert page.paragraphs[1] == verdict["headline"]
    for reason in verdict["reasons"]:
        assert reason["says"] in page.words["reasons"]
        assert (reason["figure"] or "") in page.words["reasons"]
    assert verdict["undecided"][0] in page.words["reasons"]


def test_the_five_questions_are_counted_and_each_has_its_answer_and_its_figure(page: Page) -> None:
    scores = example_scores.make_scores()
    tally = "1 open (prompt changes), 1 closed (cost), 3 neutral"
    text = markdown_page.render_markdown(scores)
    assert f"{tally}." in page.paragraphs and tally in text.replace("\\", "")
    reasons = wording.question_reasons(scores)
    assert [reason.topic for reason in reasons] == list(criteria.QUESTION_TEXTS)
    for reason in reasons:
        vote = reason.favors if reason.favors == "neutral" else f"favors {reason.favors}"
        assert f"{reason.question} {reason.text}" in page.paragraphs
        assert f"{reason.topic}, {vote}" in page.words["reasons"] and str(reason.value) in page.words["reasons"]
        assert f"- **{reason.favors}**, {reason.question} " in text
        assert page.words["reasons"].count(reason.text) == 1, "told once"
    lines = [line for line in console.summary_lines(Run(Path("run")), scores) if line.startswith("questions ")]
    assert lines == [f"questions {tally}"]


def test_every_system_stands_in_the_main_table_with_its_figure_and_interval(page: Page) -> None:
    for name, system in example_scores.make_scores().systems.items():
        position = next(
            index
            for index, cell in enumerate(page.cells)
            if cell.startswith(wording.display_name(system) + wording.KIND_LABELS[system.kind])
        )
        figure = system.metrics["accuracy"]
        interval = number_format.format_range(figure.ci_low, figure.ci_high)
        expected = number_format.format_percent(figure.value) + interval
        assert expected in page.cells[position : position + 3], name
        assert number_format.format_usd(system.cost_usd_per_1k) in page.cells[position + 4]


def test_both_reports_say_whose_the_train_labels_are(page: Page) -> None:
    scores = example_scores.make_scores()
    assert wording.teacher_text(scores) is None and "train labels" not in page.words["integrity"]
    teacher = TeacherSummary(name="openai:gpt-6-luna:decisions", n_train=500, stand_in=False, soft_labels=True)
    scores = scores.model_copy(update={"task": scores.task.model_copy(update={"teacher": teacher})})
    text = "500 of 7,842 are those of the teacher openai:gpt-6-luna:decisions, as probabilities"
    assert text in Page(html_page.render_html(scores, [])).words["integrity"]
    assert text in markdown_page.render_markdown(scores).replace("\\", "")
    assert Scores.model_validate(scores.to_json()).task.teacher == teacher


def test_a_stand_in_is_named_as_such_in_every_table(page: Page) -> None:
    cells = [cell for cell in page.cells if IMAGE_TAG in cell]
    assert len(cells) >= 8
    assert [cell for cell in cells if "stand-in" not in cell] == []
    lines = [line for line in markdown_of(example_scores.make_json()).splitlines() if "onerror" in line]
    assert len(lines) >= 4
    assert [line for line in lines if "stand-in" not in line] == []


def test_what_is_not_whole_is_said_at_the_top_and_in_its_rows(page: Page) -> None:
    assert "INCOMPLETE" in page.words[""]
    assert "INCOMPLETE: 2,100 of 3,080 answered" in page.words["quality"]
    assert "2,100 of 3,080 rows answered; the budget was spent" in page.words["integrity"]
    # It stands in the verdict's list by name too, and is told once.
    assert page.words["integrity"].count("2,100 of 3,080") == 1


def test_systems_that_are_not_whole_stand_below_the_others() -> None:
    rows = section_data.quality(example_scores.make_scores())["rows"]
    values = [row["figure"].value for row in rows[:-1]]
    assert rows[-1]["name"] == SECOND_MODEL
    assert values == sorted(values, reverse=True)
    assert rows[-1]["figure"].value > values[-1]


def test_a_linear_model_that_does_as_well_is_the_first_line_and_is_said_once() -> None:
    scores = example_scores.make_json(linear=0.912)
    assert page_of(scores).paragraphs[2].startswith("TF-IDF + logistic regression does as well: accuracy 91.2%")
    says = "TF-IDF does as well as what was trained."
    scores["verdict"]["reasons"].insert(0, {"about": "linear", "says": says, "for": "closed", "figure": "91.2%"})
    report = page_of(scores)
    assert report.paragraphs[2] == says
    assert report.text.count(says) == 1
    assert markdown_of(scores).count(says.replace("_", "\\_")) == 1
    scores["verdict"]["headline"] = "A linear model does as well."
    report = page_of(scores)
    assert "linear" not in report.ids
    assert says in report.words["reasons"]


def test_the_most_similar_train_row_that_does_as_well_is_the_first_line_too() -> None:
    scores = example_scores.make_json(linear=0.912)
    scores["systems"]["tfidf"] |= {"kind": "nearest", "title": "answer of the most similar train row"}
    assert page_of(scores).paragraphs[2].startswith("Answer of the most similar train row does as well: accuracy 91.2%")


def test_a_base_that_was_not_quantized_is_called_so() -> None:
    scores = example_scores.make_json()
    assert "Qwen/Qwen3-4B-Instruct-2507, nf4" in page_of(scores).words[""]
    scores["base"]["quantization"] = "none"
    assert "Qwen/Qwen3-4B-Instruct-2507, not quantized" in page_of(scores).words[""]
    assert "not quantized, measured on" in markdown_of(scores)


def test_a_linear_model_that_does_worse_is_no_first_line(page: Page) -> None:
    assert "linear" not in page.ids


def test_where_owning_was_not_measured_the_page_says_why_and_has_no_sliders() -> None:
    report = page_of(example_scores.make_json(measured=False))
    assert "withheld" in report.words["cost"]
    assert f"no server was started {SCRIPT_TAG}" in report.words["cost"]
    assert "pays-controls" not in report.ids
    assert json.loads(told_of(report.text))["cost"] is None
    assert "break-even is withheld" in markdown_of(example_scores.make_json(measured=False))


def test_without_a_closed_price_there_is_no_break_even() -> None:
    scores = example_scores.make_json()
    scores["cost"]["systems"] = {}
    report = page_of(scores)
    assert "no break-even was computed" in report.words["cost"]
    assert "20.0 requests a second" in report.words["cost"]


def test_without_a_plan_all_is_called_exploratory() -> None:
    report = page_of(example_scores.make_json(planned=False))
    assert "No comparison was planned" in report.words["quality"]
    assert "none of these decides" in report.words["differences"]
    assert "No plan was written" in report.words["integrity"]
    assert "none, so every comparison is exploratory" in markdown_of(example_scores.make_json(planned=False))


def test_few_labels_are_a_table_of_numbers_and_many_a_drawing_with_the_most_confused_pairs() -> None:
    few, many = (page_of(example_scores.make_json(labels=count)).words["confusion"] for count in (9, 77))
    assert "expected label by answered label" in few
    assert "expected label by answered label" not in many
    assert "the darker a cell" in many
    matrix = section_data.confusion(example_scores.make_scores(labels=77))[0]
    counts = example_scores.make_json(labels=77)["confusion"][TUNED_MODEL]["counts"]
    assert sum(path["path"].count("M") for path in matrix["paths"]) == sum(bool(cell) for row in counts for cell in row)
    pairs = [pair["count"] for pair in matrix["pairs"]]
    assert len(pairs) == section_data.MAX_PAIRS and pairs == sorted(pairs, reverse=True)
    assert matrix["wrong"] == sum(map(sum, counts)) - sum(counts[index][index] for index in range(77))


def test_sections_without_content_are_left_out_and_the_links_are_those_that_are_there(page: Page) -> None:
    scores = example_scores.make_json()
    scores |= {"confusion": {}, "comparisons": [], "agreement": {}, "not_run": [], "plan": None, "routing": None}
    scores["task"]["parts"] = "fields"
    for system in scores["systems"].values():
        system |= {"slices": {}, "per_part": {}, "calibration": None, "latency": None, "invalid": {}, "errors": {}}
    bare_report = page_of(scores, [])
    removed = {"differences", "routing", "parts", "confusion", "calibration", "slices", "latency", "disagreements"}
    assert not removed & set(bare_report.ids)
    assert removed <= set(page.ids)
    for rendered in (page, bare_report):
        links = [attributes["href"] for tag, attributes in rendered.tags if tag == "a"]
        sections = [attributes["id"] for tag, attributes in rendered.tags if tag == "section"]
        assert [link[1:] for link in links if link != "scores.json"][-len(sections) :] == sections


def test_the_page_is_well_formed_and_everything_on_it_has_a_name(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(next_level - level <= 1 for level, next_level in pairwise(levels))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert len(page.ids) == len(set(page.ids))
    labels = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    assert {attributes["id"] for tag, attributes in page.tags if tag in ("input", "select")} == labels
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") != "inset"]
    assert all(attributes.get("role") == "img" or attributes.get("aria-hidden") == "true" for attributes in figures)


def test_nothing_that_was_written_elsewhere_becomes_markup(page: Page) -> None:
    assert [attributes.get("type", "") for tag, attributes in page.tags if tag == "script"] == ["application/json", ""]
    assert {"img", "iframe", "link", "object", "base"}.isdisjoint(tag for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert not {"src", "srcset", "style", "action", "data"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    for section in ("reasons", "quality", "parts", "confusion", "slices", "validity", "disagreements", "systems"):
        assert SCRIPT_TAG in page.words[section] or IMAGE_TAG in page.words[section], section
    assert "<script>document" not in page.text
    assert not re.search(r"@import|url\(", page.text)


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists, max_leaves=5))
def test_data_for_the_script_is_json_in_which_no_tag_begins(value: Any) -> None:
    text = html_page.script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def told_of(text: str) -> str:
    match = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.DOTALL)
    assert match
    return match[1]


# report.md


def test_the_pull_request_has_verdict_figures_differences_cost_and_hashes() -> None:
    scores = example_scores.make_json()
    text = markdown_of(scores)
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == ["Systems", "Paired differences", "Cost", "Routing", "What is incomplete", "Integrity"]
    assert text.index("**Verdict: hybrid.**") < text.index("## Systems")
    assert "| **tuned (adapter)** | 91.2% (90.2 to 92.2) |" in text
    assert "8,961,001" in text
    assert "Did not run: anthropic:late" in text
    assert "a" * 64 in text and "b" * 64 in text


def test_no_text_of_a_model_opens_a_cell_a_tag_or_a_link_in_the_pull_request() -> None:
    scores = example_scores.make_json()
    scores["systems"][API_MODEL]["title"] = example_scores.MARKDOWN_LINES
    scores["verdict"]["headline"] = example_scores.MARKDOWN_LINES
    text = markdown_of(scores)
    assert not set("<>`\u2028\0") & set(text)
    assert "https://" not in text and "@team" not in text
    assert r"\[link\]" in text
    for block in text.split("\n\n"):
        if block.startswith("| "):
            assert len({line.count("|") for line in block.splitlines()}) == 1


@given(st.text())
def test_a_text_in_the_pull_request_is_one_line_of_plain_words(text: str) -> None:
    escaped = markdown_page.escape_markdown(text)
    assert not set("<>|`\n\r\0\u2028\u2029") & set(escaped)
    assert len(escaped.splitlines()) <= 1
    plain = re.sub(r"\\(.)", r"\1", unescape(escaped)).replace("\u2060", "")
    assert plain.split() == "".join(char if char.isprintable() else " " for char in text).replace("\u2060", "").split()


def test_both_files_are_written_whatever_a_model_has_answered(tmp_path: Path) -> None:
    payload, rows = example_scores.make_json(), example_scores.make_disagreements()
    payload["verdict"]["headline"] = "half a character \ud800 and nothing \0"
    scores = Scores.model_validate(payload)
    assert html_page.write_report(tmp_path, scores, rows) == [
        tmp_path / "report.html",
        tmp_path / "report.md",
    ]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\0" not in text and "half a character ?" in text
    assert "half a character" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_kind_without_labels_and_fields_has_a_report_too() -> None:
    """Generations and preferences have neither parts with an F1, nor a confusion, nor always a confidence."""
    scores = example_scores.make_json()
    for system in scores["systems"].values():
        system |= {"per_part": {}, "slices": {}, "calibration": None}
    scores |= {"confusion": {}, "task": {**scores["task"], "kind": "generation", "parts": "groups of rows"}}
    html = page_of(scores).text
    assert "Which labels are hard?" not in html and "How good is each system?" in html
