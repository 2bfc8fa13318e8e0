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
    """All that is known of the rows once it is decided which of them stay."""

    recipe: Recipe
    table: Table
    assigned: SplitAssignment
    left: DropDecisions
    spellings: dict[str, str]
    """{label as the source writes it: label that it stands for}."""
    descriptions: dict[str, str]
    unusable: list[Rejected]
    room: ContextLimit
    """What a served model can take."""
    filtered: int = 0
    """Rows that data.where does not ask for."""
    label_sets: LabelSets = field(default_factory=dict)
    """{hash of a target: its labels}."""
    may_be_empty: bool = False
    """Whether a row of several labels may have none: such rows are there."""

    @property
    def written(self) -> dict[str, Array]:
        """Returns for each split which rows are written (bool)."""
        return {name: self.left.stays & (self.assigned.splits == index) for index, name in enumerate(SPLITS)}
