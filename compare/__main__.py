"""`python -m compare RECIPE`: evaluate the tuned model and its baselines on the test set, and decide."""

from insource.config import cli


def main() -> int:
    """Parse the command line and run the stage."""
    parser = cli.build_parser("compare", "Compare the tuned model with its baselines on the test set, and decide.")
    cli.add_run_option(parser)
    cli.add_flag(parser, "fresh", "compare again even if nothing has changed")
    arguments = parser.parse_intermixed_args()
    from compare import stage

    return stage.main(arguments)


if __name__ == "__main__":
    cli.run_cli(main)
