"""A daemon called at random, against a model of it: the test of tests/faults, for longer."""

import argparse

from tests.faults.test_daemon_model import run_examples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.daemon_model", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, metavar="N", help="calls: 30 each")
    parser.add_argument("--seed", type=int, help="by default the same as in the test")
    options = parser.parse_args()
    run_examples(options.examples, options.seed)
    print(f"{options.examples} examples: the daemon did what its model says")


if __name__ == "__main__":
    main()
