"""Run `python -m serve RECIPE`: start vLLM, check parity, print "ready", serve until stopped."""

from insource.config import cli


def main() -> int:
    """Parse the command line and run the stage. Return its exit code."""
    parser = cli.build_parser("serve", "Serve what was trained with vLLM, after checking that it is what was trained.")
    cli.add_run_option(parser)
    arguments = parser.parse_intermixed_args()
    from serve import server

    return server.main(arguments)


if __name__ == "__main__":
    cli.run_cli(main)
