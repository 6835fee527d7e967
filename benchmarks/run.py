"""Run every benchmark: `make bench`. Each prints ratios taken in one run, beside its goal."""

from __future__ import annotations

import platform
import sys

import idle
import msgpack
import round_trip
import throughput
import zmq


def main() -> None:
    """One after the other; they would disturb each other."""
    print(
        f"Python {platform.python_version()}, pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}, "
        f"msgpack {'.'.join(map(str, msgpack.version))}, {platform.machine()}"
    )
    for benchmark in (round_trip, throughput, idle):
        title = (benchmark.__doc__ or "").splitlines()[0]
        print(f"\n== {title} ==")
        sys.stdout.flush()
        benchmark.main()


if __name__ == "__main__":
    main()
