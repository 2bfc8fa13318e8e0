"""vLLM's own benchmark client (`vllm bench serve`), as a program that is independent of vLLM's name in pip.

One process serves all measurements, because importing vLLM takes long. Each line of its input is a JSON list of
arguments. Each measurement ends with the line MEASURED_LINE.
"""

import argparse
import json
import sys

MEASURED_LINE = "measured"


def main() -> None:
    """Run the measurement of each input line, until the input ends."""
    from vllm.benchmarks import serve

    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    for line in sys.stdin:
        serve.main(parser.parse_args(json.loads(line)))
        print(f"\n{MEASURED_LINE}", flush=True)


if __name__ == "__main__":
    main()
