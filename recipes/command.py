"""The command line that every stage shares: `python -m <stage> RECIPE [key=value ...]`, and its exit codes.

0 done, 1 a stage failed, 2 the recipe or the call is wrong, 3 a gate said no, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from recipes.errors import GateError, RecipeError, StageError

DONE, FAILED, WRONG, GATE, INTERRUPTED = 0, 1, 2, 3, 130


def parser(stage: str, about: str) -> argparse.ArgumentParser:
    """Returns the parser with what all stages take; a stage adds its own options."""
    made = argparse.ArgumentParser(prog=f"python -m {stage}", description=about)
    made.add_argument("recipe", help="a name in recipes/, or the path of a recipe file")
    made.add_argument(
        "set", nargs="*", metavar="key=value", help="replace a recipe key, such as train.learning_rate=1e-4"
    )
    made.add_argument(
        "--hardware",
        default=os.environ.get("HARDWARE") or None,
        help="a name in recipes/hardware/ (default: what is there)",
    )
    made.add_argument("--runs", help="the folder of the runs (default: $RUNS, else ./runs)")
    made.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return made


def add_run(made: argparse.ArgumentParser) -> None:
    """Adds what stages take that go on with a trained run."""
    made.add_argument(
        "--run", default=os.environ.get("RUN") or None, help="a run id (default: $RUN, else the newest trained run)"
    )


def run(stage: Callable[[], int]) -> NoReturn:
    """Calls a stage's main and exits with its code; mistakes and failures are told in words. What it writes belongs to
    this user alone, since runs hold texts of the data: INSOURCE_UMASK (027, say) lets others read it."""
    try:
        os.umask(_umask())
        sys.exit(stage())
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except GateError as error:
        print(f"gate      {error}", file=sys.stderr)
        sys.exit(GATE)
    except StageError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _umask() -> int:
    given = os.environ.get("INSOURCE_UMASK") or "077"
    try:
        return int(given, 8) & 0o777
    except ValueError:
        raise RecipeError(f"INSOURCE_UMASK: given {given!r}, allowed: octal digits, such as 077 or 027") from None
