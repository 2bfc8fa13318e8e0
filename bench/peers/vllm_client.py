"""vLLM's own benchmark client (`vllm bench serve`), as a program that starts where vLLM bears another name in pip.

It is started once a server, because importing vLLM takes long: each line of its input is a JSON list of arguments, and
each measurement ends with a line that says so.
"""

import argparse
import json
import sys

MEASURED_LINE = "measured"


def main() -> None:
    """Measures what its input says, until that ends."""
    from vllm.benchmarks import serve

    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    for line in sys.stdin:
        serve.main(parser.parse_args(json.loads(line)))
        print(f"\n{MEASURED_LINE}", flush=True)


if __name__ == "__main__":
    main()
