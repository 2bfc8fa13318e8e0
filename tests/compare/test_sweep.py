"""Several variants of a recipe: what is no choice, who wins, and that the test set stays shut."""

from pathlib import Path

import pytest

from compare import sweep
from insource.config.errors import RecipeError
from insource.system import atomic_files, number_format
from tests.helpers import commands
from tests.helpers.errors import raises_error


def test_models_and_groups_of_settings_are_combined() -> None:
    variants = sweep.parse_variants(["pocket", "smollm2"], "lora.r=8; lora.r=16 train.seed=3")
    assert [variant.name for variant in variants] == [
        "pocket lora.r=8",
        "pocket lora.r=16 train.seed=3",
        "smollm2 lora.r=8",
        "smollm2 lora.r=16 train.seed=3",
    ]
    assert variants[3].settings == ("model.base=smollm2", "lora.r=16", "train.seed=3")
    assert [variant.settings for variant in sweep.parse_variants([], "lora.r=8; lora.r=16")] == [
        ("lora.r=8",),
        ("lora.r=16",),
    ]


@pytest.mark.parametrize(
    ("models", "settings"), [([], ""), (["pocket"], ""), (["pocket", "pocket"], ""), ([], "lora.r=8;")]
)
def test_one_variant_is_no_choice(models: list[str], settings: str) -> None:
    with raises_error(RecipeError, "INS-R016", match="at least two different variants"):
        sweep.parse_variants(models, settings)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("lora.r=8; data.split.test=0.3", "variant data.split.test=0.3 changes `data`"),
        ("lora.r=8; lora.rank=3", "variant lora.rank=3"),
        ("lora.r=8; serve.max_model_len=64", "variant serve.max_model_len=64 changes `serve.max_model_len`"),
    ],
)
def test_a_variant_that_cannot_be_compared_is_told_before_anything_is_trained(
    small_recipe: Path, tmp_path: Path, variants: str, message: str
) -> None:
    completed = commands.run_command(tmp_path / "runs", "compare.sweep", small_recipe, VARIANTS=variants)
    assert completed.returncode == 2 and message in completed.stderr
    assert not list((tmp_path / "runs").glob("*/2*"))


def test_an_adapter_that_is_served_merged_is_a_variant_as_well(small_recipe: Path, tmp_path: Path) -> None:
    variants = "lora.r=8; lora.use_dora=true"
    completed = commands.run_command(tmp_path / "runs", "compare.sweep", small_recipe, "--dry-run", VARIANTS=variants)
    assert completed.returncode == 0 and "would train  lora.use_dora=true" in completed.stdout, completed.stderr


@pytest.mark.parametrize(("value", "compares"), [(None, True), ("", True), ("1", True), ("0", False)])
def test_the_best_is_compared_unless_that_is_declined(
    value: str | None, compares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMPARE", raising=False)
    if value is not None:
        monkeypatch.setenv("COMPARE", value)
    assert sweep.build_parser().parse_args(["classifier"]).compare is compares


@pytest.mark.slow
def test_the_best_on_validation_becomes_the_latest_run_and_nobody_reads_the_test_set(
    small_recipe: Path, tmp_path: Path
) -> None:
    # The better one first, so that the latest run is not the winner by itself.
    settings = {"VARIANTS": "train.max_steps=40; train.max_steps=2", "COMPARE": "0"}
    completed = commands.run_command(tmp_path / "runs", "compare.sweep", small_recipe, **settings)
    assert completed.returncode == 0, completed.stderr
    parent = tmp_path / "runs" / "small"
    payload = atomic_files.read_json(next(parent.glob("sweep-*.json")))
    assert payload["winner"] == "train.max_steps=40" and (parent / "latest").resolve().name == payload["run"]
    figures = [variant["figures"]["accuracy"] for variant in payload["variants"]]
    assert figures == sorted(figures, reverse=True) and len({variant["run"] for variant in payload["variants"]}) == 2
    best, *others = payload["variants"]
    assert best["to_the_best"] is None and best["interval"]["low"] < figures[0] < best["interval"]["high"]
    for variant in others:
        difference = variant["to_the_best"]
        assert difference["low"] <= difference["delta"] <= difference["high"]
        assert difference["delta"] == pytest.approx(variant["figures"]["accuracy"] - figures[0])
    assert not list(parent.glob("*/scores.json")) and not list(parent.glob("*/merged"))
    board = completed.stdout.partition("variant  ")[2].splitlines()
    assert [line.split("  ")[0] for line in board[1:3]] == [variant["variant"] for variant in payload["variants"]]
    assert "training cost" not in board[0], "the price of this machine is unknown"

    repeated = commands.run_command(
        tmp_path / "runs", "compare.sweep", small_recipe, "cost.cpu_usd_per_hour=3600", **settings
    )
    assert number_format.format_usd(payload["variants"][0]["training_seconds"]) in repeated.stdout
    assert repeated.returncode == 0 and repeated.stderr.count("train     unchanged") == 2
    assert (parent / "latest").resolve().name == payload["run"]
