"""The record of all rows and decisions that the checks, the statistics and the report read."""

from dataclasses import dataclass, field

from data_prep.arrays import Array
from data_prep.dedup.drops import DropDecisions
from data_prep.labels.label_sets import LabelSets
from data_prep.row_table import Table
from data_prep.rows.data_row import Rejected
from data_prep.split import SplitAssignment
from data_prep.token_counts import ContextLimit
from insource.config.recipe import Recipe
from insource.config.schema.source import SPLITS


@dataclass(frozen=True)
class PreparedData:
    """The rows of a source with all decisions on them."""

    recipe: Recipe
    table: Table
    assignment: SplitAssignment
    drops: DropDecisions
    canonical_labels: dict[str, str]
    """{label as written in the source: canonical label}."""
    label_descriptions: dict[str, str]
    rejected: list[Rejected]
    context_limit: ContextLimit
    """The context limit of a served model."""
    filtered: int = 0
    """Number of rows that data.where filters out."""
    unlabelled: int = 0
    """Number of rows of labelled files that nobody has labelled."""
    label_sets: LabelSets = field(default_factory=dict)
    """{hash of a target: its labels}."""
    may_be_empty: bool = False
    """Whether rows of a multi-label task may have no label, because such rows occur."""

    @property
    def kept_by_split(self) -> dict[str, Array]:
        """Return which rows each split keeps, {split: bool [rows]}."""
        return {name: self.drops.kept & (self.assignment.splits == index) for index, name in enumerate(SPLITS)}
