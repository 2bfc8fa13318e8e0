"""Likely label errors: rows whose label is contradicted by a linear model trained without them.

    suspects.csv   id,split,label,predicted,confidence,label_confidence,text

The features are words and word pairs; for scripts without spaces, characters and character pairs. A row is listed if
the model predicts another label with sufficient confidence. Sufficient is the mean confidence of that label for the
rows that have it (confident learning: Northcutt, Jiang, Chuang 2021, arXiv:1911.00068).

If the mean recall of the model is no better than chance, no rows are listed. Test rows are not examined, and no label
is changed: a person decides. Texts that a spreadsheet would take for a formula get a leading quote.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.arrays import Array
from data_prep.dedup.drops import TEST, DropDecisions
from data_prep.row_table import Table
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS
from insource.tasks import TASKS
from insource.tasks.words import extract_terms
from insource.tracking.data_report import LabelIssueReport

FOLDS = 5
# More rows do not improve a linear model, and their features would fill the memory.
MAX_ROWS = 100_000
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")
CSV_COLUMNS = ("id", "split", "label", "predicted", "confidence", "label_confidence", "text")


@dataclass(frozen=True)
class LabelIssue:
    """A row whose label is probably wrong, and the predicted label."""

    row: int
    label: str
    predicted: str
    confidence: float
    label_confidence: float


@dataclass(frozen=True)
class LabelIssues:
    """The likely label errors, the least plausible label first, and the quality of the model."""

    issues: list[LabelIssue]
    rows_examined: int = 0
    accuracy: float | None = None
    """Fraction of rows with the correct out-of-fold prediction."""
    recall: float | None = None
    """Mean out-of-fold recall over the labels; chance is 1 / labels."""
    no_issues_reason: str = ""

    def summarize(self) -> LabelIssueReport:
        """Return the entry of data.json."""
        figures = {"accuracy": self.accuracy, "mean_recall": self.recall}
        rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
        return LabelIssueReport(
            rows_examined=self.rows_examined, count=len(self.issues), **rounded, no_issues_reason=self.no_issues_reason
        )


def find_task_label_issues(
    table: Table, splits: Array, canonical_labels: dict[str, str], drops: DropDecisions, recipe: Recipe
) -> LabelIssues:
    """Return the likely label errors of a single-label task, as `find_label_issues`; none for other tasks."""
    if TASKS[recipe.task.task_name].IS_MULTILABEL:
        return LabelIssues([], no_issues_reason="rows have several labels, and a doubt would be about one of them")
    return find_label_issues(table, splits, canonical_labels, drops) if canonical_labels else LabelIssues([])


def find_label_issues(
    table: Table, splits: Array, canonical_labels: dict[str, str], drops: DropDecisions
) -> LabelIssues:
    """Return the likely label errors.

    `canonical_labels` is {label as written: canonical label}. Of more than MAX_ROWS rows, those with the lowest rank
    are examined.
    """
    rows = np.flatnonzero(drops.kept & (splits != TEST))
    if len(rows) > MAX_ROWS:
        rows = np.sort(rows[np.argsort(table.columns["rank"][rows], kind="stable")[:MAX_ROWS]])
    names = sorted(set(canonical_labels.values()))
    codes = {name: position for position, name in enumerate(names)}
    label_codes = np.zeros(len(rows), np.int64)
    features, position = [], 0
    for start, batch in table.texts.batches():
        batch_rows = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + batch.num_rows)] - start
        if not len(batch_rows):
            continue
        label_codes[position : position + len(batch_rows)] = [
            codes[canonical_labels[spelling]] for spelling in batch.column("target").take(batch_rows).to_pylist()
        ]
        features.append(_hash_features(batch.column("text").take(batch_rows).to_pylist()))
        position += len(batch_rows)
    if len(rows) < 2 * FOLDS or len(names) < 2:
        return LabelIssues([], no_issues_reason=f"fewer than {2 * FOLDS} rows, or a single label")
    confidence = _predict_out_of_fold(features, label_codes, table.columns["key"][rows], len(names))
    accuracy, recall, min_recall = _score_against_chance(confidence, label_codes)
    if recall < min_recall:
        reason = f"the linear model is no better than chance (mean recall {recall:.2f} of {len(names)} labels)"
        return LabelIssues([], len(rows), accuracy, recall, reason)
    pairs = _find_confident_disagreements(confidence, label_codes)
    ranked = sorted(pairs, key=lambda pair: confidence[pair[0], label_codes[pair[0]]] - confidence[pair])
    issues = [
        LabelIssue(
            int(rows[position]),
            names[label_codes[position]],
            names[predicted],
            float(confidence[position, predicted]),
            float(confidence[position, label_codes[position]]),
        )
        for position, predicted in ranked
    ]
    return LabelIssues(issues, len(rows), accuracy, recall)


def write_label_issues(path: Path, issues: list[LabelIssue], table: Table, splits: Array) -> None:
    """Write suspects.csv, safe to open in a spreadsheet (OWASP: CSV injection)."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for issue in issues:
            texts = (table.texts.value("id", issue.row), SPLITS[splits[issue.row]], issue.label, issue.predicted)
            figures = (f"{issue.confidence:.3f}", f"{issue.label_confidence:.3f}")
            writer.writerow(
                [*map(escape_formula, texts), *figures, escape_formula(table.texts.value("text", issue.row))]
            )


