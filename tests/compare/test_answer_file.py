"""Answers that one has already: every encoding and line end that a file may have, and what is refused in words."""

import codecs
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.analysis import system_scores
from compare.eval_dataset import EvalDataset
from compare.records import System, SystemResponses
from compare.scoring import predictions
from compare.systems import answer_file
from compare.systems.answer_file import DEFAULT_RULES, ReadingRules
from insource.backends import pricing
from insource.config.errors import RecipeError
from insource.config.schema.compare import Baseline
from insource.tasks import TASKS, classification
from insource.tracking.prompt_spec import PromptSpec
from tests.helpers.errors import raises_error

LABELS = ("delivery_delay", "refund_status", "réclamation")
TARGETS = {f"r{index}": LABELS[index % 3] for index in range(9)}
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
ONE = '{"id": "r0", "output": "delivery_delay"'


def material(targets: dict[str, Any] = TARGETS, kind: str = "classification", spec: Any = None) -> Any:
    """What the file is read against: test rows and the task, without a run on disk."""
    task = spec or classification.Spec("Choose.", dict.fromkeys(LABELS, ""))
    rows: Any = [{"id": row_id, "target": target} for row_id, target in targets.items()]
    return EvalDataset(TASKS[kind], task, PromptSpec(task={"kind": kind}, max_answer_tokens=16), [], [], rows)


def lines_of(targets: dict[str, Any] = TARGETS, **extra: Any) -> str:
    rows = [{"id": row_id, "output": target, **extra} for row_id, target in targets.items()]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def gathered(path: Path, rules: ReadingRules = DEFAULT_RULES, dataset: Any = None, **overrides: Any) -> SystemResponses:
    baseline = Baseline(provider="file", path=str(path), name="today", **overrides)
    answers, reason, notes = answer_file.match_rows(
        answer_file.read_answer_file(baseline, rules), "today", dataset or material(), rules
    )
    system = System("today", "file", "today", baseline=baseline)
    return SystemResponses(
        system,
        answers,
        complete=reason is None,
        incomplete_reason=reason,
        price=pricing.lookup_price(baseline),
        notes=notes,
    )


def right(responses: SystemResponses, dataset: Any = None) -> float:
    dataset = dataset or material()
    metrics = predictions.score_answers(dataset, dataset.test, responses.test_answers).metrics
    values = metrics.get("accuracy") or metrics["exact_match"]
    return sum(values) / len(values)


