"""`python -m bench.budget_child ADDRESS JOURNAL ROWS CAP`: a comparison that resumes with the cost on disk."""

import sys
from pathlib import Path

from insource.backends import collection
from insource.backends.budgets import Budget
from tests.helpers.api_requests import IDENTITY, collect, make_backend, make_requests


def main(address: str, journal: str, rows: str, cap_usd: str) -> None:
    """Query the requests without an answer, within the budget."""
    path, requests = Path(journal), make_requests(int(rows))
    spent_usd = collection.sum_cached_cost_usd(make_backend(address), IDENTITY, requests, path)
    collect(address, path, requests, budget=Budget(float(cap_usd), spent_usd))


if __name__ == "__main__":
    main(*sys.argv[1:])
