"""Do an idle client and an idle manager use the processor?"""

from __future__ import annotations

import os
import time

from throughput import cpu_seconds

import switchgear as sg

SECONDS = 10.0


def main() -> None:
    """Print what both used while nothing happened."""
    with sg.Manager(acquire_timeout=10.0) as manager:
        assert manager.pid is not None
        breaker = manager.breaker("bench")
        breaker.on_state_change(lambda name, old, new: None)
        breaker.execute(int)
        manager.client.flush()
        time.sleep(0.1)  # until the I/O thread has seen that nobody calls any more
        before = [cpu_seconds(pid) for pid in (os.getpid(), manager.pid)]
        time.sleep(SECONDS)  # what is measured is that time passes
        after = [cpu_seconds(pid) for pid in (os.getpid(), manager.pid)]
    tick = 1 / os.sysconf("SC_CLK_TCK")
    for name, start, end in zip(("client", "manager"), before, after, strict=True):
        print(f"idle {name}: {(end - start) * 1000:.0f} ms of CPU in {SECONDS:.0f} s")
    print(f"(the clock that counts it ticks every {tick * 1000:.0f} ms; goal: none)")


if __name__ == "__main__":
    main()
