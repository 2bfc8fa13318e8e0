"""`make train` with a teacher: its probabilities are learnt, and header and model card say whose labels they are."""

import csv
from pathlib import Path

from demo_data.support_tickets import generate_tickets
from insource.system import atomic_files
from insource.text.text_keys import clean, duplicate_key
from tests.conftest import Command
from tests.helpers.provider.faulty_provider import Provider


def test_a_run_with_a_teacher_says_whose_labels_it_learnt(
    small_recipe: Path, tmp_path: Path, provider: Provider, address: str, python: Command
) -> None:
    tickets = {duplicate_key(ticket.message): ticket for ticket in generate_tickets(300, seed=8)}.values()
    with (tmp_path / "unlabelled.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["message"], *([ticket.message] for ticket in tickets)])
    queues = {clean(ticket.message): ticket.queue for ticket in tickets}
    provider.answer = lambda prompt: queues[prompt]
    teacher = (
        f"data.teacher={{provider: openai, api: decisions, model: gpt-6-luna, base_url: '{address}/v1', rows: 30, "
        f"source: {{path: '{tmp_path / 'unlabelled.csv'}'}}, budget_usd: 1, "
        "price: {input_usd_per_million: 1.0, output_usd_per_million: 0}}"
    )
    completed = python("train", small_recipe, teacher, "train.soft_labels=true", "--hardware", "cpu")
    assert completed.returncode == 0, completed.stderr
    name = "openai:gpt-6-luna:decisions (a stand-in on this machine)"
    assert f"train labels are those of {name}, learnt as probabilities" in completed.stderr
    (card,) = (tmp_path / "runs").glob("small/2*/adapter/README.md")
    report = atomic_files.read_json(card.parents[1] / "data" / "data.json")
    sentence = f"30 of the {report['rows']['written']['train']} train labels are those of {name}"
    assert sentence in card.read_text(encoding="utf-8")
    assert (
        "teacher/labels.jsonl" in atomic_files.read_json(card.parents[1] / "manifest.json")["stages"]["data"]["inputs"]
    )
    n_attempts = provider.attempts.total()
    again = python("train", small_recipe, teacher, "train.soft_labels=true", "--hardware", "cpu")
    assert "train     unchanged" in again.stderr and provider.attempts.total() == n_attempts
