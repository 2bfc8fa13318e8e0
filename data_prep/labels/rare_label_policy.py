"""Labels of few rows: left out, put together under one label, or refused, as `data.rare_labels` says.

rare_labels: {min_rows: 10, do: other}    {"refund": 120, "typo": 2, "fax": 4}  ->  {"refund": 120, "other": 6}
"""

from collections import Counter

import numpy as np

from data_prep.dedup.exact import DropDecisions
from data_prep.labels import label_sets
from data_prep.row_table import Table, hash_target
from insource.config.errors import RecipeError
from insource.config.recipe import Recipe
from insource.config.schema.data import RareLabels
from insource.tasks import TASKS
from insource.tasks.labels import clean_label, display_label, find_label

# Labels that a message names.
MAX_LABELS_SHOWN = 10


def apply_rare_label_policy(
    table: Table, labels: dict[str, str], recipe: Recipe, left: DropDecisions
) -> tuple[dict[str, str], list[str]]:
    """Returns {spelling: label} with the rare ones settled, and a line that says what was done.

    Rows of labels that are left out leave, test rows too: they have no answer among the labels. Raises RecipeError
    where rare labels are to be refused.
    """
    settings = recipe.data.rare_labels
    counts = Counter[str]()
    for written, rows in table.targets.items():
        counts[labels[written]] += rows
    rare = [label for label, rows in counts.items() if settings is not None and rows < settings.min_rows]
    if settings is None or not rare:
        return labels, []
    sets = label_sets.build_label_sets(table, labels, recipe)
    targets, first, place = np.unique(table.columns["target"], return_index=True, return_inverse=True)
    rarely = np.array([not {*rare}.isdisjoint(sets.get(one, ())) for one in targets.tolist()])
    mine = rarely[place]
    told = _format_message(rare, counts, settings, int(mine.sum()))
    if settings.do == "fail":
        raise RecipeError(f"data.rare_labels: {told}")
    if settings.do == "drop":
        left.drop(mine, "rare_label")
        return {written: label for written, label in labels.items() if label not in rare}, [f"{told}: left out"]
    # A label of that name may be there already, however it is spelt.
    common = [label for label in counts if label not in rare]
    other = find_label(settings.other, common, recipe.data.normalize_labels) or clean_label(settings.other)
    together = {written: other if label in rare else label for written, label in labels.items()}
    respelt = TASKS[recipe.task.variant].make_label_mapper(together, sorted(set(together.values())))
    for at in np.flatnonzero(rarely):
        targets[at] = hash_target(respelt(table.texts.value("target", int(first[at]))), recipe)
    table.columns["target"][mine] = targets[place][mine]
    return together, [f"{told}: now {display_label(other)}"]


def _format_message(rare: list[str], counts: Counter[str], settings: RareLabels, rows: int) -> str:
    named = sorted(rare, key=lambda label: (-counts[label], label))
    first = ", ".join(f"{display_label(label)} {counts[label]}" for label in named[:MAX_LABELS_SHOWN])
    more = f" and {len(named) - MAX_LABELS_SHOWN} more" if len(named) > MAX_LABELS_SHOWN else ""
    return f"{len(rare)} labels of fewer than {settings.min_rows} rows, {rows} rows in all ({first}{more})"
