"""`python -m train.head RECIPE`: train the classification head of a trained run, and compare it on validation."""

from insource.config import cli


def main() -> int:
    parser = cli.build_parser("train.head", "Train a classification head on the base and the rows of a trained run.")
    cli.add_run_option(parser)
    cli.add_flag(parser, "fresh", "train the head again even if the run has one")
    arguments = parser.parse_intermixed_args()
    from train.head import launch

    return launch.main(arguments)


if __name__ == "__main__":
    cli.run_cli(main)