def escape_formula(text: str) -> str:
    """Return the text with a leading quote if a spreadsheet would take it for a formula."""
    return "'" + text if text.startswith(FORMULA_PREFIXES) else text


def _hash_features(texts: list[str]) -> Any:
    """Return hashed term counts, sparse [texts, 2**18]."""
    from sklearn.feature_extraction.text import HashingVectorizer

    # Hashing needs no vocabulary in memory.
    return HashingVectorizer(analyzer=extract_terms, n_features=2**18, alternate_sign=False, norm=None).transform(texts)


def _score_against_chance(confidence: Array, label_codes: Array) -> tuple[float, float, float]:
    """Return (accuracy, mean recall over the labels that occur, minimum mean recall).

    The minimum is three standard errors above guessing. With random labels, one model in ten passes two standard
    errors, because the folds share rows.
    """
    correct = confidence.argmax(axis=1) == label_codes
    totals = np.bincount(label_codes, minlength=confidence.shape[1])
    occurs = totals > 0
    recalls = np.bincount(label_codes, weights=correct, minlength=confidence.shape[1])[occurs] / totals[occurs]
    chance = 1 / occurs.sum()
    error = np.sqrt((chance * (1 - chance) / totals[occurs]).sum()) / occurs.sum()
    return float(correct.mean()), float(recalls.mean()), float(chance + 3 * error)


def _predict_out_of_fold(features: list[object], label_codes: Array, keys: Array, classes: int) -> Array:
    """Return label probabilities, float [rows, classes], from models trained without the row and its duplicates."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import SGDClassifier

    counts = vstack(features, format="csr")
    # Features that occur in one row carry no information on other rows. Most do, and without them the model is small.
    counts = counts[:, np.flatnonzero(counts.getnnz(axis=0) > 1)]
    if not counts.shape[1]:
        return np.zeros((len(label_codes), classes))
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    folds = (keys % np.uint64(FOLDS)).astype(np.int64)
    confidence = np.zeros((len(label_codes), classes))
    for fold in range(FOLDS):
        train_mask, test_mask = folds != fold, folds == fold
        seen_codes = np.unique(label_codes[train_mask])
        if len(seen_codes) < 2 or not test_mask.any():
            continue
        model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=5, tol=None, random_state=0)
        model.fit(weighted[train_mask], label_codes[train_mask])
        confidence[np.ix_(np.flatnonzero(test_mask), seen_codes)] = model.predict_proba(weighted[test_mask])
    return confidence


def _find_confident_disagreements(confidence: Array, label_codes: Array) -> list[tuple[int, int]]:
    """Return (row, predicted label) for each row with a confident prediction of another label.

    Confident means at least the mean confidence of that label for the rows that have it.
    """
    label_confidence = confidence[np.arange(len(label_codes)), label_codes]
    totals = np.bincount(label_codes, minlength=confidence.shape[1])
    mean_confidence = np.bincount(label_codes, weights=label_confidence, minlength=confidence.shape[1]) / np.maximum(
        totals, 1
    )
    predicted = confidence.argmax(axis=1)
    contradicts = (
        (predicted != label_codes)
        & (confidence[np.arange(len(label_codes)), predicted] >= mean_confidence[predicted])
        & (totals[predicted] > 0)
    )
    return [(int(row), int(predicted[row])) for row in np.flatnonzero(contradicts)]
