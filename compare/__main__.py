"""`python -m compare RECIPE`: the tuned model against its baselines on the sealed test set, and a verdict."""

import os

from recipes import command


def main() -> int:
    parser = command.parser("compare", "Compare the tuned model with its baselines on the test set, and decide.")
    command.add_run(parser)
    fresh = os.environ.get("FRESH", "") not in ("", "0")
    parser.add_argument("--fresh", action="store_true", default=fresh, help="compare anew though nothing has changed")
    arguments = parser.parse_intermixed_args()
    from compare import stage

    return stage.main(arguments)


if __name__ == "__main__":
    command.run(main)
