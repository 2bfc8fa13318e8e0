"""`python -m serve RECIPE`: starts vLLM, holds it to what was trained, says ready, and stays until it is stopped."""

from recipes import command


def main() -> int:
    parser = command.parser("serve", "Serve what was trained with vLLM, after checking that it is what was trained.")
    command.add_run(parser)
    arguments = parser.parse_intermixed_args()
    from serve import stay

    return stay.main(arguments)


if __name__ == "__main__":
    command.run(main)
