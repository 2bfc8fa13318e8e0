"""The stage: source files in, `.data/<digest>/` out.

train.jsonl validation.jsonl calibration.jsonl test.jsonl   {"id", "input": {"text"}, "target", "group"}
rejected.jsonl                                              {"id", "file", "line", "kind", "reason", "detail"}
data.json                                                   every count, the labels, the hashes of all of these
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep import split
from data_prep.deduplicate import deduplicate, shared_keys
from data_prep.rows import Rejected, Row, rows_of
from recipes.errors import RecipeError
from recipes.schema import Recipe
from recipes.schema_data import SPLITS
from tasks import KINDS
from tasks.text import DUPLICATE_KEY
from tracking import digests, files
from tracking.run import now


def main(recipe: Recipe, runs: Path) -> tuple[Path, bool]:
    """Returns the folder of the prepared data and whether it was made now, because it was not there yet.

    Raises RecipeError where the source cannot be used: then nothing is left behind.
    """
    _check_source(recipe)
    digest = digests.of_data(recipe)
    folder = runs / ".data" / digest
    if (folder / "data.json").exists():
        return folder, False
    started = now(), time.perf_counter()
    read, rejected, sources = _read(recipe)
    _check_rejected(rejected, sum(source["rows_read"] for source in sources), recipe)
    _check_ids(read)

    shares = split.shares_of(recipe.data.split, read)
    splits = _split(read, recipe, shares)
    before = {name: Counter(row.target for row in rows) for name, rows in splits.items()}
    # How much of test the source itself gives away: told before the rows that do it leave.
    leaked = shared_keys(splits["test"], [row for name in SPLITS[:3] for row in splits[name]])
    kept, dropped = deduplicate(splits, recipe.data.conflicts)
    labels = _labels(recipe, kept)
    report = {
        "schema_version": 1,
        "digest": digest,
        "started": started[0],
        "seconds": round(time.perf_counter() - started[1], 2),
        "sources": sources,
        "rows": {
            "read": sum(source["rows_read"] for source in sources),
            "written": {name: len(kept[name]) for name in SPLITS},
            "rejected": Counter(row.reason for row in rejected),
            "dropped": Counter(row.reason for row in dropped),
        },
        "duplicate_key": DUPLICATE_KEY,
        "near_duplicates": "not looked for",
        "test_rows_also_elsewhere": leaked,
        "shares": split.deviations(before, shares),
        "labels": {label: {"description": about, **_counts(label, kept)} for label, about in labels.items()},
    }
    _check_balance(report)
    _write(folder, kept, rejected + dropped, report)
    return folder, True


def _check_source(recipe: Recipe) -> None:
    """Refuses what a recipe may ask for and this stage cannot do yet: to pass over it would be a lie."""
    source = recipe.data.source
    if recipe.task.kind not in KINDS:
        raise RecipeError(f"task.kind: {recipe.task.kind} is not built yet; built: {', '.join(KINDS)}")
    if not source.files:
        raise RecipeError("data.source: only path, and train with test, can be read so far; not paths or hub")
    if recipe.data.split.time is not None:
        raise RecipeError("data.split.time: splitting by time is not built yet; use group, or give the splits")
    if recipe.privacy.redact:
        raise RecipeError(
            "privacy.redact: redaction is not built yet; remove personal data before, or leave redact out"
        )
    for key, path in source.files.items():
        if not Path(path).is_file():
            raise RecipeError(f"data.source.{'path' if key == 'all' else key}: there is no file {path}")


def _read(recipe: Recipe) -> tuple[dict[str, list[Row]], list[Rejected], list[dict[str, Any]]]:
    read: dict[str, list[Row]] = {}
    rejected: list[Rejected] = []
    sources = []
    for name, path in recipe.data.source.files.items():
        found = list(rows_of(Path(path), recipe))
        if not found:
            raise RecipeError(f"{path}: there are no rows below the header")
        read[name] = [row for row in found if isinstance(row, Row)]
        rejected += [row for row in found if isinstance(row, Rejected)]
        about = {
            "split": name,
            "file": Path(path).name,
            "sha256": files.sha256(Path(path)),
            "bytes": Path(path).stat().st_size,
        }
        sources.append({**about, "rows_read": len(found)})
    return read, rejected, sources


def _split(read: dict[str, list[Row]], recipe: Recipe, shares: dict[str, float]) -> dict[str, list[Row]]:
    """Given splits stay as they are; rows of a source without splits, or of train, are spread by their hash."""
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS} | {
        name: rows for name, rows in read.items() if name not in ("all", "train")
    }
    for row in read.get("all") or read["train"]:
        splits[split.assign(row, recipe.data.split, shares)].append(row)
    return splits


def _check_rejected(rejected: list[Rejected], rows_read: int, recipe: Recipe) -> None:
    if len(rejected) <= recipe.data.max_rejected * rows_read:
        return
    lines = [f"  {row.file}:{row.line}  {row.reason}: {row.detail}" for row in rejected[:5]]
    more = [f"  ... and {len(rejected) - 5} more"] if len(rejected) > 5 else []
    raise RecipeError(
        f"{len(rejected)} of {rows_read} rows cannot be used; data.max_rejected is {recipe.data.max_rejected:.2%}:\n"
        + "\n".join(lines + more)
    )


def _check_ids(read: dict[str, list[Row]]) -> None:
    first: dict[str, Row] = {}
    for row in (row for rows in read.values() for row in rows):
        if (other := first.setdefault(row.id, row)) is not row:
            raise RecipeError(
                f"{row.file}:{row.line}: id {row.id!r} stands at {other.file}:{other.line} already; ids must differ, "
                "or leave data.columns.id out"
            )


def _labels(recipe: Recipe, kept: dict[str, list[Row]]) -> dict[str, str]:
    """The labels in prompt order: as the recipe lists them, or those of the rows in alphabetical order."""
    listed = recipe.task.labels
    if listed == "auto":
        return dict.fromkeys(sorted({row.target for rows in kept.values() for row in rows}), "")
    return dict(listed) if isinstance(listed, dict) else dict.fromkeys(listed, "")


def _counts(label: str, kept: dict[str, list[Row]]) -> dict[str, int]:
    return {name: sum(row.target == label for row in kept[name]) for name in SPLITS}


def _check_balance(report: dict[str, Any]) -> None:
    """Every label must be learnt from somewhere and asked about somewhere."""
    mistakes = []
    for label, counts in report["labels"].items():
        total = sum(counts[name] for name in SPLITS)
        if total < 2:
            times = "does not occur" if total == 0 else "occurs once"
            mistakes.append(f"  {label!r} {times}: a label needs rows to learn from and rows to be judged by")
        elif counts["train"] == 0:
            mistakes.append(f"  {label!r} has {total} rows and none of them fell to train: it cannot be learnt")
    if mistakes:
        hint = "  Merge the label into another, leave its rows out, or add rows."
        raise RecipeError("\n".join(["labels with too few rows:", *mistakes, hint]))
    for name in ("train", "validation", "test"):
        if not report["rows"]["written"][name]:
            raise RecipeError(f"no rows are left for {name}: {report['rows']['read']} were read; see data.split")


def _write(folder: Path, kept: dict[str, list[Row]], left: list[Rejected], report: dict[str, Any]) -> None:
    rows = report["rows"]
    accounted = sum(rows["written"].values()) + rows["rejected"].total() + rows["dropped"].total()
    if accounted != rows["read"]:
        raise AssertionError(f"rows read {rows['read']} != written + rejected + dropped {accounted}")
    with files.whole_folder(folder) as aside:
        for name in SPLITS:
            _write_jsonl(aside / f"{name}.jsonl", kept[name])
        _write_jsonl(aside / "rejected.jsonl", left)
        report["sha256"] = {path.name: files.sha256(path) for path in sorted(aside.glob("*.jsonl"))}
        files.write_json(aside / "data.json", report)


def _write_jsonl(path: Path, rows: list[Row] | list[Rejected]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row.json(), ensure_ascii=False) + "\n")
