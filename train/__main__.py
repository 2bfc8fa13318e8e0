"""`python -m train RECIPE`: prepare the data if needed, train the adapter, score it on validation, export it."""

import argparse

from insource.config import cli


def main() -> int:
    parser = cli.build_parser("train", "Prepare data, QLoRA-train, export the adapter and score it on validation.")
    cli.add_flag(parser, "fresh", "train again even if there is a finished or unfinished run")
    parser.add_argument("--keep-latest", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    from train import launch

    return launch.main(arguments)


if __name__ == "__main__":
    cli.run_cli(main)
