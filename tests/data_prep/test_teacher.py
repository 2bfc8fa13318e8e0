"""A teacher labels rows for train, within its budget, and for train only: against a provider on loopback.

The provider is called a stand-in everywhere: nothing here tells how well a real model labels.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from data_prep import minhash, prepare
from data_prep.report import console
from demo_data.purchase_documents import generate_documents
from demo_data.support_tickets import Ticket, generate_tickets
from insource.backends import failures, response_cache
from insource.config.errors import StageError
from insource.config.load import load
from insource.config.recipe import Recipe
from insource.config.schema.data import Deduplicate
from insource.system import atomic_files
from insource.text.text_keys import clean, duplicate_key
from insource.tracking.data_report import DataReport
from tests.conftest import ROOT, Command
from tests.helpers.provider.faulty_provider import ROW_ERROR, Provider
from tests.helpers.provider.provider_answers import stable_number
from tests.helpers.recipe_errors import load_error

HELD_OUT = ("validation", "calibration", "test")
QUEUES = ("delivery_delay", "device_fault", "refund_status", "billing_dispute")
N_LABELLED = 240
PRICE = "{input_usd_per_million: 1.0, output_usd_per_million: 1.0}"
Splits = dict[str, list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def tickets() -> list[Ticket]:
    """Tickets of few queues with distinct texts: the first N_LABELLED are labelled, the others are not."""
    of_queues = (ticket for ticket in generate_tickets(1600, seed=5) if ticket.queue in QUEUES)
    return list({duplicate_key(ticket.message): ticket for ticket in of_queues}.values())


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def recipe_path(tmp_path: Path, tickets: list[Ticket], provider: Provider, address: str) -> Path:
    """A recipe whose teacher is right about every ticket."""
    write_csv(
        tmp_path / "tickets.csv",
        ["message", "queue", "customer"],
        ((ticket.message, ticket.queue, ticket.customer_id) for ticket in tickets[:N_LABELLED]),
    )
    write_csv(
        tmp_path / "unlabelled.csv",
        ["message", "customer"],
        ((ticket.message, ticket.customer_id) for ticket in tickets[N_LABELLED:]),
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""\
task: {{kind: classification, instruction: Route the message to one queue.}}
data:
  source: {{path: tickets.csv}}
  columns: {{text: message, label: queue}}
  split: {{test: 0.2, validation: 0.15, calibration: 0.1, group: customer}}
  teacher:
    provider: openai
    api: decisions
    model: gpt-6-luna
    base_url: "{address}/v1"
    source: {{path: unlabelled.csv}}
    rows: 60
    budget_usd: 1
    price: {PRICE}
model: {{base: pocket}}
train: {{max_steps: 4, logging_steps: 2, save_steps: 4}}
""",
        encoding="utf-8",
    )
    queues = {clean(ticket.message): ticket.queue for ticket in tickets}
    provider.answer = lambda prompt: queues.get(read_input(prompt), "no queue")
    return path


def read_input(prompt: str) -> str:
    """Return the text of a row in a prompt: a decision has only that, a chat has it at its end."""
    return prompt.rpartition("Input:\n")[2]


def load_recipe(path: Path, *overrides: str) -> Recipe:
    return load(str(path), overrides, "cpu").recipe


def prepare_data(path: Path, *overrides: str) -> tuple[Splits, dict[str, Any], bool]:
    folder, was_prepared = prepare.main(load_recipe(path, *overrides), path.parent / "runs")
    splits = {name: list(atomic_files.read_jsonl(folder / f"{name}.jsonl")) for name in ("train", *HELD_OUT)}
    return splits, atomic_files.read_json(folder / "data.json"), was_prepared


def prepare_people(path: Path) -> Path:
    """Prepare the recipe without its teacher."""
    return prepare.main(prepare.without_teacher(load_recipe(path)), path.parent / "runs")[0]


def sent_texts(provider: Provider) -> list[str]:
    return [read_input(prompt) for prompt in provider.attempts]


def final_keys(cache: Path) -> set[str]:
    """Return the keys of the answers on disk."""
    return {response.key for response in response_cache.read_responses(cache) if response.final}


def by_teacher(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "labelled_by" in row]


