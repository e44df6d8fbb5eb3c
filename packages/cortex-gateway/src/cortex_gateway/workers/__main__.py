"""The process of a worker; the control process starts it, and nobody else can."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from prometheus_client import disable_created_metrics

from cortex_core.server.clock import SystemClock
from cortex_core.server.listen import ListeningSocket
from cortex_core.server.logging import logging_to
from cortex_core.server.serve import run
from cortex_core.server.share import Seat, Tally
from cortex_gateway.workers.worker import run_worker


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker and return its exit status.

    Args:
        argv: arguments after the command's name; `None` takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="cortex-gateway worker")
    parser.add_argument("--api", type=int, required=True, help="descriptor of the API's socket")
    parser.add_argument("--pair", type=int, required=True, help="descriptor of the way to control")
    parser.add_argument("--tally", type=int, required=True, help="descriptor of the tally's memory")
    parser.add_argument("--seat", type=int, required=True, help="number of the worker")
    parser.add_argument("--log-format", choices=("text", "json"), required=True)
    parser.add_argument("--log-level", required=True)
    args = parser.parse_args(argv)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library is untyped here
    with logging_to(form=args.log_format, level=args.log_level):
        worker = run_worker(
            ListeningSocket(socket.socket(fileno=args.api)),
            socket.socket(fileno=args.pair),
            Seat(Tally(args.tally), args.seat),
            clock=SystemClock(),
            environ=os.environ,
        )
        return run(worker, "cortex-gateway worker", os.environ)


if __name__ == "__main__":
    sys.exit(main())
