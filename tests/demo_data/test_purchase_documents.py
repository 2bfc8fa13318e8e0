"""The synthetic orders and invoices: what is committed is what the generator writes, and it fits its recipe."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout

from demo_data import purchase_documents
from insource.config.load import RECIPES, load
from insource.tasks import extraction
from tests.conftest import ROOT


def test_the_demo_documents_are_the_committed_ones_and_fit_their_recipe() -> None:
    buffer = io.StringIO()
    with redirect_stdout(buffer):
        for document in purchase_documents.generate_documents():
            print(json.dumps(document, ensure_ascii=False))
    committed = (RECIPES.parent / "demo_data" / "purchase_documents.jsonl").read_text(encoding="utf-8")
    assert committed == buffer.getvalue()
    rows = [json.loads(line) for line in committed.splitlines()]
    spec = extraction.make_spec(load("extractor", (), "cpu").recipe.task, {})
    assert all(extraction.canonical_record(spec, row["target"]) == row["target"] for row in rows)
    copied_fields = ("supplier", "number", "date", "total", "due_date")
    assert not [
        row for row in rows for name in copied_fields if row["target"][name] and row["target"][name] not in row["text"]
    ]
    assert {row["layout"] for row in rows} == set(purchase_documents.LAYOUTS)
    # Scarce and common suppliers, missing fields: what makes the slices and nulls mean something.
    assert all(any(row["target"][name] is None for row in rows) for name in ("number", "date", "total", "due_date"))


def test_the_demo_is_written_by_its_module() -> None:
    argv = [sys.executable, "-m", "demo_data.purchase_documents", "--rows", "3"]
    completed = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True)
    assert [json.loads(line)["document_id"] for line in completed.stdout.decode().splitlines()] == [
        "D00000",
        "D00001",
        "D00002",
    ]
