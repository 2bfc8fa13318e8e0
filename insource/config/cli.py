"""Command line of all stages: `python -m <stage> RECIPE [key=value ...]`, exit codes, and errors as printed.

0 done, 1 stage failed, 2 recipe or call wrong, 3 check failed, 130 interrupted.

    error[INS-D001]: data.source.path: there is no file rows.csv
"""

import argparse
import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from insource.config.errors import CodedError, GateError, RecipeError, StageError

if TYPE_CHECKING:
    from insource.config.error_codes.codes import ErrorCode

RUNS_HINT = "RUNS=<folder> (or --runs) keeps runs elsewhere"
NO_LOCKS_HINT = (
    "the file system keeps no locks, without which two processes might write concurrently; RUNS=<folder> keeps runs, "
    "and REGISTRY=<folder> the registry, on one that does"
)
OS_ERROR_HINTS = {
    errno.ENOSPC: f"free some space, or {RUNS_HINT}",
    errno.EDQUOT: f"free some space, or {RUNS_HINT}",
    errno.EROFS: RUNS_HINT,
    errno.EACCES: f"give this user permission, or {RUNS_HINT}",
    errno.EPERM: f"give this user permission, or {RUNS_HINT}",
    errno.ENOTDIR: f"a file is in the place of a folder; {RUNS_HINT}",
    errno.ENOLCK: NO_LOCKS_HINT,
    errno.ENOSYS: NO_LOCKS_HINT,
    errno.EOPNOTSUPP: NO_LOCKS_HINT,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

OK, FAILED, USAGE_ERROR, GATE_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
# Exception, first word of the message, exit code; a subclass before its base class.
ERROR_KINDS: tuple[tuple[type[CodedError], str, int], ...] = (
    (RecipeError, "error", USAGE_ERROR),
    (GateError, "check failed", GATE_FAILED),
    (StageError, "failed", FAILED),
)


def build_parser(stage: str, description: str) -> argparse.ArgumentParser:
    """Return the parser with the options of all stages; a stage adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {stage}", description=description)
    parser.add_argument("recipe", help="a name in recipes/, or the path of a recipe file")
    parser.add_argument(
        "set", nargs="*", metavar="key=value", help="replace a recipe key, such as train.learning_rate=1e-4"
    )
    parser.add_argument(
        "--hardware",
        default=env_value("HARDWARE"),
        help="a name in recipes/hardware/ (default: what is there)",
    )
    parser.add_argument("--runs", help="the folder of the runs (default: $RUNS, else ./runs)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser


def add_run_option(parser: argparse.ArgumentParser) -> None:
    """Add --run, for stages that use a trained run."""
    parser.add_argument("--run", default=env_value("RUN"), help="a run id (default: $RUN, else the newest trained run)")


def stage_argv(stage: str, arguments: argparse.Namespace, *extra: str) -> list[str]:
    """Return the command that runs another stage with the recipe, settings, hardware and runs of this call."""
    argv = [sys.executable, "-m", stage, arguments.recipe, *arguments.set, *extra]
    argv += ["--hardware", arguments.hardware] if arguments.hardware else []
    return argv + (["--runs", arguments.runs] if arguments.runs else [])


def prepare_data(arguments: argparse.Namespace) -> Path:
    """Run the data stage as a separate process and return its folder: stages exchange data only through files.

    Exit with the data stage's exit code if it fails.
    """
    argv = stage_argv("data_prep", arguments, "--no-heading")
    completed = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if completed.returncode:
        sys.exit(completed.returncode)
    return Path(completed.stdout.strip())


def env_value(name: str) -> str | None:
    """Return an environment variable, None if it is unset or empty: make passes an empty one for what is not given."""
    return os.environ.get(name) or None


def add_flag(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """Add --<name>, which the environment variable <NAME> sets too, unless it is empty or 0."""
    default = os.environ.get(name.upper(), "") not in ("", "0")
    parser.add_argument(f"--{name}", action="store_true", default=default, help=help_text)


def describe_os_error(error: OSError) -> str:
    """Return reason and file of an OSError, and a hint."""
    reason = error.strerror or str(error) or type(error).__name__
    prefix = f"{error.filename}: " if error.filename else ""
    hint = OS_ERROR_HINTS.get(error.errno or 0)
    return f"{prefix}{reason}" + (f"; {hint}" if hint else "")


def format_error(error: CodedError) -> str:
    """Return an error as printed: first word, code and message, and where the entry of the code is if that has more."""
    from insource.config.error_codes.table import TABLE

    word = next(word for kind, word, _ in ERROR_KINDS if isinstance(error, kind))
    link = f"\n  see docs/errors.md#{error.code.lower()}" if TABLE[error.code].is_linked else ""
    return f"{word}[{error.code}]: {error}{link}"


def parse_error(stderr: str) -> CodedError | None:
    """Return the last error that a process printed, with the first line of its message; None if there is none."""
    for line in reversed(stderr.splitlines()):
        if match := re.fullmatch(r"(error|check failed|failed)\[(INS-[A-Z][0-9]{3})\]: (.*)", line):
            kind = next(kind for kind, word, _ in ERROR_KINDS if word == match[1])
            return kind(match[3], code=cast("ErrorCode", match[2]))
    return None


def run_cli(stage: Callable[[], int]) -> NoReturn:
    """Call a stage's main and exit with its code. Errors of the user and failed stages print without a traceback.

    Files are readable only by this user, because runs contain texts of the data. INSOURCE_UMASK (for example 027)
    changes that.
    """
    try:
        os.umask(_read_umask())
        exit_code = stage()
        sys.stdout.flush()
        sys.exit(exit_code)
    except CodedError as error:
        print(format_error(error), file=sys.stderr)
        sys.exit(next(status for kind, _, status in ERROR_KINDS if isinstance(error, kind)))
    except OSError as error:
        # A BrokenPipeError means that the reader of stdout has closed it, which is not an error.
        if not isinstance(error, BrokenPipeError):
            code: ErrorCode = "INS-X001" if error.errno in DISK_FULL else "INS-X002"
            print(format_error(StageError(describe_os_error(error), code=code)), file=sys.stderr)
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
        message = f"INSOURCE_UMASK: given {value!r}, allowed: octal digits, such as 077 or 027"
        raise RecipeError(message, code="INS-R011") from None


def _discard_stdout() -> None:
    """Flush stdout, or discard it if that fails, because the interpreter would print a traceback at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
