"""vLLM's own benchmark client (`vllm bench serve`), as a program that starts where vLLM bears another name in pip."""

import argparse

from vllm.benchmarks.serve import add_cli_args, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
