"""`python -m predict RECIPE --input rows.csv --output answers.parquet`: the trained model's answer to every row."""

import os
from collections.abc import Sequence

from insource.config import cli
from predict import ENGINES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `argv` replaces the process's arguments."""
    parser = cli.build_parser("predict", "Answer every row of a file, a folder or a pattern with the trained model.")
    cli.add_run_option(parser)
    parser.add_argument("--input", default=_env_value("INPUT"), help="a file, a folder or a pattern (default: $INPUT)")
    parser.add_argument("--output", default=_env_value("OUTPUT"), help=".parquet, .jsonl or .csv (default: $OUTPUT)")
    parser.add_argument(
        "--engine",
        default=_env_value("ENGINE"),
        help=f"{' or '.join(ENGINES)} (default: $ENGINE, else vllm, or gateway where there is a base URL)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=_env_value("WORKERS"),
        help="with the engine ray (default: $WORKERS, else one for each GPU, or for each node without GPUs)",
    )
    parser.add_argument("--base-url", default=_env_value("BASE_URL"), help="of a gateway, or of a server that runs")
    for name, help_text in (
        ("probabilities", "write the probability of every label"),
        ("fresh", "request all answers again"),
        ("force", "replace an output file of another origin"),
    ):
        parser.add_argument(f"--{name}", action="store_true", default=_env_flag(name.upper()), help=help_text)
    arguments = parser.parse_intermixed_args(argv)
    from predict import stage

    return stage.main(arguments)


def _env_value(name: str) -> str | None:
    return os.environ.get(name) or None


def _env_flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


if __name__ == "__main__":
    cli.run_cli(main)
