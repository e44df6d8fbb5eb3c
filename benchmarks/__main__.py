"""`python -m benchmarks`: all that need no engine, one after the other, or those that are named."""

import argparse

from benchmarks import engine, plan, relay, simulate, translate

BENCHMARKS = {
    "translate": translate.main,
    "relay": relay.main,
    "plan": plan.main,
    "simulate": simulate.main,
    "engine": engine.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or [name for name in BENCHMARKS if name != "engine"]
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
