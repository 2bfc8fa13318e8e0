"""`python -m bench.budget_child ADDRESS JOURNAL ROWS CAP`: a comparison that goes on with what was spent before."""

import sys
from pathlib import Path

from insource.backends import collection
from insource.backends.budgets import Budget
from tests.helpers.api_requests import IDENTITY, collect, make_endpoint, make_requests


def main(address: str, journal: str, rows: str, cap_usd: str) -> None:
    """Asks what has no answer yet, within the budget."""
    path, asked = Path(journal), make_requests(int(rows))
    spent = collection.sum_cached_cost_usd(make_endpoint(address), IDENTITY, asked, path)
    collect(address, path, asked, budget=Budget(float(cap_usd), spent))


if __name__ == "__main__":
    main(*sys.argv[1:])
