"""Command line of all stages: `python -m <stage> RECIPE [key=value ...]`, and exit codes.

0 done, 1 stage failed, 2 recipe or call wrong, 3 check failed, 130 interrupted.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from insource.config.errors import GateError, RecipeError, StageError

RUNS_HINT = "RUNS=<folder> (or --runs) keeps runs elsewhere"
NO_LOCKS_HINT = (
    "the file system keeps no locks, without which two processes might write at once; RUNS=<folder> keeps runs, "
    "and REGISTRY=<folder> the registry, on one that does"
)
OS_ERROR_HINTS = {
    errno.ENOSPC: f"free some space, or {RUNS_HINT}",
    errno.EDQUOT: f"free some space, or {RUNS_HINT}",
    errno.EROFS: RUNS_HINT,
    errno.EACCES: f"give this user the right to, or {RUNS_HINT}",
    errno.EPERM: f"give this user the right to, or {RUNS_HINT}",
    errno.ENOTDIR: f"a file lies where a folder is needed; {RUNS_HINT}",
    errno.ENOLCK: NO_LOCKS_HINT,
    errno.ENOSYS: NO_LOCKS_HINT,
    errno.EOPNOTSUPP: NO_LOCKS_HINT,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}

OK, FAILED, USAGE_ERROR, GATE_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def build_parser(stage: str, description: str) -> argparse.ArgumentParser:
    """Return the parser with the options of all stages; a stage adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {stage}", description=description)
    parser.add_argument("recipe", help="a name in recipes/, or the path of a recipe file")
    parser.add_argument(
        "set", nargs="*", metavar="key=value", help="replace a recipe key, such as train.learning_rate=1e-4"
    )
    parser.add_argument(
        "--hardware",
        default=os.environ.get("HARDWARE") or None,
        help="a name in recipes/hardware/ (default: what is there)",
    )
    parser.add_argument("--runs", help="the folder of the runs (default: $RUNS, else ./runs)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser


def add_run_option(parser: argparse.ArgumentParser) -> None:
    """Add --run, for stages that use a trained run."""
    parser.add_argument(
        "--run", default=os.environ.get("RUN") or None, help="a run id (default: $RUN, else the newest trained run)"
    )


def describe_os_error(error: OSError) -> str:
    """Return reason and file of an OSError, and a hint."""
    reason = error.strerror or str(error) or type(error).__name__
    prefix = f"{error.filename}: " if error.filename else ""
    hint = OS_ERROR_HINTS.get(error.errno or 0)
    return f"{prefix}{reason}" + (f"; {hint}" if hint else "")


def run_cli(stage: Callable[[], int]) -> NoReturn:
    """Call a stage's main and exit with its code. Errors of the user and failed stages print without a traceback.

    Files are readable only by this user, because runs contain texts of the data. INSOURCE_UMASK (for example 027)
    changes that.
    """
    try:
        os.umask(_read_umask())
        code = stage()
        sys.stdout.flush()
        sys.exit(code)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except GateError as error:
        print(f"gate      {error}", file=sys.stderr)
        sys.exit(GATE_FAILED)
    except StageError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except OSError as error:
        # A BrokenPipeError means that the reader of stdout has closed it, which is not an error.
        if not isinstance(error, BrokenPipeError):
            print(f"failed: {describe_os_error(error)}", file=sys.stderr)
        _discard_stdout()
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _read_umask() -> int:
    value = os.environ.get("INSOURCE_UMASK") or "077"
    try:
        return int(value, 8) & 0o777
    except ValueError:
        raise RecipeError(f"INSOURCE_UMASK: given {value!r}, allowed: octal digits, such as 077 or 027") from None


def _discard_stdout() -> None:
    """Flush stdout, or discard it if that fails, because the interpreter would print a traceback at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