def written(folder: Path, text: str | bytes, name: str = "answers.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(folder: Path, text: str | bytes, rules: ReadingRules = DEFAULT_RULES, **overrides: Any) -> str:
    with pytest.raises(RecipeError) as error:
        gathered(written(folder, text), rules, **overrides)
    return str(error.value)


@settings(deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs"])), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_text_of_an_answer_is_one_line_of_the_file(tmp_path_factory: Any, text: str, line_end: str) -> None:
    """JSON escapes line feeds and carriage returns; what else Python calls a line end is a character like any other."""
    rows = {
        row_id: {"id": row_id, "output": target, "reason": f"{text}{SEPARATORS}"} for row_id, target in TARGETS.items()
    }
    content = line_end.join(json.dumps(row, ensure_ascii=False) for row in rows.values())
    responses = gathered(written(tmp_path_factory.mktemp("answers"), content))
    assert responses.complete and right(responses) == 1


@pytest.mark.parametrize(
    ("encoding", "bom"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("cp1252", b""),
    ],
)
def test_the_bytes_say_the_encoding(tmp_path: Path, encoding: str, bom: bytes) -> None:
    responses = gathered(written(tmp_path, bom + lines_of().encode(encoding)))
    assert right(responses) == 1
    assert bool(responses.notes) is (encoding == "cp1252"), "what is guessed is told"


def test_an_encoding_that_the_recipe_names_is_taken_and_one_that_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    cyrillic = dict.fromkeys(TARGETS, "возврат")
    dataset = material(cyrillic, spec=classification.Spec("Choose.", {"возврат": ""}))
    path = written(tmp_path, lines_of(cyrillic).encode("cp1251"))
    assert right(gathered(path, dataset=dataset, encoding="cp1251"), dataset) == 1
    message = refused(tmp_path, path.read_bytes())
    assert (
        "answers.jsonl:1: byte 0x" in message
        and "set encoding of this baseline" in message
        and "data.source" not in message
    )
    assert "is not a text encoding" in refused(tmp_path, lines_of(), encoding="utf-9")


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    content = lines_of().encode()
    assert right(gathered(written(tmp_path, gzip.compress(content), "answers.jsonl.gz"))) == 1
    assert right(gathered(written(tmp_path, zstd.compress(content), "answers.jsonl.zst"))) == 1
    assert "gzip data" in refused(tmp_path, gzip.compress(content))


def test_an_id_that_stands_there_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = refused(tmp_path, lines_of() + "\n" + '{"id": "r4", "output": "I cannot help"}\n')
    assert "answers.jsonl:11: id 'r4' is in line 5 already" in message
    assert ":2: id '7' is in line 1" in refused(tmp_path, '{"id": 7, "output": "a"}\n{"id": " 7", "output": "b"}')


def test_labels_may_be_spelt_as_the_source_spells_them(tmp_path: Path) -> None:
    spellings = {
        "delivery_delay": "Delivery-Delay",
        "refund_status": " REFUND  STATUS\r\n",
        "réclamation": "re\u0301clamation",
    }
    path = written(tmp_path, lines_of({row_id: spellings[target] for row_id, target in TARGETS.items()}))
    responses = gathered(path)
    assert right(responses) == 1 and {answer.output for answer in responses.test_answers} == set(LABELS)
    assert "9 answers in another spelling" in responses.notes[0]
    # Where preparation keeps spellings apart, they stay apart here; white space and NFC are cleaned as in targets.
    assert right(gathered(path, ReadingRules(normalize_labels=False))) == pytest.approx(1 / 3)
    wrong = gathered(written(tmp_path, lines_of(dict.fromkeys(TARGETS, "delivery"))))
    assert right(wrong) == 0 and not wrong.notes


def test_ids_are_read_as_preparation_reads_them(tmp_path: Path) -> None:
    """Numbers as text, and personal data in them as pseudonyms."""
    dataset = material({"7": LABELS[1]})
    assert right(gathered(written(tmp_path, '{"id": 7, "output": "refund_status"}'), dataset=dataset), dataset) == 1
    rules = ReadingRules(redact=["email"])
    dataset = material({answer_file.redaction.pseudonymize("ann@example.org", ["email"]): LABELS[0]})
    path = written(tmp_path, '{"id": "ann@example.org", "output": "delivery_delay"}')
    assert right(gathered(path, rules, dataset=dataset), dataset) == 1


def test_personal_data_in_an_answer_is_replaced_where_the_recipe_says_so(tmp_path: Path) -> None:
    content = lines_of(dict.fromkeys(TARGETS, "Write to ann@example.org"))
    assert (
        gathered(written(tmp_path, content), ReadingRules(redact=["email"])).test_answers[0].output
        == "Write to [EMAIL_1]"
    )


def test_null_is_a_refusal_and_not_a_missing_answer(tmp_path: Path) -> None:
    path = written(tmp_path, lines_of(dict.fromkeys(TARGETS), input_tokens=200, output_tokens=1))
    responses = gathered(path, price={"input_usd_per_million": 1, "output_usd_per_million": 10})
    dataset = material()
    assert responses.complete and right(responses) == 0
    assert {
        answer.problem for answer in predictions.score_answers(dataset, dataset.test, responses.test_answers).parsed
    } == {"refusal"}
    # It was asked and paid for.
    assert len(system_scores.token_usages(responses)) == 9


def test_a_record_as_an_object_is_read_as_the_source_writes_it(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"total": {"type": "number"}, "due": {"type": ["string", "null"], "maxLength": 20}},
        "required": ["total"],
    }
    task: Any = SimpleNamespace(instruction="Read.", json_schema=schema, normalizers={}, absent="null")
    spec = TASKS["extraction"].make_spec(task, {})
    dataset = material({"a": {"total": 12.5, "due": None}, "b": {"total": 3, "due": "May"}}, "extraction", spec)
    rows = [{"id": "a", "output": {"due": "", "total": "12.50"}}, {"id": "b", "output": {"total": 3.0, "due": " May "}}]
    path = written(tmp_path, "\n".join(json.dumps(row) for row in rows))
    assert right(gathered(path, dataset=dataset), dataset) == 1
    # Text is what a model wrote: it is held to the same form as every model's answer.
    rows = [{"id": row["id"], "output": json.dumps(row["output"])} for row in rows]
    path = written(tmp_path, "\n".join(json.dumps(row) for row in rows))
    assert right(gathered(path, dataset=dataset), dataset) == 0.5


@pytest.mark.parametrize(
    "figure", ["NaN", "Infinity", "-Infinity", "1e999", "-1", '"0.2"', "true", "[1]", "1" + "0" * 400]
)
@pytest.mark.parametrize("name", ["cost_usd", "latency_seconds", "input_tokens", "cached_tokens", "confidence"])
def test_a_figure_that_is_no_finite_number_is_refused_by_name(tmp_path: Path, name: str, figure: str) -> None:
    message = refused(tmp_path, f'{lines_of()}{{"id": "r9", "output": "x", "{name}": {figure}}}\n')
    assert f"answers.jsonl:10: id 'r9': {name} is " in message and "or null where it is not known" in message


def test_figures_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    responses = gathered(
        written(tmp_path, lines_of(cost_usd=None, input_tokens=300.0, confidence=1, latency_seconds=0))
    )
    answer = responses.test_answers[0]
    assert (answer.cost_usd, answer.input_tokens, answer.confidence, answer.latency_seconds) == (None, 300, 1.0, 0.0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[1]", "needs a JSON object"),
        ("{", 'needs a JSON object with "id" and "output", given {'),
        ('{"output": "a"}', 'needs a JSON object with "id"'),
        ('{"id": "r0"}', 'needs a JSON object with "id" and "output"'),
        ('{"id": null, "output": "a"}', "id is None; give the id of a test row"),
        ('{"id": true, "output": "a"}', "id is True"),
        ('{"id": NaN, "output": "a"}', "id is nan"),
        ('{"id": " ", "output": "a"}', "id is ' '"),
        ('{"id": "r0", "output": "a", "output": "b"}', "key 'output' occurs twice"),
        ('{"id": "r0", "output": "\\ud800"}', "id 'r0': output has half of a surrogate pair"),
        (ONE + ', "model_id": 4}', "id 'r0': model_id is 4"),
        ("[" * 100_000, "needs a JSON object"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_with_its_number(tmp_path: Path, line: str, expected: str) -> None:
    message = refused(tmp_path, f"\n{line}\n")
    assert f"answers.jsonl:2: {expected}" in message and len(message) < 400


def test_a_file_for_other_rows_or_for_some_of_them(tmp_path: Path) -> None:
    assert "answers none of the 9 test rows" in refused(tmp_path, '{"id": "other", "output": "a"}')
    partial = gathered(written(tmp_path, ONE + '}\n{"id": "other", "output": "a"}'))
    assert not partial.complete and partial.incomplete_reason == (
        "answers.jsonl answers 1 of 9 test rows, and has 1 ids that are none of them"
    )
    assert "is empty" in refused(tmp_path, "")
    with raises_error(RecipeError, "INS-C006", match="there is no file"):
        gathered(tmp_path / "nothing.jsonl")


def costs(responses: SystemResponses) -> tuple[float | None, float | None]:
    """USD a request, and a thousand requests as the table of systems has it."""
    dataset = material()
    scored = system_scores.score_system(responses, dataset, None)
    summary = system_scores.summarize_system(scored, dataset, None, calibrated=False)
    return system_scores.request_cost(scored).usd_per_request, summary.cost_usd_per_1k


def test_its_price_and_tokens_cost_as_a_closed_models_do(tmp_path: Path) -> None:
    price = {"input_usd_per_million": 500.0, "output_usd_per_million": 1000.0, "cached_input_usd_per_million": 50.0}
    path = written(tmp_path, lines_of(input_tokens=300, output_tokens=5, cost_usd=9.0))
    assert costs(gathered(path, price=price)) == (pytest.approx(0.155), pytest.approx(155))
    path = written(tmp_path, lines_of(input_tokens=300, output_tokens=5, cached_tokens=300))
    assert costs(gathered(path, price=price))[0] == pytest.approx(0.02)


def test_what_its_lines_cost_is_its_cost_where_no_price_tells_it(tmp_path: Path) -> None:
    content = "".join(lines_of(cost_usd=0.2).splitlines(keepends=True)[:4]) + "".join(
        lines_of(cost_usd=None).splitlines(keepends=True)[4:]
    )
    assert costs(gathered(written(tmp_path, content))) == (pytest.approx(0.2), pytest.approx(200))
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0}
    assert costs(gathered(written(tmp_path, lines_of(cost_usd=0.2)), price=price))[0] == pytest.approx(0.2)
    assert costs(gathered(written(tmp_path, lines_of()))) == (None, None)
