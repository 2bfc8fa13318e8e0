"""What the gateway says while it runs."""

import sys


def log_line(line: str) -> None:
    """Prints a line of chatter, at once."""
    print(line, file=sys.stderr, flush=True)
