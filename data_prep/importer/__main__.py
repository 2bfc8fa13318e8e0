"""`python -m data_prep.importer train.jsonl`: write a recipe from a fine-tuning file or a log; print its path."""

import argparse

from insource.config import cli


def main() -> int:
    """Import the file on the command line. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.importer",
        description="Write a recipe for the rows of an OpenAI or Azure fine-tune, of a log of API calls, or of spans.",
    )
    parser.add_argument("source", metavar="FROM", help="the file that the model was trained on, or a log: JSON lines")
    parser.add_argument(
        "--test", default=cli.env_value("TEST"), help="held-out rows of the same format (default: a split)"
    )
    parser.add_argument(
        "--model", default=cli.env_value("MODEL"), help="the fine-tuned model, ft:..., or an Azure deployment"
    )
    parser.add_argument(
        "--base-url", default=cli.env_value("BASE_URL"), help="its address, where that is not the provider's"
    )
    parser.add_argument("--system", type=int, help="which of several system messages, by its number")
    parser.add_argument(
        "--to", default=cli.env_value("TO"), help="the recipe (default: recipes/<name of the file>.yaml)"
    )
    cli.add_flag(parser, "force", "replace a recipe that is there")
    parser.add_argument("--dry-run", action="store_true", help="print the recipe, and write nothing")
    arguments = parser.parse_args()
    from data_prep.importer import stage

    return stage.main(arguments)


if __name__ == "__main__":
    cli.run_cli(main)
