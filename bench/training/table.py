"""From what the processes told to the table and results/training.json.

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
# Below, nothing is shared, and the speed-up over padded batches comes from elsewhere.
MIN_COST_RATIO = 1.05
CARRIED_NOTE = "* as at batch 16: the same forward passes, more of them an update (--full times them too)"


def examples_per_second(result: Mapping[str, Any], row_tokens: float) -> float:
    """Returns examples a second of one run, the first update left out.

    An example is one of mean length, so that it does not matter whether long or short rows were in the updates timed.
    """
    return float(sum(result["update_tokens"][1:]) / row_tokens / sum(result["raw_seconds"][1:]))


def skipped_result(case: Case, system: str, why: str) -> Result:
    """Returns the row of a system that did not run."""
    return {**_case_key(case), "system": system, "not_run": why}


def carried_result(case: Case, at_16: Result) -> Result:
    """Returns the row of a peer whose forward passes are those of a batch of 16, more of them an update."""
    kept = {name: at_16[name] for name in ("not_run",) if name in at_16}
    if not kept:
        names = (
            "version",
            "command",
            "settings",
            "model",
            "examples_per_second",
            "peak_memory_bytes",
            "hardware",
            "date",
        )
        kept = {name: at_16[name] for name in names} | {"carried_from_batch_size": at_16["batch_size"]}
    return {**_case_key(case), "system": at_16["system"], **kept}


def _case_key(case: Case) -> Result:
    return {name: getattr(case, name) for name in (*CASE_KEY, "precision")}


def compare_systems(results: Sequence[Result], systems: Sequence[str]) -> list[Result]:
    """Returns the results of one case in the order of its systems, each against plain TRL.

    `ratio_reached` is the share of the packs' token ratio that became speed, where rows share something at all;
    `loss_from_trl` the largest distance of the two loss curves, where both had the same rows in every update.
    """
    ran = {one["system"]: one for one in results if "not_run" not in one}
    trl, bfd = ran.get("trl"), ran.get("trl_bfd")
    found = []
    for one in sorted(results, key=lambda one: systems.index(one["system"])):
        if "not_run" in one or trl is None:
            found.append(one)
            continue
        times = one["examples_per_second"] / trl["examples_per_second"]
        more: Result = {"times_trl": times}
        if bfd is not None:
            more["times_trl_bfd"] = one["examples_per_second"] / bfd["examples_per_second"]
        if (ratio := one.get("token_ratio", 0.0)) > MIN_COST_RATIO:
            more["ratio_reached"] = times / ratio
        if one.get("losses") and trl.get("losses") and one["quality_updates_sha256"] == trl["quality_updates_sha256"]:
            more["loss_from_trl"] = max(abs(a - b) for a, b in zip(one["losses"], trl["losses"], strict=True))
        found.append({**one, **more})
    return found


def print_tables(results: Sequence[Result]) -> None:
    """Prints the tables: side by side, and how cost grows with the number of labels."""
    # What goes to a file keeps its columns.
    console = Console(width=None if Console().is_terminal else 160)
    ran = [one for one in results if "not_run" not in one]
    for quantization in dict.fromkeys(one["quantization"] for one in results):
        wide = [
            one for one in results if one["quantization"] == quantization and not one["shape"].startswith("labels_")
        ]
        if wide:
            console.print(_print_side_by_side(wide, quantization))
            for system, why in dict.fromkeys((one["system"], one["not_run"]) for one in wide if "not_run" in one):
                console.print(
                    f"  {SYSTEM_NAMES[system]} did not run: {why}\n", style="dim", markup=False, highlight=False
                )
    if labels := [one for one in ran if one["shape"].startswith("labels_") and one["system"] == "insource"]:
        console.print(_print_by_labels(labels, ran))
    for one in ran[:1]:
        console.print(
            f"{one['hardware']}, model {one['model']}, {one['date']}; medians of runs, the first update left out"
        )


def _print_side_by_side(results: Sequence[Result], quantization: str) -> Table:
    title = "Training" + (f", {quantization} base" if quantization != "none" else "")
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("shape, batch", "system"):
        made.add_column(name, no_wrap=True)
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
        made.add_column(name, justify="right", no_wrap=True)
    made.caption = CARRIED_NOTE if any("carried_from_batch_size" in one for one in results) else None
    last = ("", 0)
    for one in results:
        here = (one["shape"], one["batch_size"])
        if here != last and last[0]:
            made.add_section()
        label = f"{one['shape']}, {one['batch_size']}" if here != last else ""
        last = here
        name = SYSTEM_NAMES[one["system"]]
        if "not_run" in one:
            made.add_row(label, f"[dim]{name}[/dim]", "[dim]not run[/dim]")
            continue
        made.add_row(
            label,
            f"[bold]{name}[/bold]" if one["system"] == "insource" else name,
            f"{one['examples_per_second']:.2f}{'*' if 'carried_from_batch_size' in one else ''}",
            format_number(one.get("times_trl"), ".2f"),
            format_number(one.get("times_trl_bfd"), ".2f"),
            f"{one['peak_memory_bytes'] / 2**30:.2f} GiB",
            format_number(one.get("final_loss"), ".4f"),
            format_number(one.get("loss_from_trl"), ".0e"),
            format_number(one.get("validation_loss"), ".4f"),
            format_number(one.get("token_ratio"), ".2f"),
            format_number(one.get("ratio_reached"), ".0%"),
        )
    return made


def _print_by_labels(ours: Sequence[Result], ran: Sequence[Result]) -> Table:
    made = Table(title="Cost by number of labels (synthetic names)", box=box.SIMPLE_HEAD, title_justify="left")
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
        made.add_column(name, justify="right", no_wrap=True)
    for one in ours:
        trl = next((other for other in ran if is_same_case(one, other) and other["system"] == "trl"), None)
        mark = "*" if trl and "carried_from_batch_size" in trl else ""
        made.add_row(
            one["shape"].removeprefix("labels_"),
            str(one["prefix_tokens"]),
            str(one["batch_size"]),
            f"{one['examples_per_second']:.2f}",
            f"{trl['examples_per_second']:.2f}{mark}" if trl else "",
            format_number(one.get("times_trl"), ".2f"),
            format_number(one.get("token_ratio"), ".2f"),
            format_number(one.get("ratio_reached"), ".0%"),
        )
    made.caption = CARRIED_NOTE
    return made


def is_same_case(one: Result, other: Result) -> bool:
    """Returns whether two results are of one case."""
    return case_sort_key(one) == case_sort_key(other)


def case_sort_key(one: Result) -> tuple[str, int]:
    """Returns which of the cases a result is of, in which precision (results before 2026-11-29 are float32)."""
    cases = [tuple(getattr(case, name) for name in CASE_KEY) for case in CASES]
    return one.get("precision", "float32"), cases.index(tuple(one[name] for name in CASE_KEY))


def format_number(value: float | None, written: str) -> str:
    """Returns the number as it is shown, empty where there is none."""
    return "" if value is None else format(value, written)
