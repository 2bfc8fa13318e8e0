"""Probable label errors: rows whose label a linear model, trained without them, confidently contradicts.

    suspects.csv   id,split,label,predicted,confidence,label_confidence,text

The model sees words and pairs of words; of scripts without spaces, characters and pairs of characters. A row is suspect
where the model gives another label at least the confidence that it gives, on average, to rows which bear that other
label (confident learning: Northcutt, Jiang, Chuang 2021, arXiv:1911.00068). Where the model is no better than chance
(its recall, averaged over the labels), nothing is listed: its doubts would mean nothing. Test rows are not looked at,
and nothing is changed: a person decides. Texts that a spreadsheet would take for a formula open with a quote sign.
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

FOLDS = 5
# A linear model on more rows finds nothing new, and its features would fill memory.
MAX_ROWS = 100_000
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")
CSV_COLUMNS = ("id", "split", "label", "predicted", "confidence", "label_confidence", "text")


@dataclass(frozen=True)
class LabelIssue:
    """A row and the label that it would rather have."""

    row: int
    label: str
    predicted: str
    confidence: float
    label_confidence: float


@dataclass(frozen=True)
class LabelIssues:
    """The suspects, most doubtful first, how many rows were looked at, and how good the model is that doubts them."""

    found: list[LabelIssue]
    rows_looked_at: int = 0
    accuracy: float | None = None
    """Share of the rows that the model, trained without them, gives their own label."""
    recall: float | None = None
    """The same, averaged over the labels; chance is 1 / labels."""
    why_none: str = ""

    def told(self) -> dict[str, Any]:
        """Returns what data.json says of them."""
        figures = {"accuracy": self.accuracy, "mean_recall": self.recall}
        rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
        return {"rows_looked_at": self.rows_looked_at, "found": len(self.found), **rounded, "why_none": self.why_none}


def find_task_label_issues(
    table: Table, splits: Array, labels: dict[str, str], drops: DropDecisions, recipe: Recipe
) -> LabelIssues:
    """Returns the rows whose label is doubted, see `find`; none of tasks without labels, or of several a row."""
    if TASKS[recipe.task.variant].IS_MULTILABEL:
        return LabelIssues([], why_none="rows have several labels, and a doubt would be about one of them")
    return find_label_issues(table, splits, labels, drops) if labels else LabelIssues([])


def find_label_issues(table: Table, splits: Array, labels: dict[str, str], drops: DropDecisions) -> LabelIssues:
    """Returns the rows whose label is doubted.

    `labels` gives for each spelling in the source the label it stands for. Of more than MOST_ROWS rows those with the
    lowest hash are looked at.
    """
    rows = np.flatnonzero(drops.stays & (splits != TEST))
    if len(rows) > MAX_ROWS:
        rows = np.sort(rows[np.argsort(table.columns["order"][rows], kind="stable")[:MAX_ROWS]])
    names = sorted(set(labels.values()))
    codes = {name: position for position, name in enumerate(names)}
    label_codes = np.zeros(len(rows), np.int64)
    features, position = [], 0
    for start, batch in table.texts.batches():
        batch_rows = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + batch.num_rows)] - start
        if not len(batch_rows):
            continue
        label_codes[position : position + len(batch_rows)] = [
            codes[labels[spelling]] for spelling in batch.column("target").take(batch_rows).to_pylist()
        ]
        features.append(_hash_features(batch.column("text").take(batch_rows).to_pylist()))
        position += len(batch_rows)
    if len(rows) < 2 * FOLDS or len(names) < 2:
        return LabelIssues([], why_none=f"fewer than {2 * FOLDS} rows, or a single label")
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
    """Writes suspects.csv, safe to open in a spreadsheet (OWASP: CSV injection)."""
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
    """Returns the text as a spreadsheet takes it for text: a cell that opens like a formula gets a leading quote."""
    return "'" + text if text.startswith(FORMULA_PREFIXES) else text


def _hash_features(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    # Hashed, so that no vocabulary is held.
    return HashingVectorizer(analyzer=extract_terms, n_features=2**18, alternate_sign=False, norm=None).transform(texts)


def _score_against_chance(confidence: Array, label_codes: Array) -> tuple[float, float, float]:
    """Returns accuracy, recall averaged over the labels that occur, and what that must reach: three standard errors
    above what guessing has (of random labels two are passed by one model in ten, as folds share their rows)."""
    correct = confidence.argmax(axis=1) == label_codes
    totals = np.bincount(label_codes, minlength=confidence.shape[1])
    occurs = totals > 0
    recalls = np.bincount(label_codes, weights=correct, minlength=confidence.shape[1])[occurs] / totals[occurs]
    chance = 1 / occurs.sum()
    error = np.sqrt((chance * (1 - chance) / totals[occurs]).sum()) / occurs.sum()
    return float(correct.mean()), float(recalls.mean()), float(chance + 3 * error)


def _predict_out_of_fold(features: list[Any], label_codes: Array, keys: Array, classes: int) -> Array:
    """Returns [rows, classes]: the probability of each label from a model that saw neither the row nor its like."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import SGDClassifier

    counts = vstack(features, format="csr")
    # A feature of a single row tells nothing of another, and most are: without them a model is small.
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
    """Returns (row, other label) where the most probable label is another and as sure as rows of that label are."""
    own_confidence = confidence[np.arange(len(label_codes)), label_codes]
    totals = np.bincount(label_codes, minlength=confidence.shape[1])
    mean_confidence = np.bincount(label_codes, weights=own_confidence, minlength=confidence.shape[1]) / np.maximum(
        totals, 1
    )
    predicted = confidence.argmax(axis=1)
    contradicts = (
        (predicted != label_codes)
        & (confidence[np.arange(len(label_codes)), predicted] >= mean_confidence[predicted])
        & (totals[predicted] > 0)
    )
    return [(int(row), int(predicted[row])) for row in np.flatnonzero(contradicts)]
