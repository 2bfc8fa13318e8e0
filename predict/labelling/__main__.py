"""`python -m predict.labelling RECIPE --input unlabelled.csv --rows 200`: which rows to label next."""

from collections.abc import Sequence

from insource.config import cli
from predict import ENGINES
from predict.labelling import DEFAULT_ROWS, LINEAR


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `argv` replaces the process's arguments."""
    parser = cli.build_parser("predict.labelling", "Choose the rows to label next, and write them for a spreadsheet.")
    cli.add_run_option(parser)
    parser.add_argument("--input", default=cli.env_value("INPUT"), help="file, folder or pattern ($INPUT)")
    parser.add_argument(
        "--output", default=cli.env_value("OUTPUT"), help="a .csv file ($OUTPUT, else RECIPE-to-label.csv)"
    )
    parser.add_argument(
        "--rows", default=cli.env_value("N") or str(DEFAULT_ROWS), help=f"rows to choose ($N, else {DEFAULT_ROWS})"
    )
    engines = ", ".join([*ENGINES, LINEAR])
    parser.add_argument(
        "--engine",
        default=cli.env_value("ENGINE"),
        help=f"{engines} ($ENGINE, else vllm, or {LINEAR} without a trained run)",
    )
    parser.add_argument("--base-url", default=cli.env_value("BASE_URL"), help="of a gateway or a vLLM server")
    parser.add_argument(
        "--no-suggestions",
        action="store_true",
        default=cli.env_value("SUGGEST") == "0",
        help="leave the model's suggestion out ($SUGGEST=0)",
    )
    cli.add_flag(parser, "fresh", "predict again")
    cli.add_flag(parser, "force", "replace an output that was filled in")
    arguments = parser.parse_intermixed_args(argv)
    from predict.labelling import stage

    return stage.main(arguments)


if __name__ == "__main__":
    cli.run_cli(main)
