"""`python -m bench.budget_child ADDRESS JOURNAL ROWS CAP`: a comparison that goes on with what was spent before."""

import sys
from pathlib import Path

from insource.backends import collection
from insource.backends.budgets import Budget
from tests.helpers.api_requests import IDENTITY, backend, collect, questions


def main(address: str, journal: str, rows: str, cap_usd: str) -> None:
    """Asks what has no answer yet, within the budget."""
    path, asked = Path(journal), questions(int(rows))
    spent = collection.known_usd(backend(address), IDENTITY, asked, path)
    collect(address, path, asked, budget=Budget(float(cap_usd), spent))


if __name__ == "__main__":
    main(*sys.argv[1:])
