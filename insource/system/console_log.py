"""Log lines of long-running processes, on stderr."""

import sys


def log_line(line: str) -> None:
    """Print a line to stderr and flush it."""
    print(line, file=sys.stderr, flush=True)
