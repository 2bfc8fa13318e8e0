"""The stage: source files in, `.data/<digest>/` out.

train.jsonl validation.jsonl calibration.jsonl test.jsonl   {"id", "input": {"text"}, "target", "group"}
rejected.jsonl    {"id", "file", "line", "kind", "reason", "detail"}
suspects.csv      rows whose label a linear model doubts
data.json         every count, what was detected, the hashes of all of these
data.html         the same for people

Read `main` from top to bottom. Whatever happens, rows read = rows written + rejected + dropped, or the stage fails.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import describe, lengths, read, report, sources, split, spread, suspects, write
from data_prep.deduplicate import deduplicate
from data_prep.rows import Rejected, check_columns, needed_columns
from data_prep.source_row import SourceFile, SourceRow
from data_prep.table import Table, Writer
from recipes.errors import RecipeError
from recipes.schema import Recipe
from recipes.schema_data import SPLITS
from tasks import KINDS
from tasks.classification import by_key
from tasks.text import label_key
from tracking import digests, files
from tracking.run import now

# Below this, starting another process costs more than it saves.
BYTES_A_PROCESS = 2_000_000
TOLD_SECONDS = 1.0


@dataclass
class Steps:
    """How long each step took, told where that is worth a line."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)
        if self.seconds[name] >= TOLD_SECONDS:
            print(f"data      {name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)


def main(recipe: Recipe, runs: Path) -> tuple[Path, bool]:
    """Returns the folder of the prepared data and whether it was made now, because it was not there yet.

    Raises RecipeError where the source cannot be used: then nothing is left behind.
    """
    if recipe.task.kind not in KINDS:
        raise RecipeError(f"task.kind: {recipe.task.kind} is not built yet; built: {', '.join(KINDS)}")
    found = sources.find(recipe.data.source)
    hashes = [sources.sha256(file, recipe.data.source) for file in found]
    digest = digests.of_data(recipe, [(file.split, file.name, sha) for file, sha in zip(found, hashes, strict=True)])
    folder = runs / ".data" / digest
    if (folder / "data.json").exists():
        return folder, False
    started, steps = now(), Steps()
    with files.whole_folder(folder) as aside:
        work = aside / ".work"
        with spread.over(_processes(recipe, found)) as pool:
            with steps("read and clean"):
                table, unusable, read_from = _read(found, hashes, recipe, work, pool)
            _check_ids(table)
            with steps("split"):
                assigned = split.assign(table, recipe.data.split, {file.split for file in found})
            with steps("deduplicate"):
                left = deduplicate(table, assigned.splits, recipe, pool)
        labels = spellings(table, recipe)
        about = descriptions(labels, recipe)
        with steps("count tokens"):
            lengths.count(table, recipe, about, left)
            lengths.drop_too_long(table, assigned.splits, recipe, left)
        prepared = describe.Prepared(recipe, table, assigned, left, labels, about, unusable)
        counted = describe.rows(prepared)
        _check_balance(prepared, counted)
        with steps("doubt labels"):
            doubtful, looked_at = suspects.find(table, assigned.splits, labels, left) if labels else ([], 0)
        with steps("write"):
            slices = write.splits_of(aside, table, assigned.splits, left, recipe, labels)
            write.rejected(aside / "rejected.jsonl", unusable, table, assigned.splits, left)
            suspects.write(aside / "suspects.csv", doubtful, table, assigned.splits)
        told = {
            "schema_version": 2,
            "digest": digest,
            "started": started,
            "processes": pool.processes,
            "seconds": steps.seconds,
            "sources": read_from,
            "left_out": sources.left_out(recipe.data.source),
            "rows": counted,
            **describe.findings(prepared),
            "slices": describe.slices(prepared, slices),
            "suspects": {"rows_looked_at": looked_at, "found": len(doubtful)},
        }
        told["sha256"] = {path.name: files.sha256(path) for path in sorted(aside.iterdir()) if path.is_file()}
        report.write(aside / "data.html", told, prepared, doubtful)
        files.write_json(aside / "data.json", told)
        shutil.rmtree(work)
    return folder, True


def _processes(recipe: Recipe, found: list[SourceFile]) -> int:
    if recipe.data.num_proc != "auto":
        return recipe.data.num_proc
    size = sum(file.path.stat().st_size for file in found if file.path.is_file())
    return max(1, min(len(os.sched_getaffinity(0)), size // BYTES_A_PROCESS))


def _read(
    found: list[SourceFile], hashes: list[str], recipe: Recipe, work: Path, pool: spread.Spread
) -> tuple[Table, list[Rejected], list[dict[str, Any]]]:
    """Reads all files into a table. Returns it, the rows that cannot be used, and what each file was found to be."""
    unusable: list[Rejected] = []
    told = []
    with Writer(work, recipe) as writer:
        for file, sha256 in zip(found, hashes, strict=True):
            about, rows = read.read(file, recipe.data.source, needed_columns(recipe, file.split).values())
            counter = _Counted(rows, file, recipe)
            given = -1 if file.split == "all" else SPLITS.index(file.split)
            unusable += writer.add(file.name, given, counter, pool)
            if not counter.rows:
                raise RecipeError(f"{file.name}: there are no rows below the header")
            size = {"bytes": file.path.stat().st_size} if file.path.is_file() else {}
            counts = {"rows_read": counter.rows, "detected": about}
            told.append({"split": file.split, "file": file.name, "sha256": sha256, **size, **counts})
            if about.get("encoding_guessed"):
                guess = f"{file.name} is no UTF-8: read as {about['encoding']}; data.source.encoding says it for sure"
                print(f"data      {guess}", file=sys.stderr)
        table = writer.table()
    _check_rejected(unusable, len(table) + len(unusable), recipe)
    return table, unusable, told


class _Counted:
    """The rows of a file, counted as they pass, the columns of the first readable one checked."""

    def __init__(self, rows: Iterator[SourceRow], file: SourceFile, recipe: Recipe) -> None:
        self.rows, self._source, self._file, self._recipe = 0, rows, file, recipe

    def __iter__(self) -> Iterator[SourceRow]:
        unchecked = True
        for row in self._source:
            if unchecked and not row.problem:
                check_columns(str(self._file.path), self._file.split, row.values, self._recipe)
                unchecked = False
            self.rows += 1
            yield row


def spellings(table: Table, recipe: Recipe) -> dict[str, str]:
    """Returns {label as the source writes it: label that it stands for}; {} for tasks without labels.

    That is the listed one where the recipe lists labels, and the most frequent spelling where it does not.
    """
    listed = recipe.task.labels
    if not recipe.data.normalize_labels:
        return {written: written for written in table.targets}
    same: dict[str, list[str]] = {}
    for written, _ in sorted(table.targets.items(), key=lambda item: (-item[1], item[0])):
        same.setdefault(label_key(written), []).append(written)
    if listed != "auto":
        known = by_key(listed)
        return {one: one if one in listed else known[key] for key, written in same.items() for one in written}
    return {one: written[0] for written in same.values() for one in written}


def descriptions(labels: dict[str, str], recipe: Recipe) -> dict[str, str]:
    """Returns {label: description} in prompt order: as the recipe lists them, or those of the rows by alphabet."""
    listed = recipe.task.labels
    if listed == "auto":
        return dict.fromkeys(sorted(set(labels.values())), "")
    return dict(listed) if isinstance(listed, dict) else dict.fromkeys(listed, "")


def _check_rejected(rejected: list[Rejected], rows_read: int, recipe: Recipe) -> None:
    if len(rejected) <= recipe.data.max_rejected * rows_read:
        return
    lines = [f"  {row.file}:{row.line}  {row.reason}: {row.detail}" for row in rejected[:5]]
    more = [f"  ... and {len(rejected) - 5} more"] if len(rejected) > 5 else []
    raise RecipeError(
        f"{len(rejected)} of {rows_read} rows cannot be used; data.max_rejected is {recipe.data.max_rejected:.2%}:\n"
        + "\n".join(lines + more)
    )


def _check_ids(table: Table) -> None:
    ids = table.columns["id"]
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(twice):
        row, other = int(order[twice[0] + 1]), int(order[twice[0]])
        raise RecipeError(
            f"{table.place(row)}: id {table.texts.value('id', row)!r} stands at {table.place(other)} already; "
            "ids must differ, or leave data.columns.id out"
        )


def _check_balance(prepared: describe.Prepared, rows: dict[str, Any]) -> None:
    """Every label must be learnt from somewhere and asked about somewhere."""
    mistakes = []
    for label, counts in describe.labels(prepared).items():
        total = sum(counts[name] for name in SPLITS)
        if total < 2:
            times = "does not occur" if total == 0 else "occurs once"
            mistakes.append(f"  {label!r} {times}: a label needs rows to learn from and rows to be judged by")
        elif counts["train"] == 0:
            mistakes.append(f"  {label!r} has {total} rows and none of them fell to train: it cannot be learnt")
    if mistakes:
        hint = "  Merge the label into another, leave its rows out, or add rows."
        if count := rows["dropped"].get("too_long"):
            limit = prepared.recipe.train.max_length
            hint = f"  {count} train rows left: they are longer than train.max_length ({limit} tokens); raise it."
        raise RecipeError("\n".join(["labels with too few rows:", *mistakes, hint]))
    for name in ("train", "validation", "test"):
        if not rows["written"][name]:
            raise RecipeError(f"no rows are left for {name}: {rows['read']} were read; see data.split")
    accounted = sum(rows["written"].values()) + sum(rows["rejected"].values()) + sum(rows["dropped"].values())
    if accounted != rows["read"]:
        raise AssertionError(f"rows read {rows['read']} != written + rejected + dropped {accounted}")
