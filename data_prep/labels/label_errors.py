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

from data_prep.dedup.exact import TEST, DropDecisions
from data_prep.row_table import Array, Table
from insource.config.recipe import Recipe
from insource.config.schema.data import SPLITS
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
    table: Table, splits: Array, labels: dict[str, str], left: DropDecisions, recipe: Recipe
) -> LabelIssues:
    """Returns the rows whose label is doubted, see `find`; none of tasks without labels, or of several a row."""
    if TASKS[recipe.task.variant].IS_MULTILABEL:
        return LabelIssues([], why_none="rows have several labels, and a doubt would be about one of them")
    return find_label_issues(table, splits, labels, left) if labels else LabelIssues([])


def find_label_issues(table: Table, splits: Array, labels: dict[str, str], left: DropDecisions) -> LabelIssues:
    """Returns the rows whose label is doubted.

    `labels` gives for each spelling in the source the label it stands for. Of more than MOST_ROWS rows those with the
    lowest hash are looked at.
    """
    rows = np.flatnonzero(left.stays & (splits != TEST))
    if len(rows) > MAX_ROWS:
        rows = np.sort(rows[np.argsort(table.columns["order"][rows], kind="stable")[:MAX_ROWS]])
    names = sorted(set(labels.values()))
    places = {name: at for at, name in enumerate(names)}
    given = np.zeros(len(rows), np.int64)
    features, at = [], 0
    for first, batch in table.texts.batches():
        mine = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + batch.num_rows)] - first
        if not len(mine):
            continue
        given[at : at + len(mine)] = [places[labels[one]] for one in batch.column("target").take(mine).to_pylist()]
        features.append(_hash_features(batch.column("text").take(mine).to_pylist()))
        at += len(mine)
    if len(rows) < 2 * FOLDS or len(names) < 2:
        return LabelIssues([], why_none=f"fewer than {2 * FOLDS} rows, or a single label")
    confidence = _predict_out_of_fold(features, given, table.columns["key"][rows], len(names))
    accuracy, recall, least = _score_against_chance(confidence, given)
    if recall < least:
        why = f"the linear model is no better than chance (mean recall {recall:.2f} of {len(names)} labels)"
        return LabelIssues([], len(rows), accuracy, recall, why)
    found = _find_confident_disagreements(confidence, given)
    doubtful = sorted(found, key=lambda one: confidence[one[0], given[one[0]]] - confidence[one])
    listed = [
        LabelIssue(
            int(rows[at]),
            names[given[at]],
            names[other],
            float(confidence[at, other]),
            float(confidence[at, given[at]]),
        )
        for at, other in doubtful
    ]
    return LabelIssues(listed, len(rows), accuracy, recall)


def write_label_issues(path: Path, found: list[LabelIssue], table: Table, splits: Array) -> None:
    """Writes suspects.csv, safe to open in a spreadsheet (OWASP: CSV injection)."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for one in found:
            texts = (table.texts.value("id", one.row), SPLITS[splits[one.row]], one.label, one.predicted)
            figures = (f"{one.confidence:.3f}", f"{one.label_confidence:.3f}")
            writer.writerow([*map(escape_formula, texts), *figures, escape_formula(table.texts.value("text", one.row))])


def escape_formula(text: str) -> str:
    """Returns the text as a spreadsheet takes it for text: a cell that opens like a formula gets a leading quote."""
    return "'" + text if text.startswith(FORMULA_PREFIXES) else text


def _hash_features(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    # Hashed, so that no vocabulary is held.
    return HashingVectorizer(analyzer=extract_terms, n_features=2**18, alternate_sign=False, norm=None).transform(texts)


def _score_against_chance(confidence: Array, given: Array) -> tuple[float, float, float]:
    """Returns accuracy, recall averaged over the labels that occur, and what that must reach: three standard errors
    above what guessing has (of random labels two are passed by one model in ten, as folds share their rows)."""
    right = confidence.argmax(axis=1) == given
    totals = np.bincount(given, minlength=confidence.shape[1])
    occurs = totals > 0
    recalls = np.bincount(given, weights=right, minlength=confidence.shape[1])[occurs] / totals[occurs]
    chance = 1 / occurs.sum()
    error = np.sqrt((chance * (1 - chance) / totals[occurs]).sum()) / occurs.sum()
    return float(right.mean()), float(recalls.mean()), float(chance + 3 * error)


def _predict_out_of_fold(features: list[Any], given: Array, keys: Array, classes: int) -> Array:
    """Returns [rows, classes]: the probability of each label from a model that saw neither the row nor its like."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import SGDClassifier

    counts = vstack(features, format="csr")
    # A feature of a single row tells nothing of another, and most are: without them a model is small.
    counts = counts[:, np.flatnonzero(counts.getnnz(axis=0) > 1)]
    if not counts.shape[1]:
        return np.zeros((len(given), classes))
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    folds = (keys % np.uint64(FOLDS)).astype(np.int64)
    confidence = np.zeros((len(given), classes))
    for fold in range(FOLDS):
        learnt, asked = folds != fold, folds == fold
        known = np.unique(given[learnt])
        if len(known) < 2 or not asked.any():
            continue
        model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=5, tol=None, random_state=0)
        model.fit(weighted[learnt], given[learnt])
        confidence[np.ix_(np.flatnonzero(asked), known)] = model.predict_proba(weighted[asked])
    return confidence


def _find_confident_disagreements(confidence: Array, given: Array) -> list[tuple[int, int]]:
    """Returns (row, other label) where the most probable label is another and as sure as rows of that label are."""
    own = confidence[np.arange(len(given)), given]
    totals = np.bincount(given, minlength=confidence.shape[1])
    usual = np.bincount(given, weights=own, minlength=confidence.shape[1]) / np.maximum(totals, 1)
    best = confidence.argmax(axis=1)
    contradicts = (best != given) & (confidence[np.arange(len(given)), best] >= usual[best]) & (totals[best] > 0)
    return [(int(row), int(best[row])) for row in np.flatnonzero(contradicts)]
