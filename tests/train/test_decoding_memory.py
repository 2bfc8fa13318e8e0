"""How much memory decoding and training take, on models that have shapes and no weights."""

from pathlib import Path

import pytest

from bench import gpu_memory
from tests.conftest import ROOT
from train.evaluate import decoding_memory
from train.report import run_header

GIB = 2**30


def test_the_table_of_the_docs_is_what_the_header_reckons() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    _, _, table = page.partition("<!-- gpu_memory:begin -->\n")
    assert table.partition("\n<!-- gpu_memory:end -->")[0] == gpu_memory.memory_table()


@pytest.mark.parametrize("base", gpu_memory.BASES)
def test_fewer_rows_are_decoded_at_once_where_memory_is_short(base: str) -> None:
    model = gpu_memory.build_meta_model(base)
    text = model.config
    free_bytes = decoding_memory.usable_bytes(80 * GIB) - gpu_memory.nf4_bytes(model)
    long_prompts = [1500] * 64
    assert decoding_memory.fit_batch_rows(text, 500, long_prompts, 2, free_bytes, 64) == 64
    batch_rows = decoding_memory.fit_batch_rows(text, 500, long_prompts, 2, 6 * GIB, 64)
    assert 1 < batch_rows < 64
    required_bytes = batch_rows * decoding_memory.row_bytes(text, 1500, 2) + decoding_memory.pass_bytes(
        text, batch_rows, 500, 2
    )
    assert (
        required_bytes
        <= 6 * GIB * (1 - decoding_memory.SPARE_FRACTION)
        < required_bytes + 2 * decoding_memory.row_bytes(text, 1500, 2)
    )
    # A batch is of rows about as long: short ones first, and many of them.
    assert decoding_memory.fit_batch_rows(text, 500, [40] * 32 + [1500] * 32, 2, 6 * GIB, 32) == 32
    assert decoding_memory.fit_batch_rows(text, 500, long_prompts, 2, 0, 64) == 1


def test_the_header_tells_what_decoding_takes_and_what_does_not_fit() -> None:
    model = gpu_memory.build_adapted_model("Qwen3-4B")
    arguments = {"pack_tokens": 8192, "answer_tokens": 512, "mask_pairs": 0, "checkpointing": True, "compute_bytes": 2}
    rows = decoding_memory.DecodingWorkload(64, 500, 1500)
    for gib, fits in ((24, True), (80, True), (8, False)):
        estimate = run_header.estimate_memory(
            model, **arguments, workload=rows, device_bytes=decoding_memory.usable_bytes(gib * GIB)
        )
        message = str(run_header._format_memory(estimate))
        assert estimate.fits == fits and ("more than there is" in message) != fits
        assert f"or decoding {estimate.decoding_rows} row" in message and "of the" in message
        assert estimate.decoding_rows == (64 if gib == 80 else estimate.decoding_rows)
    tight = run_header.estimate_memory(
        model, **arguments, workload=rows, device_bytes=decoding_memory.usable_bytes(24 * GIB)
    )
    assert tight.decoding_rows < 64 and tight.total <= decoding_memory.usable_bytes(24 * GIB)


def test_the_bench_writes_the_same_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu_memory:begin -->\nold\n<!-- gpu_memory:end -->\nafter\n", encoding="utf-8")
    gpu_memory.write_table(page)
    assert gpu_memory.memory_table() in page.read_text(encoding="utf-8") and "old" not in page.read_text(
        encoding="utf-8"
    )
