"""`python -m bench.budget_child ADDRESS JOURNAL ROWS CAP`: a comparison that goes on with what was spent before."""

import sys
from pathlib import Path

from compare import answers
from compare.spend import Budget
from tests.collecting import IDENTITY, backend, collect, questions


def main(address: str, journal: str, rows: str, cap_usd: str) -> None:
    """Asks what has no answer yet, within the budget."""
    path, asked = Path(journal), questions(int(rows))
    spent = answers.known_usd(backend(address), IDENTITY, asked, path)
    collect(address, path, asked, budget=Budget(float(cap_usd), spent))


if __name__ == "__main__":
    main(*sys.argv[1:])
