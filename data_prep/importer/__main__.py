"""`python -m data_prep.importer train.jsonl`: write a recipe from a fine-tuning file or a log; print its path."""

import argparse
import os

from insource.config import cli


def main() -> int:
    """Import the file on the command line. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.importer",
        description="Write a recipe for the rows of an OpenAI or Azure fine-tune, of a log of API calls, or of spans.",
    )
    parser.add_argument("source", metavar="FROM", help="the file that the model was trained on, or a log: JSON lines")
    parser.add_argument(
        "--test", default=_read_environment("TEST"), help="held-out rows of the same format (default: a split)"
    )
    parser.add_argument(
        "--model", default=_read_environment("MODEL"), help="the fine-tuned model, ft:..., or an Azure deployment"
    )
    parser.add_argument(
        "--base-url", default=_read_environment("BASE_URL"), help="its address, where that is not the provider's"
    )
    parser.add_argument("--system", type=int, help="which of several system messages, by its number")
    parser.add_argument(
        "--to", default=_read_environment("TO"), help="the recipe (default: recipes/<name of the file>.yaml)"
    )
    forced = os.environ.get("FORCE", "") not in ("", "0")
    parser.add_argument("--force", action="store_true", default=forced, help="replace a recipe that is there")
    parser.add_argument("--dry-run", action="store_true", help="print the recipe, and write nothing")
    arguments = parser.parse_args()
    from data_prep.importer import stage

    return stage.main(arguments)


def _read_environment(name: str) -> str | None:
    """Return the value of an environment variable; None if it is empty or unset."""
    return os.environ.get(name) or None


if __name__ == "__main__":
    cli.run_cli(main)
