"""`python -m predict RECIPE --input rows.csv --output answers.parquet`: the trained model's answer to every row."""

from collections.abc import Sequence

from insource.config import cli
from predict import ENGINES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `argv` replaces the process's arguments."""
    parser = cli.build_parser("predict", "Answer every row of a file, a folder or a pattern with the trained model.")
    cli.add_run_option(parser)
    parser.add_argument(
        "--input", default=cli.env_value("INPUT"), help="a file, a folder or a pattern (default: $INPUT)"
    )
    parser.add_argument("--output", default=cli.env_value("OUTPUT"), help=".parquet, .jsonl or .csv (default: $OUTPUT)")
    parser.add_argument(
        "--engine",
        default=cli.env_value("ENGINE"),
        help=f"{' or '.join(ENGINES)} (default: $ENGINE, else vllm, or gateway where there is a base URL)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=cli.env_value("WORKERS"),
        help="with the engine ray (default: $WORKERS, else one for each GPU, or for each node without GPUs)",
    )
    parser.add_argument("--base-url", default=cli.env_value("BASE_URL"), help="of a gateway, or of a server that runs")
    cli.add_flag(parser, "probabilities", "write the probability of every label")
    cli.add_flag(parser, "fresh", "request all answers again")
    cli.add_flag(parser, "force", "replace an output file of another origin")
    arguments = parser.parse_intermixed_args(argv)
    from predict import stage

    return stage.main(arguments)


if __name__ == "__main__":
    cli.run_cli(main)
