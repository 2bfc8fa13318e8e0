"""Results of the processes as the table and as rows of results/training.json.

{"shape": "banking77", "batch_size": 16, "system": "trl", "examples_per_second": 2.15, "times_trl": 1.0, ...}
{"shape": "banking77", "batch_size": 16, "system": "unsloth", "not_run": "Unsloth needs a GPU"}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.training.cases import CASES, Case

Result = dict[str, Any]
CASE_KEY = ("shape", "batch_size", "quantization")
SYSTEM_NAMES = {
    "insource": "insource",
    "trl": "TRL",
    "trl_bfd": "TRL, bfd packing",
    "llama_factory": "LLaMA-Factory",
    "unsloth": "Unsloth",
}
# Below this ratio rows share nothing, and the speed-up over padded batches has other causes.
MIN_COST_RATIO = 1.05
CARRIED_NOTE = "* as at batch 16: the same forward passes, more of them an update (--full times them too)"


def examples_per_second(result: Mapping[str, Any], row_tokens: float) -> float:
    """Return the examples a second of one run, without the first update.

    An example is a row of mean length, so that the lengths of the timed rows do not matter.
    """
    return float(sum(result["update_tokens"][1:]) / row_tokens / sum(result["raw_seconds"][1:]))


def skipped_result(case: Case, system: str, reason: str) -> Result:
    """Return the row of a system that did not run."""
    return {**_case_key(case), "system": system, "not_run": reason}


def carried_result(case: Case, reference: Result) -> Result:
    """Return the row of a system with its rate at a batch of 16.

    A larger batch is more of the same forward passes.
    """
    fields = {name: reference[name] for name in ("not_run",) if name in reference}
    if not fields:
        names = ["version", "command", "settings", "model", "examples_per_second", "peak_memory_bytes"]
        names += ["hardware", "date"]
        fields = {name: reference[name] for name in names} | {"carried_from_batch_size": reference["batch_size"]}
    return {**_case_key(case), "system": reference["system"], **fields}


def _case_key(case: Case) -> Result:
    return {name: getattr(case, name) for name in (*CASE_KEY, "precision")}


def compare_systems(results: Sequence[Result], systems: Sequence[str]) -> list[Result]:
    """Return the results of one case in the order of its systems, each relative to plain TRL.

    `ratio_reached` is the fraction of the packs' token ratio that became speed, if rows share tokens at all.
    `loss_from_trl` is the largest distance of the two loss curves, if both had the same rows in every update.
    """
    completed = {result["system"]: result for result in results if "not_run" not in result}
    trl, bfd = completed.get("trl"), completed.get("trl_bfd")
    compared = []
    for result in sorted(results, key=lambda result: systems.index(result["system"])):
        if "not_run" in result or trl is None:
            compared.append(result)
            continue
        speedup = result["examples_per_second"] / trl["examples_per_second"]
        extra: Result = {"times_trl": speedup}
        if bfd is not None:
            extra["times_trl_bfd"] = result["examples_per_second"] / bfd["examples_per_second"]
        if (ratio := result.get("token_ratio", 0.0)) > MIN_COST_RATIO:
            extra["ratio_reached"] = speedup / ratio
        if (
            result.get("losses")
            and trl.get("losses")
            and result["quality_updates_sha256"] == trl["quality_updates_sha256"]
        ):
            extra["loss_from_trl"] = max(abs(a - b) for a, b in zip(result["losses"], trl["losses"], strict=True))
        compared.append({**result, **extra})
    return compared


def print_tables(results: Sequence[Result]) -> None:
    """Print the tables: all systems, and the cost by number of labels."""
    # A file gets a fixed width, which keeps all columns.
    console = Console(width=None if Console().is_terminal else 160)
    completed = [result for result in results if "not_run" not in result]
    for quantization in dict.fromkeys(result["quantization"] for result in results):
        shown_results = [
            result
            for result in results
            if result["quantization"] == quantization and not result["shape"].startswith("labels_")
        ]
        if shown_results:
            console.print(_side_by_side_table(shown_results, quantization))
            for system, reason in dict.fromkeys(
                (result["system"], result["not_run"]) for result in shown_results if "not_run" in result
            ):
                console.print(
                    f"  {SYSTEM_NAMES[system]} did not run: {reason}\n", style="dim", markup=False, highlight=False
                )
    if labels := [
        result for result in completed if result["shape"].startswith("labels_") and result["system"] == "insource"
    ]:
        console.print(_label_count_table(labels, completed))
    for result in completed[:1]:
        console.print(
            f"{result['hardware']}, model {result['model']}, {result['date']}; medians of runs, the first update "
            "left out"
        )


def _side_by_side_table(results: Sequence[Result], quantization: str) -> Table:
    title = "Training" + (f", {quantization} base" if quantization != "none" else "")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("shape, batch", "system"):
        table.add_column(name, no_wrap=True)
    for name in (
        "examples/s",
        "x TRL",
        "x bfd",
        "peak memory",
        "last loss",
        "off TRL's by",
        "validation",
        "token ratio",
        "reached",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.caption = CARRIED_NOTE if any("carried_from_batch_size" in result for result in results) else None
    previous_group = ("", 0)
    for result in results:
        group = (result["shape"], result["batch_size"])
        if group != previous_group and previous_group[0]:
            table.add_section()
        label = f"{result['shape']}, {result['batch_size']}" if group != previous_group else ""
        previous_group = group
        name = SYSTEM_NAMES[result["system"]]
        if "not_run" in result:
            table.add_row(label, f"[dim]{name}[/dim]", "[dim]not run[/dim]")
            continue
        table.add_row(
            label,
            f"[bold]{name}[/bold]" if result["system"] == "insource" else name,
            f"{result['examples_per_second']:.2f}{'*' if 'carried_from_batch_size' in result else ''}",
            format_number(result.get("times_trl"), ".2f"),
            format_number(result.get("times_trl_bfd"), ".2f"),
            f"{result['peak_memory_bytes'] / 2**30:.2f} GiB",
            format_number(result.get("final_loss"), ".4f"),
            format_number(result.get("loss_from_trl"), ".0e"),
            format_number(result.get("validation_loss"), ".4f"),
            format_number(result.get("token_ratio"), ".2f"),
            format_number(result.get("ratio_reached"), ".0%"),
        )
    return table


def _label_count_table(results: Sequence[Result], completed: Sequence[Result]) -> Table:
    table = Table(title="Cost by number of labels (synthetic names)", box=box.SIMPLE_HEAD, title_justify="left")
    for name in (
        "labels",
        "prefix",
        "batch",
        "insource, examples/s",
        "TRL, examples/s",
        "x TRL",
        "token ratio",
        "reached",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        trl = next(
            (candidate for candidate in completed if is_same_case(result, candidate) and candidate["system"] == "trl"),
            None,
        )
        mark = "*" if trl and "carried_from_batch_size" in trl else ""
        table.add_row(
            result["shape"].removeprefix("labels_"),
            str(result["prefix_tokens"]),
            str(result["batch_size"]),
            f"{result['examples_per_second']:.2f}",
            f"{trl['examples_per_second']:.2f}{mark}" if trl else "",
            format_number(result.get("times_trl"), ".2f"),
            format_number(result.get("token_ratio"), ".2f"),
            format_number(result.get("ratio_reached"), ".0%"),
        )
    table.caption = CARRIED_NOTE
    return table


def is_same_case(first: Result, second: Result) -> bool:
    """Return whether two results belong to one case."""
    return case_sort_key(first) == case_sort_key(second)


def case_sort_key(result: Result) -> tuple[str, int]:
    """Return precision and case number of a result; results before 2026-11-29 are float32."""
    cases = [tuple(getattr(case, name) for name in CASE_KEY) for case in CASES]
    return result.get("precision", "float32"), cases.index(tuple(result[name] for name in CASE_KEY))


def format_number(value: float | None, format_spec: str) -> str:
    """Return a number as text, empty for None."""
    return "" if value is None else format(value, format_spec)
