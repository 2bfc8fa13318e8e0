"""A data.json for tests that prepare no data."""

from pathlib import Path
from typing import Any

from insource.system import atomic_files
from insource.tracking.data_report import (
    DataReport,
    LabelIssueReport,
    NearDuplicateSettings,
    RowCounts,
    SplitReport,
    TokenReport,
)


def write_data_report(folder: Path, **changes: Any) -> None:
    """Write a data.json without sources and rows; `changes` are its other fields."""
    fields = {
        "schema_version": 2,
        "digest": "0123abcd",
        "started": "2026-11-30T00:00:00+00:00",
        "processes": 1,
        "seconds": {},
        "sources": [],
        "left_out": [],
        "rows": RowCounts(read=0, written={}, rejected={}, dropped={}),
        "split": SplitReport(by="given files"),
        "duplicate_key": "",
        "near_duplicates": NearDuplicateSettings(threshold=1.0, shingle="char5", recall_at_threshold=1.0),
        "test_rows_also_elsewhere": {},
        "labels": {},
        "tokens": TokenReport(max_length=512),
        "label_issues": LabelIssueReport(rows_examined=0, count=0),
        "sha256": {},
    }
    atomic_files.write_json(folder / "data.json", DataReport(**fields | changes).to_json())