def test_labels_of_a_teacher_are_in_train_and_change_no_other_row(recipe_path: Path, provider: Provider) -> None:
    people_folder = prepare_people(recipe_path)
    splits, report, was_prepared = prepare_data(recipe_path)
    assert was_prepared and provider.delivered.total() == 60 and not provider.rule_violations
    labelled = by_teacher(splits["train"])
    assert len(labelled) == 60 and {row["labelled_by"] for row in labelled} == {"openai:gpt-6-luna:decisions"}
    assert all(row["probabilities"][row["target"]] == 0.9 and len(row["probabilities"]) == 4 for row in labelled)
    for name in HELD_OUT:
        text = (people_folder / f"{name}.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in text.splitlines()] == splits[name]
        assert not by_teacher(splits[name])
    people_rows = [row for row in splits["train"] if "labelled_by" not in row]
    assert people_rows == list(atomic_files.read_jsonl(people_folder / "train.jsonl"))

    teacher = report["teacher"]
    assert teacher["written"] == 60 and teacher["stand_in"] and teacher["rows"]["labelled"] == 60
    assert report["rows"]["written"]["train"] == len(people_rows) + 60
    assert 0 < teacher["spent_usd"] <= teacher["budget_usd"]
    notes = "\n".join(console.format_notes(DataReport(**report)))
    assert "60 train labels are those of the teacher openai:gpt-6-luna:decisions (a stand-in on this machine)" in notes


def test_no_held_out_row_is_sent_nor_a_near_duplicate_of_one_nor_a_row_of_its_group(
    recipe_path: Path, tickets: list[Ticket], provider: Provider
) -> None:
    people_folder = prepare_people(recipe_path)
    held_out = [row for name in HELD_OUT for row in atomic_files.read_jsonl(people_folder / f"{name}.jsonl")]
    texts, groups = [row["input"]["text"] for row in held_out], {row["group"] for row in held_out}
    assert len(texts) > 80
    copies = [[text, "new"] for text in texts] + [[f"{text.upper()} !", "new"] for text in texts]
    near = [[f"{text} ok", "new"] for text in texts if len(text) > 60]
    others = [[ticket.message, ticket.customer_id] for ticket in tickets[N_LABELLED:]]
    assert any(customer in groups for _, customer in others)
    write_csv(recipe_path.parent / "unlabelled.csv", ["message", "customer"], [*copies, *near, *others])
    splits, report, _ = prepare_data(recipe_path, "data.teacher.rows=1000")

    customers = {clean(ticket.message): ticket.customer_id for ticket in tickets}
    sent, settings = sent_texts(provider), Deduplicate()
    assert len(sent) > 100
    held_out_shingles = [minhash.shingles(duplicate_key(text), settings.shingle) for text in texts]
    for text in sent:
        assert customers[text] not in groups
        own_shingles = minhash.shingles(duplicate_key(text), settings.shingle)
        assert max(minhash.jaccard(own_shingles, other) for other in held_out_shingles) < settings.near
    assert report["teacher"]["rows"]["unusable"]["group_held_out"] > 0
    assert {row["input"]["text"] for row in by_teacher(splits["train"])} == set(sent)


def test_the_same_settings_ask_nothing_and_more_rows_ask_for_the_new_ones_only(
    recipe_path: Path, provider: Provider
) -> None:
    first, _, _ = prepare_data(recipe_path)
    n_attempts = provider.attempts.total()
    second, _, was_prepared = prepare_data(recipe_path)
    assert not was_prepared and second == first and provider.attempts.total() == n_attempts
    # How it is connected changes no label.
    prepare_data(recipe_path, "data.teacher.concurrency=2", "data.teacher.retries=3")
    assert provider.attempts.total() == n_attempts
    more, _, was_prepared = prepare_data(recipe_path, "data.teacher.rows=80")
    assert was_prepared and len(by_teacher(more["train"])) == 80
    assert provider.attempts.total() == n_attempts + 20, "rows are ordered: those of before are among the first"


def test_a_budget_holds_and_a_larger_one_pays_for_the_rest(recipe_path: Path, provider: Provider) -> None:
    splits, report, _ = prepare_data(recipe_path, "data.teacher.budget_usd=0.005")
    teacher = report["teacher"]
    n_labelled, charged_usd = len(by_teacher(splits["train"])), sum(map(sum, provider.charged_tokens)) / 1e6
    assert 0 < n_labelled < 60 and charged_usd <= 0.005 and teacher["spent_usd"] == pytest.approx(charged_usd)
    assert teacher["rows"]["left_out"] == {"not_sent": 60 - n_labelled} and teacher["rows"]["sent"] == n_labelled
    splits, report, _ = prepare_data(recipe_path, "data.teacher.budget_usd=0.5")
    assert len(by_teacher(splits["train"])) == 60 and max(provider.attempts.values()) == 1
    # A lower budget than what was spent asks nothing, also for another prompt.
    n_attempts = provider.attempts.total()
    instruction = "data.teacher.instruction=Choose the queue for this message of a customer."
    splits, _, _ = prepare_data(recipe_path, "data.teacher.budget_usd=0.001", instruction)
    assert not by_teacher(splits["train"]) and provider.attempts.total() == n_attempts


def test_killed_in_the_middle_it_loses_no_answer_that_was_paid_for(
    recipe_path: Path, provider: Provider, python: Command
) -> None:
    provider.hang_after = 30
    runs = recipe_path.parent / "runs"
    argv = [sys.executable, "-m", "data_prep", str(recipe_path), "--hardware", "cpu", "--runs", str(runs)]
    with subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        cache = runs / "mine" / ".answers" / "teacher.jsonl"
        deadline = time.monotonic() + 300
        while len(final_keys(cache)) < 20 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = final_keys(cache)
    assert 20 <= len(kept) < 60
    provider.hang_after = None
    completed = python("data_prep", recipe_path, "--hardware", "cpu", "--runs", runs)
    assert completed.returncode == 0, completed.stderr
    folder = Path(completed.stdout.strip())
    assert len(by_teacher(atomic_files.read_jsonl(folder / "train.jsonl"))) == 60
    n_answers = Counter(response.key for response in response_cache.read_responses(cache) if response.output)
    assert kept < set(n_answers) and {n_answers[key] for key in kept} == {1}, "no answer on disk was asked for again"
    assert len(n_answers) == 60 and max(provider.attempts.values()) <= 2
    assert "60 labels" in completed.stderr and "60 train labels are those of the teacher" in completed.stderr


def test_answers_that_are_no_labels_are_counted_and_left_out(recipe_path: Path, provider: Provider) -> None:
    answer = provider.answer
    # A decision endpoint refuses by an answer of its own; an error about the row is final too.
    provider.answer = lambda prompt: answer(prompt) if stable_number(prompt) % 6 else "I would rather not"
    provider.refuse = lambda prompt, attempts: (ROW_ERROR, {}) if stable_number(prompt) % 6 == 1 else None
    splits, report, _ = prepare_data(recipe_path, "data.teacher.min_confidence=0.5")
    refused = {text for text in sent_texts(provider) if stable_number(text) % 6 < 2}
    assert 0 < len(refused) < 60 and report["teacher"]["rows"]["left_out"] == {"refused": len(refused)}
    assert {row["input"]["text"] for row in by_teacher(splits["train"])} == {*sent_texts(provider)} - refused
    note = f"{len(refused)} left out (refused {len(refused)})"
    assert note in "\n".join(console.format_notes(DataReport(**report)))
    # The stand-in has a probability of 0.9 in every answer.
    splits, report, _ = prepare_data(recipe_path, "data.teacher.min_confidence=0.95")
    assert report["teacher"]["rows"]["left_out"] == {"low_confidence": 60 - len(refused), "refused": len(refused)}
    assert not by_teacher(splits["train"]) and provider.attempts.total() == 60


@pytest.mark.parametrize(("provider_name", "model"), [("openai", "gpt-6-luna"), ("anthropic", "claude-haiku-5-5")])
def test_a_chat_model_labels_by_the_prompt_of_the_task(
    recipe_path: Path, provider: Provider, address: str, provider_name: str, model: str
) -> None:
    answer = provider.answer
    provider.answer = lambda prompt: answer(prompt).upper() if len(read_input(prompt)) % 5 else "perhaps a parcel?"
    base_url = address if provider_name == "anthropic" else f"{address}/v1"
    settings = (f"provider={provider_name}", f"model={model}", f"base_url={base_url}", "api=chat")
    splits, report, _ = prepare_data(recipe_path, *(f"data.teacher.{setting}" for setting in settings))
    labelled, invalid = by_teacher(splits["train"]), report["teacher"]["rows"]["left_out"]["invalid_answer"]
    assert len(labelled) == 60 - invalid > 0 and invalid > 0 and not provider.rule_violations
    assert {row["target"] for row in labelled} <= set(report["labels"]), "the spelling is that of the data"
    assert all("probabilities" not in row for row in labelled)
    assert "Answer with exactly one label." in next(iter(provider.attempts))


def test_records_are_checked_by_the_schema(tmp_path: Path, provider: Provider, address: str) -> None:
    documents = list(generate_documents(260, seed=3))
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents[:160]), "utf-8")
    unlabelled = [{"text": row["text"]} for row in documents[160:]]
    (tmp_path / "unlabelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unlabelled), "utf-8")
    records = {clean(row["text"]): json.dumps(row["target"]) for row in documents}
    provider.answer = lambda prompt: (
        records[read_input(prompt)] if len(prompt) % 4 else '{"document_type": "letter", "supplier": "X"}'
    )
    teacher = (
        f"data.teacher={{provider: openai, model: gpt-6-luna, base_url: '{address}/v1', budget_usd: 1, rows: 40, "
        f"source: {{path: '{tmp_path / 'unlabelled.jsonl'}'}}, price: {PRICE}}}"
    )
    overrides = [f"data.source.path={tmp_path / 'documents.jsonl'}", "data.columns.id=null", teacher]
    recipe = load("extractor", [*overrides, "model.base=pocket", "train.max_length=2048"], "cpu").recipe
    folder, _ = prepare.main(recipe, tmp_path / "runs")
    report = atomic_files.read_json(folder / "data.json")
    labelled = by_teacher(atomic_files.read_jsonl(folder / "train.jsonl"))
    assert report["teacher"]["rows"]["left_out"].keys() == {"invalid_answer"}
    assert len(labelled) == report["teacher"]["written"] > 0
    expected = {text: json.loads(record) for text, record in records.items()}
    assert all(row["target"]["supplier"] == expected[row["input"]["text"]]["supplier"] for row in labelled)


def test_personal_data_is_redacted_before_it_is_sent(
    recipe_path: Path, provider: Provider, tickets: list[Ticket]
) -> None:
    rows = [
        [f"{ticket.message} Write to ann.b{index}@example.org"] for index, ticket in enumerate(tickets[N_LABELLED:])
    ]
    write_csv(recipe_path.parent / "unlabelled.csv", ["message"], rows)
    prepare_data(recipe_path, "privacy.redact=[email]")
    assert provider.attempts and all("[EMAIL_1]" in text and "ann.b" not in text for text in sent_texts(provider))


def test_a_provider_that_refuses_the_key_leaves_nothing_half_done(recipe_path: Path, provider: Provider) -> None:
    provider.refuse = lambda prompt, attempts: (401, {})
    with pytest.raises(StageError, match=r"teacher openai:gpt-6-luna:decisions: its first request: HTTP 401"):
        prepare_data(recipe_path)
    assert provider.attempts.total() == 1
    assert not list((recipe_path.parent / "runs").rglob("teacher.json"))
    provider.refuse = lambda prompt, attempts: None
    splits, _, _ = prepare_data(recipe_path)
    assert len(by_teacher(splits["train"])) == 60


def test_a_dry_run_estimates_the_cost_and_sends_nothing(recipe_path: Path, provider: Provider, python: Command) -> None:
    completed = python("data_prep", recipe_path, "--hardware", "cpu", "--dry-run")
    assert completed.returncode == 0, completed.stderr
    assert "would request labels from openai:gpt-6-luna:decisions for 60 of " in completed.stdout
    assert "cost      openai:gpt-6-luna:decisions: about $0.0" in completed.stdout
    assert "budget    $1.00 (data.teacher.budget_usd), $0 of it spent" in completed.stdout
    assert not provider.attempts and not list(recipe_path.parent.rglob("data.json"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["privacy.data_may_leave=false"],
            "data.teacher: sends rows to a provider, and privacy.data_may_leave is false",
        ),
        (
            ["task.labels_per_row=many"],
            "data.teacher: labels rows of kind classification or extraction, and this is kind classification with "
            "several labels a row",
        ),
        (["data.teacher.source.path=null", "data.teacher.source.train=a.csv"], "takes path, paths or hub"),
        (["data.teacher.base_url=https://other.example/v1"], "OPENAI_API_KEY is not sent to https://other.example/v1"),
        (["data.teacher.effort=low"], "api: decisions writes nothing, so it takes no effort"),
        (
            ["train.soft_labels=true", "data.teacher.api=chat"],
            "train.soft_labels: needs the probability of every label",
        ),
    ],
)
def test_a_recipe_says_why_its_teacher_cannot_be_asked(recipe_path: Path, overrides: list[str], message: str) -> None:
    assert message in load_error(str(recipe_path), *overrides, hardware_name="cpu")


def test_a_price_that_is_not_known_is_an_error_before_any_request(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, python: Command
) -> None:
    settings = ["data.teacher.price=null", "data.teacher.base_url=null"]
    completed = python("data_prep", recipe_path, *settings, "--hardware", "cpu", OPENAI_API_KEY="unused")
    assert completed.returncode == 2
    assert "data.teacher: the price of openai:gpt-6-luna:decisions is unknown" in completed.stderr
